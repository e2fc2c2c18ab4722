"""The mpc backend: two semi-honest computing parties and an offline dealer, additive shares in Z_2^64, fixed point."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Final, TypeVar

import torch
from torch import Tensor

from privtensors.backends.mpc.dealer import Correlations, Dealer
from privtensors.backends.mpc.kernels import KERNELS
from privtensors.backends.mpc.protocols.arithmetic import normal, open_wire
from privtensors.backends.mpc.protocols.lookup import open_table
from privtensors.backends.mpc.protocols.ranges import verdict
from privtensors.backends.mpc.runtime import Open, Protocol, Runtime
from privtensors.backends.mpc.shares import WORD, Shares, sign_extend
from privtensors.backends.mpc.watch import Watch
from privtensors.core.backend import Payload
from privtensors.core.kernel import KernelTable
from privtensors.core.meter import Meter
from privtensors.errors import FileFormatError, InvalidInput, OutOfRange, ParameterError, RangeExceeded
from privtensors.transport.base import Channel
from privtensors.transport.memory import MemoryChannel

RANGE_BITS: Final = 18


def party_of(name: str) -> int:
    """The computing party that acts for a party of a policy: 1 for ``"server"``, 0, the client's, for everybody else."""
    return 1 if name == "server" else 0


def _exceeded(labels: list[str]) -> RangeExceeded:
    where = f" in {labels[0]}" if labels[0] else ""
    more = f" and {len(labels) - 1} later operations" if len(labels) > 1 else ""
    fix = "scale the model or its input" if where else "scale the model or its input; MPC(ranges='checked', diagnose=True) names the layer"
    return RangeExceeded(f"a value left its range{where}{more}, so the result is withheld", where="mpc, checked ranges", fix=fix)


T = TypeVar("T")
_INDICES: Final = (torch.int64, torch.int32)
_DTYPES: Final = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool)


def _flipped(t: Tensor, lead: int) -> Tensor:
    return t.transpose(-1, -2)


