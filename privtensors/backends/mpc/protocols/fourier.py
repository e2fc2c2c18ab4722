"""Smooth functions with one opening: a Fourier series of the value, evaluated against the dealer's shares of cos and sin.

x is reduced modulo the period locally (exact: the period is a power of two in the ring) and opened under a mask δ that is
uniform modulo the period, a true one-time pad. cos k(x+δ-δ) then expands into public cos/sin of k(x+δ) times shared
cos/sin of kδ. (Idea: SecFormer, Luo et al., 2024 and SHAFT, Kei and Chow, 2025; there the mask is not uniform in the ring
that is opened, here it is.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from privtensors.backends.mpc.fits import Series
from privtensors.backends.mpc.hidden import derive
from privtensors.backends.mpc.protocols.angles import TABLE_BITS, cos_sin, cos_sin_by_row, turn
from privtensors.backends.mpc.protocols.arithmetic import lift_wire, shrink
from privtensors.backends.mpc.runtime import Open, Protocol, Runtime
from privtensors.backends.mpc.shares import Shares, Wire
from privtensors.errors import ProtocolError

_BLOCK: Final = 1 << 14  # elements per pass: the recurrences of a block stay in cache
# Added to a float32 below 2^22 it leaves the nearest integer in the low bits: torch's round hands small tensors to threads.
_ROUND: Final = 1.5 * 2.0**23
_ROUND_BITS: Final = 0x4B400000
_TABLE: Final = 26  # fractional bits of the dealer's cos and sin in :func:`pieces`


@dataclass(frozen=True, slots=True)
class Plan:
    """How a series is evaluated on shares.

    Attributes:
        series: The fit; its period must be a power of two times ``2^-frac`` units.
        frac: Fractional bits of the argument that is opened; ``period_bits - frac`` integer bits.
        period_bits: log2 of the period in those units.
        out_frac: Fractional bits of the result, before any truncation.
        unit: The series' argument is ``unit`` times the shared value.
    """

    series: Series
    frac: int
    period_bits: int
    out_frac: int
    unit: float = 1.0

    def __post_init__(self) -> None:
        if not math.isclose(self.series.period / self.unit * 2.0**self.frac, 2.0**self.period_bits):
            raise ProtocolError(f"period {self.series.period} is not {self.unit} · 2^{self.period_bits - self.frac}", where="Fourier plan")

    @property
    def table_bits(self) -> tuple[int, ...]:
        """Per harmonic, fractional bits of the dealer's cos and sin: table and coefficient round to equal errors."""
        sizes = (math.hypot(c, s) for c, s in zip(self.series.cosine, self.series.sine, strict=True))
        return tuple(min(18, max(0, round((self.out_frac + math.log2(max(size, 1e-9))) / 2))) for size in sizes)

    @property
    def parity(self) -> str:
        """``even``, ``odd`` or ``none``: which half of the products is needed."""
        if not any(self.series.sine):
            return "even"
        return "none" if any(self.series.cosine) else "odd"


