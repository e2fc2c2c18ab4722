"""The dp backend: tables whose sensitivity is tracked through every operation, and that leave only with noise."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Mapping
from typing import ClassVar, Final, NoReturn

import torch
from torch import Tensor

from privtensors.accounting import Account, Accounts, Ledger, Relation, Release
from privtensors.backends.dp.contributions import check_bounded, whole
from privtensors.backends.dp.kernels import KERNELS
from privtensors.backends.dp.kernels.guard import guarded
from privtensors.backends.dp.mechanism import Plan, plan
from privtensors.backends.dp.payload import Aggregate, Interval, Rows, shape_of_range
from privtensors.backends.dp.release import Gaussian, Laplace
from privtensors.backends.dp.source import Source, fingerprints
from privtensors.backends.dp.technique import DP
from privtensors.core.backend import Payload
from privtensors.core.kernel import KernelTable
from privtensors.core.meter import Meter
from privtensors.core.randomness import ByteStream
from privtensors.core.recorder import Disclosure, Recorder
from privtensors.errors import InvalidInput, LedgerError, ParameterError, UnsupportedOp

TECHNIQUE: Final = "dp_tensor"
_WHOLE: Final = float(1 << 53)  # whole numbers beyond it are not all float64
_RELEASE: Final = "pass release=pt.Gaussian(epsilon=…) or release=pt.Laplace(epsilon=…)"


class DPBackend:
    """Holds one owner's data in its own process; what leaves is noised and charged to the ledger.

    A row, position i of the first axis, is the same unit in every tensor that this backend protects: protect a table
    and its labels with one technique, in the same order. A tensor without axes is one row. Neighbouring data sets differ in one unit, whose
    contribution is zero in one of them; the number of rows is public.

    Guarantee class: statistical, (ε, δ) per unit for whoever sees releases only. This process sees everything.

    Args:
        technique: With ``unit="row"`` or ``unit="example"``.
        meter: Of the session.

    Raises:
        ParameterError: The technique's unit is ``"user"``.
    """

    name: ClassVar[str] = "dp"
    guarantee: ClassVar[str] = "statistical"
    assumption: ClassVar[str] = "the owner of the data runs this process, and publishes nothing else that depends on the data"
    kernels: ClassVar[KernelTable] = KERNELS
    absorbs_non_finite: ClassVar[bool] = True

    def __init__(self, technique: DP, meter: Meter) -> None:
        if technique.unit == "user":
            raise ParameterError(
                "rows of one user cannot be told apart in a tensor",
                where="protect(dp)",
                fix='sum each user\'s rows first, then DP(unit="row")',
            )
        self.technique = technique
        self.meter = meter
        self.simulated = False
        self._account = Account(technique.dataset, technique.unit, Relation.ZERO_OUT)
        self._stream = ByteStream()
        self._lock = threading.Lock()
        self._accounts: tuple[Ledger, Accounts] | None = None
        self._tables = itertools.count()

    def __repr__(self) -> str:
        return f"DPBackend(dataset={self.technique.dataset!r}, unit={self.technique.unit!r})"

    def protect(self, x: Tensor, *, owner: str) -> Rows:
        """Take a table. A row that is not finite contributes zero to everything, silently: an error would tell about it.

        Entries are clamped to the technique's bounds; whole numbers beyond ±2^53 count as ±2^53.

        Raises:
            InvalidInput: The tensor has no content (it is on the meta device).
        """
        if x.is_meta:
            raise InvalidInput("a tensor on the meta device has no content", where="protect(dp)", fix="give the value")
        given = x.detach().to(torch.float64, copy=True)
        axis, count = (None, 1) if given.dim() == 0 else (0, len(given))
        finite = torch.isfinite(given)
        alive = finite.flatten(1).all(1) if given.dim() > 1 else finite.view(count)
        ends = self._ends(x.dtype)
        shape = shape_of_range(tuple(given.shape), axis)
        bounds = Interval(*(torch.full(shape, end, dtype=torch.float64) for end in ends))
        value = torch.where(alive.view([-1] + [1] * (given.dim() - 1)) if axis == 0 else alive.view(()), given, 0.0).clamp_(*ends)
        rows = Rows(value, axis, torch.arange(count), alive, bounds, x.dtype, integral=not x.dtype.is_floating_point)
        # The same data must be known again under other bounds. Where these changed nothing, no second copy is held.
        table = value if torch.equal(value, given) else given.to(x.dtype)
        rows.sources = frozenset((Source(table, next(self._tables)),))
        return rows

    def _ends(self, dtype: torch.dtype) -> tuple[float, float]:
        """Smallest and largest value of an entry."""
        low, high = self.technique.bounds or (float("-inf"), float("inf"))
        if dtype is torch.bool:
            return max(float(low), 0.0), min(float(high), 1.0)
        if not dtype.is_floating_point:
            return max(float(low), -_WHOLE), min(float(high), _WHOLE)
        return float(low), float(high)

    def reveal(self, payload: Payload, *, to: str) -> NoReturn:
        """Refused: nothing leaves without noise. See :meth:`release`."""
        raise ParameterError("a differentially private value leaves with noise only", where="reveal", fix=_RELEASE)

    def release(self, payload: Payload, mechanism: object, *, disclosure: Disclosure, recorder: Recorder) -> Tensor:
        """Reserve on the ledger, record, add noise, settle: only then the noised value is handed out, in the dtype of the payload.

        Every release is charged, also another one of the same value, with the fingerprints of the tables it came from: a
        KnownDataWarning tells where one of them is known under another data set's name. Rows that were not aggregated can be
        released too; their noise hides each row on its own. Whatever fails on the way, the reservation stays and counts in full
        (fail closed).

        Args:
            payload: Of this backend.
            mechanism: :class:`~privtensors.backends.dp.release.Gaussian` or :class:`~privtensors.backends.dp.release.Laplace`.
            disclosure: What to record; the mechanism is added to its details.
            recorder: The session's; a :class:`~privtensors.accounting.Ledger`.

        Raises:
            ParameterError: ``mechanism`` is no release mechanism, or its noise cannot be drawn.
            LedgerError: The session records to something that keeps no account, or the ledger cannot be written.
            UnboundedSensitivity: One row can change the value without bound.
            BudgetExceeded: The release does not fit the budget of its data set; nothing was released.
            AccountingError: The key of fingerprints cannot be made or read.
            MixedRelations: The data set's account does not cover this unit.
        """
        if not isinstance(mechanism, (Gaussian, Laplace)):
            raise ParameterError(f"{type(mechanism).__name__} is no release mechanism", where="reveal(release=…)", fix=_RELEASE)
        if not isinstance(recorder, Ledger):
            what = f"a release is charged to a ledger, and this session records to {type(recorder).__name__}"
            raise LedgerError(what, where="reveal(release=…)", fix="Session(recorder=pt.Ledger(path)), or the default session")
        if isinstance(payload, Rows):
            check_bounded(payload, "reveal")
            held = guarded("reveal", whole)(None, payload, "reveal")
        else:
            assert isinstance(payload, Aggregate)
            held = payload
        chosen = plan(held, mechanism)
        known = guarded("reveal", fingerprints)(None, held.sources)
        accounts = self._accounts_of(recorder)
        reservation = accounts.reserve(Release(self._account, chosen.event, TECHNIQUE, known))
        details = (("release", chosen.describe()), ("data set", str(self._account)), ("reservation", str(reservation.index)))
        recorder.record(dataclasses.replace(disclosure, details=(*disclosure.details, *details)))
        noised: Tensor = guarded("reveal", self._noised)(None, held, chosen)  # an error's frames hold the value
        accounts.settle(reservation, chosen.event)
        return noised

    def _accounts_of(self, ledger: Ledger) -> Accounts:
        # Kept, because an account book is read from the ledger's first row on.
        with self._lock:
            if self._accounts is None or self._accounts[0] is not ledger:
                self._accounts = (ledger, Accounts(ledger))
            return self._accounts[1]

    def _noised(self, held: Aggregate, chosen: Plan) -> Tensor:
        with self._lock:  # the stream must not hand the same bytes to two threads
            out = chosen.draw(held.value, self._stream)
        if held.dtype is torch.bool:
            return out > 0.5
        if held.dtype.is_floating_point:
            return out.to(held.dtype)
        ends = torch.iinfo(held.dtype)
        largest = min(float(ends.max), float(1 << 62))
        return out.round().clamp(max(float(ends.min), -largest), largest).to(held.dtype)

    def export(self, payload: Payload) -> Mapping[str, tuple[Mapping[str, Tensor], Mapping[str, str]]]:
        """Refused: a file would hold the data without noise, and reading it would forget what was released."""
        raise UnsupportedOp("a differentially private tensor is not written to files", where="save", fix="keep the table itself")

    def restore(self, parts: Mapping[str, tuple[Mapping[str, Tensor], Mapping[str, str]]]) -> NoReturn:
        """Refused, as :meth:`export`."""
        raise UnsupportedOp("a differentially private tensor is not read from files", where="load", fix="protect the table itself")