class MPCBackend:
    """Additive secret sharing between two parties: both in this process (``simulated``), or one of them, or the dealer.

    Guarantee class: computational (AES-CTR), against one semi-honest computing party, with a dealer that is honest and
    colludes with nobody. Values are fixed point; inputs must lie in ±2^18.

    Args:
        technique: Has ``fractional_bits``, and may have ``ranges`` and ``diagnose`` as :class:`~privtensors.backends.mpc.technique.MPC`.
        meter: Counts rounds, bytes, dealer bytes and offline seconds.
        channel: Default both parties in this process; else the one party's connection to the other.
        dealer: Where randomness comes from. Default a fresh dealer seeded by the operating system.
        device: Where shares are kept and computed on, e.g. ``torch.device("cuda")``; None for the CPU. A dealer that is given
            must give its words there.

    Raises:
        ParameterError: A channel of one party, or of none, with the dealer of two.
    """

    name: ClassVar[str] = "mpc"
    guarantee: ClassVar[str] = "computational"
    assumption: ClassVar[str] = "one semi-honest computing party; the dealer is honest and colludes with nobody"
    kernels: ClassVar[KernelTable] = KERNELS
    accelerated: ClassVar[bool] = True

    def __init__(
        self,
        technique: Any,
        meter: Meter,
        *,
        channel: Channel | None = None,
        dealer: Correlations | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.device = device
        self.technique = technique
        self.meter = meter
        channel = channel or MemoryChannel()
        self.simulated = len(channel.parties) == 2
        if self.simulated != (dealer is None or isinstance(dealer, Dealer)):
            what = f"a channel of {len(channel.parties)} parties with another number's randomness"
            raise ParameterError(what, where="MPCBackend", fix="give PartyCorrelations to a party and Tracer to the dealer")
        self.frac: int = technique.fractional_bits
        watch = Watch(technique.diagnose) if getattr(technique, "ranges", "saturate") == "checked" else None
        self.runtime = Runtime(channel, dealer or Dealer(meter, device=device), meter, self.frac, watch)

    def __repr__(self) -> str:
        return f"MPCBackend(frac={self.frac}, simulated={self.simulated})"

    def run(self, protocol: Protocol[T]) -> T:
        """Drive a protocol over this backend's channel, on the device it runs on."""
        return self.runtime.run(protocol)

    def _here(self) -> AbstractContextManager[object]:
        """What is made inside is made where the shares are."""
        return nullcontext() if self.device is None else self.device

    def locate(self, layer: str) -> None:
        """Name the layer that runs next, for the errors of checked ranges with ``diagnose``."""
        if self.runtime.watch is not None:
            self.runtime.watch.layer = layer

    def forget(self) -> None:
        """Drop the range checks of a program that failed."""
        if self.runtime.watch is not None:
            self.runtime.watch.take()

    def prepare(self, payload: Payload, *, transposed: bool = False) -> None:
        """Open a weight under its mask ahead of use, so that a call opens only the other operand.

        The opened form replaces the shares themselves (they are rebuilt from it), so it costs no memory of its own. Any
        in-place write replaces the payload and with it the mask.

        Args:
            transposed: Products will take the transpose, as ``nn.Linear`` does: it is laid out so that they need not copy it.
        """
        assert isinstance(payload, Shares)
        base = payload.like(_flipped(payload.data, 1).contiguous()) if transposed else payload
        with self._here():
            wire = self.run(open_wire(self.runtime, base))
        wire.reused = True
        if transposed:
            wire = wire.map(_flipped)
            payload.remember(wire)
        payload.data = wire.residue()

    def prepare_table(self, payload: Payload) -> None:
        """Mask an embedding table for private lookups ahead of use. Costs no memory: the masked form replaces the shares."""
        assert isinstance(payload, Shares)
        with self._here():
            payload.data = self.run(open_table(self.runtime, payload)).rows

    def encode(self, x: Tensor, frac: int) -> Tensor:
        """Fixed-point int64 words of a public tensor, rounded to nearest.

        Raises:
            InvalidInput: NaN or infinite entries.
            OutOfRange: Entries too large for the ring.
        """
        wide = x.to(torch.float64)
        if not bool(torch.isfinite(wide).all()):
            raise InvalidInput("the public operand has NaN or infinite entries", where="mpc", fix="clean it before mixing it with shares")
        if wide.numel() and float(wide.abs().max()) >= 2.0 ** (62 - frac):
            raise OutOfRange(
                f"public values up to {float(wide.abs().max()):.4g} do not fit {frac} fractional bits",
                where="mpc",
                fix="scale them down; mask by masked_fill with a moderate number, by torch.where, or by attention's own mask",
            )
        return (wide * 2.0**frac).round().to(torch.int64)

    def holds(self, owner: str) -> bool:
        """Whether values of ``owner`` are known to this process."""
        return self.simulated or party_of(owner) in self.runtime.channel.parties

    def protect(self, x: Tensor, *, owner: str) -> Shares:
        """Split ``x`` into two uniform shares: the other party's comes from a generator that the owner seeds.

        In a deployment the party that does not own ``x``, and the dealer, give a tensor on the meta device in its place.

        Raises:
            InvalidInput: A dtype without fixed-point form, NaN or infinity; a value given by a party that does not own it.
            OutOfRange: An absolute value of 2^18 or more.
        """
        if x.dtype not in _DTYPES:
            raise InvalidInput(f"dtype {x.dtype} has no fixed-point form", where="protect(mpc)", fix="use float32, an integer type or bool")
        if self.holds(owner) == x.is_meta:
            what = f"a value of {owner!r} without its content" if x.is_meta else f"the content of a value that {owner!r} holds"
            raise InvalidInput(what, where="protect(mpc)", fix="its owner gives the value, the other parties a tensor on the meta device")
        frac = self.frac if x.dtype.is_floating_point else 0
        words = torch.zeros((), dtype=torch.int64).expand(x.shape) if x.is_meta else self._fixed_point(x, frac)
        with self._here():
            words = words if self.device is None else words.to(self.device)
            shares = Shares(self.runtime.dealer.input_shares(words, party_of(owner)), frac, WORD, x.dtype)
            if x.dtype in _INDICES and party_of(owner) == 0:
                shares.known = self.runtime.constant(words)  # in the client's row only: it can look rows up by them
        return shares

    def _fixed_point(self, x: Tensor, frac: int) -> Tensor:
        wide = x.to(torch.float64)
        peak = float(wide.abs().max()) if x.numel() else 0.0  # NaN and infinity come through
        if not math.isfinite(peak):
            raise InvalidInput("the tensor has NaN or infinite entries", where="protect(mpc)", fix="clean it first, e.g. torch.nan_to_num")
        if peak >= 2.0**RANGE_BITS:
            raise OutOfRange(f"absolute values up to {peak:.4g}", where="protect(mpc)", fix=f"scale the tensor into ±2^{RANGE_BITS}")
        return (wide * 2.0**frac).round_().to(torch.int64)

    def reveal(self, payload: Payload, *, to: str) -> Tensor:
        """Send the other party's share to ``to`` and decode: the value is right to the bookkeeping's error.

        Only the receiver gets a share: party 1 for ``"server"``, party 0, the client, for everybody else.

        A value that carries more fractional bits than the backend's is truncated first: the receiver learns the result,
        not the low bits of the product it came from. At any other party than the receiver the result is zeros.

        Raises:
            RangeExceeded: At the receiver only, with ``ranges="checked"``: since the last reveal a value left its range. All
                messages were exchanged by then, so that nobody else can tell.
        """
        assert isinstance(payload, Shares)
        rt, value_of, receiver = self.runtime, payload, party_of(to)
        labels: list[str] = []

        def opening() -> Protocol[tuple[Shares, Tensor | None, Tensor]]:
            shares = (yield from normal(rt, value_of)) if value_of.frac > rt.frac else value_of
            result = Open(shares.data, shares.ring, receiver=receiver)
            if rt.watch is None or not rt.watch.findings:
                (words,) = yield [result]
                return shares, None, words
            labels.extend(finding.label for finding in rt.watch.findings)
            flags = yield from verdict(rt)
            told, words = yield [Open(flags, 1, xor=True, receiver=receiver), result]
            return shares, told & 1, words

        with self._here():
            shares, told, opened = self.run(opening())
        if not (self.simulated or receiver in rt.channel.parties):
            return torch.zeros(shares.shape, dtype=shares.dtype)
        if told is not None and bool(told.any()):
            raise _exceeded([label for label, line in zip(labels, told, strict=True) if bool(line.any())])
        words = sign_extend(opened.cpu(), shares.ring)
        value = words.to(torch.float64) / 2.0**shares.frac
        if shares.dtype == torch.bool:
            return value.gt(0.5)
        return (value if shares.dtype.is_floating_point else value.round()).to(shares.dtype)

    def export(self, payload: Payload) -> Mapping[str, tuple[Mapping[str, Tensor], Mapping[str, str]]]:
        """One part per computing party, each with that party's share only."""
        assert isinstance(payload, Shares)
        text = {
            "frac": str(payload.frac),
            "ring": str(payload.ring),
            "dtype": str(payload.dtype).removeprefix("torch."),
            "shape": ",".join(map(str, payload.shape)),
        }
        rows = zip(self.runtime.channel.parties, payload.data.cpu(), strict=True)
        return {f"party{i}": ({"share": row.contiguous()}, text) for i, row in rows}

    def restore(self, parts: Mapping[str, tuple[Mapping[str, Tensor], Mapping[str, str]]]) -> Shares:
        """Inverse of :meth:`export`.

        Raises:
            FileFormatError: A party's part is missing, or the parts disagree.
        """
        names = [f"party{i}" for i in self.runtime.channel.parties]
        if sorted(parts) != sorted(names):
            raise FileFormatError(
                f"parts {sorted(parts)} found, {names} needed", where="mpc", fix="load the files of every party held here"
            )
        rows, texts = [], []
        for name in names:
            tensors, text = parts[name]
            if set(tensors) != {"share"} or tensors["share"].dtype != torch.int64:
                raise FileFormatError("a part must hold one int64 tensor named share", where=f"mpc {name}", fix="save the tensor again")
            rows.append(tensors["share"])
            texts.append(dict(text))
        if any(t != texts[0] for t in texts) or any(r.shape != rows[0].shape for r in rows):
            raise FileFormatError("the parties' parts disagree", where="mpc", fix="load files of one save")
        try:
            frac, ring = int(texts[0]["frac"]), int(texts[0]["ring"])
            dtype = getattr(torch, texts[0]["dtype"])
            shape = tuple(int(n) for n in texts[0]["shape"].split(",") if n)
        except (KeyError, ValueError, AttributeError) as error:
            raise FileFormatError("scale, ring, dtype or shape is malformed", where="mpc", fix="save the tensor again") from error
        if not (0 <= frac <= 62 and 0 < ring <= WORD and dtype in _DTYPES and shape == tuple(rows[0].shape)):
            raise FileFormatError("scale, ring, dtype or shape is out of range", where="mpc", fix="save the tensor again")
        return Shares(torch.stack(rows).to(self.device or "cpu"), frac, ring, dtype)