def _turned(a: Tensor, b: Tensor, cos: Tensor, sin: Tensor, spare_a: Tensor, spare_b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step of cos, sin of kθ → (k+1)θ at the dealer, whose rounding nobody has to repeat; returns the pair and two freed buffers."""
    torch.mul(a, cos, out=spare_a)
    spare_a.addcmul_(b, sin, value=-1)
    torch.mul(a, sin, out=spare_b)
    spare_b.addcmul_(b, cos)
    return spare_a, spare_b, a, b


def _step(plan: Plan) -> int:
    ks = plan.series.harmonics
    return ks[1] - ks[0] if len(ks) > 1 else 1


def _angles(theta: Tensor, plan: Plan) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """cos and sin of a step between harmonics, and of the first harmonic. On whole tensors: torch gives small ones to threads too."""
    step, first = _step(plan), plan.series.harmonics[0]
    turn = theta if step == 1 else theta * step
    cos, sin = turn.cos(), turn.sin()
    return (cos, sin, cos, sin) if first == step else (cos, sin, (theta * first).cos(), (theta * first).sin())


def _public_angles(opened: Tensor, plan: Plan) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As :func:`_angles`, of opened int32 words: the same at both parties, whatever their processors."""
    step, first = _step(plan), plan.series.harmonics[0]
    cos, sin = cos_sin(opened * step, plan.period_bits, torch.float32)
    return (cos, sin, cos, sin) if first == step else (cos, sin, *cos_sin(opened * first, plan.period_bits, torch.float32))


def weights_of_opened(opened: Tensor, plan: Plan) -> Iterator[tuple[Tensor, Tensor]]:
    """What the dealer's cos kδ and sin kδ are multiplied by in :func:`bulk`, by harmonic, int32; each pair overwrites the last."""
    yield from _weights(list(_public_angles(opened.view(-1), plan)), plan)


def _weights(angles: list[Tensor], plan: Plan) -> Iterator[tuple[Tensor, Tensor]]:
    cos, sin, a, b = angles
    a, b = a.clone(), b.clone()
    free_a, free_b, one, other, spare = (torch.empty_like(a) for _ in range(5))
    scales = [2.0 ** (plan.out_frac - bits) for bits in plan.table_bits]
    for j, scale in enumerate(scales):
        c, s = plan.series.cosine[j] * scale, plan.series.sine[j] * scale
        # c·cos k(o-δ) + s·sin k(o-δ) = cos kδ · (c·cos ko + s·sin ko) + sin kδ · (c·sin ko - s·cos ko)
        for out, first, second, sign in ((one, a, b, 1.0), (other, b, a, -1.0)):
            torch.mul(first, c, out=out) if c else torch.mul(second, sign * s, out=out)
            if c and s:  # two operations: a fused one rounds differently elsewhere
                out.add_(torch.mul(second, sign * s, out=spare))
            out.add_(_ROUND)
        yield one.view(torch.int32).sub_(_ROUND_BITS), other.view(torch.int32).sub_(_ROUND_BITS)
        if j + 1 < len(scales):
            turn(a, b, cos, sin, (free_a, free_b), spare)
            a, b, free_a, free_b = free_a, free_b, a, b


def bulk(rt: Runtime, x: Shares, plan: Plan, wire: Wire | None = None) -> Protocol[Tensor]:
    """The series on every element, in a 32-bit ring: for large tensors. 1 round, ``period_bits`` per element.

    Args:
        wire: ``x`` opened before, at no fewer fractional bits than the plan's: then it is not opened again.

    Returns:
        int32 words ``(parties, *shape)`` with ``plan.out_frac`` fractional bits; the result must be below
        ``2^(30 - out_frac)``.
    """
    shape, count = x.shape, math.prod(x.shape)
    shift = x.frac - plan.frac
    if wire is not None and (shift < 0 or wire.frac != x.frac or wire.ring < x.ring or wire.extra):
        raise ProtocolError("a series of a value that was opened at another scale", where="mpc bookkeeping")
    if x.ring - max(x.frac - plan.frac, 0) < plan.period_bits or plan.period_bits < TABLE_BITS:
        raise ProtocolError(f"period of {plan.period_bits} bits in a ring of {x.ring}", where="mpc bookkeeping")
    harmonics, angle = len(plan.series.harmonics), 2 * math.pi / (1 << plan.period_bits)
    low, table_bits = (1 << plan.period_bits) - 1, plan.table_bits
    if wire is None:
        mask = rt.dealer.mask(shape, torch.int32)
        hidden = mask.hidden
    else:  # both shifted: right to one unit
        hidden = derive(lambda m: (m >> shift).to(torch.int32), wire.mask)

    offset = torch.full((), _ROUND)

    def fill(value: Tensor, base: Tensor, out: Tensor) -> None:
        angles = _angles((value & low).view(-1).to(torch.float32) * angle, plan)
        for i in range(0, count, _BLOCK):
            block = slice(i, min(count, i + _BLOCK))
            cos, sin, a, b = (t[block] for t in angles)
            a, b = a.clone(), b.clone()
            free_a, free_b = torch.empty_like(a), torch.empty_like(a)
            for j, bits in enumerate(table_bits):
                for at, value_of, spare in ((2 * j, a, free_a), (2 * j + 1, b, free_b)):
                    torch.add(offset, value_of, alpha=2.0**bits, out=spare)
                    torch.sub(spare.view(torch.int32), base[at, block], out=out[at, block]).sub_(_ROUND_BITS)
                if j + 1 < harmonics:
                    a, b, free_a, free_b = _turned(a, b, cos, sin, free_a, free_b)

    tables = rt.dealer.filled(fill, hidden, shape=(2 * harmonics, count), dtype=torch.int32)
    if wire is None:
        (opened,) = yield [Open(shrink(x.data, shift).to(torch.int32) + mask.shares, plan.period_bits)]
    else:
        opened = (wire.public >> shift).to(torch.int32)
    if not rt.parties:  # the dealer
        return torch.empty(0, *shape, dtype=torch.int32)
    angles = _public_angles(opened.view(-1), plan)
    out = torch.empty(rt.parties, count, dtype=torch.int32)
    for i in range(0, count, _BLOCK):
        block = slice(i, min(count, i + _BLOCK))
        total = torch.zeros(rt.parties, block.stop - i, dtype=torch.int32)
        for j, pair in enumerate(_weights([t[block] for t in angles], plan)):
            for at, weight in zip((2 * j, 2 * j + 1), pair, strict=True):
                total.addcmul_(tables[:, at, block], weight)
        out[:, block] = total
    constant = round(plan.series.constant * 2.0**plan.out_frac)
    return rt.add_public(out, constant).view(rt.parties, *shape)


def pieces(rt: Runtime, x: Shares, series: tuple[Series, ...], period_bits: tuple[int, ...], out_frac: int) -> Protocol[Tensor]:
    """Several series of one value, each over its own period, from one opening: for few elements (rows).

    1 round, ``x.ring`` bits per element. The series share their harmonics.

    Args:
        period_bits: log2 of each period in units of x's last place.

    Returns:
        int64 words ``(parties, pieces, *shape)`` with ``out_frac`` fractional bits. Outside a piece's own interval its
        row is noise, to be selected away.
    """
    if max(period_bits) > min(x.ring, 62):
        raise ProtocolError(f"a period of {max(period_bits)} bits in a ring of {x.ring}", where="mpc bookkeeping")
    trail = [1] * len(x.shape)
    mask = rt.dealer.mask(x.shape)

    def table(value: Tensor) -> Tensor:
        return torch.cat(_multiples(value, series, period_bits), 1).mul_(2.0**_TABLE).round_().to(torch.int64)

    tables = rt.dealer.share(table, mask.hidden, shape=(len(series), 2 * len(series[0].harmonics), *x.shape))
    (opened,) = yield [Open(x.data + mask.shares, x.ring)]
    if not rt.parties:
        return torch.empty(0, len(series), *x.shape, dtype=torch.int64)
    weights = weights_of_pieces(opened, series, period_bits, out_frac)
    out = (tables * weights).sum(2)
    constant = torch.tensor([p.constant for p in series], dtype=torch.float64) * 2.0**out_frac
    return rt.add_public(out, constant.round().to(torch.int64).view(-1, *trail))


def _multiples(value: Tensor, series: tuple[Series, ...], period_bits: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """cos and sin of every multiple of every angle, ``(pieces, harmonics, *shape)`` each."""
    ks = torch.tensor(series[0].harmonics).view(1, -1, *[1] * value.dim())
    return cos_sin_by_row(value * ks, period_bits)


def weights_of_pieces(opened: Tensor, series: tuple[Series, ...], period_bits: tuple[int, ...], out_frac: int) -> Tensor:
    """What the dealer's cos and sin are multiplied by in :func:`pieces`: int64, ``(pieces, 2 harmonics, *shape)``."""
    cos, sin = _multiples(opened, series, period_bits)
    trail = [1] * opened.dim()
    c = torch.tensor([p.cosine for p in series], dtype=torch.float64).view(len(series), -1, *trail)
    s = torch.tensor([p.sine for p in series], dtype=torch.float64).view(len(series), -1, *trail)
    return torch.cat([c * cos + s * sin, c * sin - s * cos], 1).mul_(2.0 ** (out_frac - _TABLE)).round_().to(torch.int64)


def widen(rt: Runtime, words: Tensor, out_frac: int, frac: int) -> Protocol[Wire]:
    """32-bit words with ``out_frac`` fractional bits, lifted to the full ring at ``frac`` and left open; 1 round, 4 bytes."""
    return (yield from lift_wire(rt, words, 32, out_frac - frac, frac))
