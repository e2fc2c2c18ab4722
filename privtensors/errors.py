"""Every exception of privtensors.

One base, :class:`PrivTensorsError`. It derives from ``RuntimeError`` and never from ``TypeError``: Python's operator
protocol swallows a ``TypeError`` raised inside an operator and the real message would be lost. A message says what
went wrong, where, and what to do; it never holds a protected value, a share, a key or a mask.
"""

from __future__ import annotations


class PrivTensorsError(RuntimeError):
    """Base of every error of this package.

    Args:
        what: What went wrong, in one sentence without a full stop.
        where: The operation, file, field or party concerned.
        fix: What the reader can do about it.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(". ".join(p for p in (f"{where}: {what}" if where else what, fix) if p))


class RoutingError(PrivTensorsError):
    """An operation on a SafeTensor cannot be routed."""


class UnsupportedOp(RoutingError):
    """The backend has no kernel for this operation and these kinds of operands."""


class MixedBackends(RoutingError):
    """Tensors of two backends met in one operation."""


class StaleView(RoutingError):
    """A view is used after its base was changed in place."""


class PlaintextLeak(PrivTensorsError):
    """A way out of a SafeTensor other than ``privtensors.reveal`` was tried."""


class InvalidInput(PrivTensorsError):
    """A public input is malformed: wrong type, dtype or shape, NaN or infinite."""


class OutOfRange(InvalidInput):
    """A public input lies outside the range that the backend can represent."""


class ParameterError(PrivTensorsError):
    """A technique's or protocol's parameters are inconsistent or insecure."""


class UnknownBackend(PrivTensorsError):
    """No backend of that name is registered."""


class UnknownTechnique(PrivTensorsError):
    """No technique of that name is registered."""


class RegistryError(PrivTensorsError):
    """An entry point is broken, or two claim one name."""


class PolicyError(PrivTensorsError):
    """A policy cannot be composed; the message carries the reason."""


class PolicyFileError(PolicyError):
    """A policy file is malformed."""


class LedgerError(PrivTensorsError):
    """The ledger cannot be opened, read or written."""


class LedgerCorrupt(LedgerError):
    """The ledger's hash chain does not hold; the message names the row."""


class FileFormatError(PrivTensorsError):
    """A saved SafeTensor file is truncated, tampered with, or of another format or version."""


class TransportError(PrivTensorsError):
    """A message could not be exchanged, or is not what the protocol expects."""


class ProtocolError(PrivTensorsError):
    """A protocol's own bookkeeping (ring, scale, range, lockstep) would be violated."""


class UnknownFamily(PrivTensorsError):
    """The model belongs to a family whose layout privtensors does not know."""


class AssetUnavailable(PrivTensorsError):
    """A model or data set cannot be fetched, or its checksum does not match."""


class UsageError(PrivTensorsError):
    """A command line option is missing, contradictory or out of range."""


class AssetRefused(AssetUnavailable):
    """What arrived is not the asset that was pinned, or is dangerous to unpack."""


class CompositionError(PolicyError):
    """Techniques of a policy cannot be composed.

    Args:
        reason: Why, in words.
        technique: The technique that was refused; empty where it is the whole stage.
        stage: The stage of life, e.g. ``"infer"``.
        phase: The phase in which it could not start; empty before the first.
    """

    def __init__(
        self, what: str, *, where: str = "", fix: str = "", reason: str = "", technique: str = "", stage: str = "", phase: str = ""
    ) -> None:
        self.reason, self.technique, self.stage, self.phase = reason or what, technique, stage, phase
        super().__init__(what, where=where, fix=fix)


class MissingExtra(PrivTensorsError):
    """A package that belongs to an optional extra is not installed."""


class PeerLost(TransportError):
    """The other party closed the connection, died or aborted."""


class PeerTimeout(TransportError):
    """The other party did not answer in time, or could not be reached in time."""


class FrameError(TransportError):
    """What arrived is no frame, or not the one due: truncated, replayed, out of order, too large, of another session or step."""


class VersionMismatch(TransportError):
    """The parties run different versions of the wire format or of TLS, or disagree on policy or model.

    Args:
        terms: Names of the terms on which they disagree.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "", terms: tuple[str, ...] = ()) -> None:
        super().__init__(what, where=where, fix=fix)
        self.terms = terms


class WrongPeer(TransportError):
    """The party at the other end is not the one expected, or did not accept our certificate."""


class CorrelationError(PrivTensorsError):
    """Correlated randomness is missing, used up, used before, or was dealt for another program."""


class PartyBusy(TransportError):
    """The other party has no room for another session or request now; nothing was computed."""


class RequestRefused(TransportError):
    """The other party does not take this request: too large, unknown cache, an id used before, or parties that disagree on it."""


class RangeExceeded(OutOfRange):
    """A value that was computed under protection left the range in which the protocols are right; the result was withheld."""


class IdUsed(CorrelationError):
    """An id of a request or of stored correlated randomness was used before."""


class AccountingError(PrivTensorsError):
    """Privacy cannot be accounted as asked: an event without a curve, a reservation that is not open, a target out of reach."""


class MixedRelations(AccountingError):
    """Releases under different neighbouring relations, or per different units, would be added up."""


class BudgetExceeded(AccountingError):
    """The release would overspend a privacy budget; nothing was reserved. The message says what is left."""


class KnownDataWarning(UserWarning):
    """A release states a data set whose records were used under another name: the two are counted apart."""


class BoundingError(PrivTensorsError):
    """What one example adds to a training step cannot be bounded; nothing of the step was kept."""


class UnboundedParameter(BoundingError):
    """A parameter is used in a way from which this engine cannot tell the examples' gradients apart.

    Args:
        parameter: The parameter's name, or that of the module that uses it.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "", parameter: str = "") -> None:
        self.parameter = parameter
        super().__init__(what, where=where, fix=fix)


class CrossExample(BoundingError):
    """An example's gradient depends on the other examples of its batch, so that clipping does not bound what it adds."""


class UnboundedSensitivity(UnsupportedOp):
    """One unit's data can change the result by any amount, or by an amount that cannot be told, so no noise hides it."""


class AuditError(PrivTensorsError):
    """A run cannot be audited as asked: its model, data or loss leave no room for canaries, or it ended without an observation."""


class ObfuscationError(PrivTensorsError):
    """A model, tokenizer, key or folder cannot be obfuscated as asked, or read back."""


class WrongKey(ObfuscationError):
    """An obfuscation key is missing, of the wrong length, badly kept, does not open with this passphrase, or is another model's."""


class UnpairedFolders(ObfuscationError):
    """A client folder and a server folder do not come from one conversion, or are given in the wrong order."""
