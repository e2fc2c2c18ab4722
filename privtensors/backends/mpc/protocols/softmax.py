"""Softmax and attention on shares.

A row's scores are centred on their mean, clamped, and their maximum found to within two units: 6-bit indices become
one-hot words by rotating the dealer's one-hot of the mask, prefix-XOR makes them unary, an OR tree takes the maximum.
exp of what is left comes from one Fourier opening and one squaring. Rows are normalised after the product with V.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from privtensors.backends.mpc.fits import fit, precise
from privtensors.backends.mpc.protocols.arithmetic import (
    lift,
    matmul_wires,
    multiply_wires,
    open_lifted,
    open_wire,
    rescale,
    shrink,
    square_wire,
)
from privtensors.backends.mpc.protocols.compare import and_products, clamp
from privtensors.backends.mpc.protocols.fourier import Plan, bulk, widen
from privtensors.backends.mpc.protocols.normalise import power
from privtensors.backends.mpc.protocols.products import matmul
from privtensors.backends.mpc.runtime import Open, Protocol, Runtime, parallel
from privtensors.backends.mpc.shares import WORD, Shares, Wire
from privtensors.errors import InvalidInput, OutOfRange, ParameterError, ProtocolError

LOW: Final = -14.0  # scores this far below their row's mean weigh less than 1e-6
LEAST_HIGH: Final = 52.0  # MiniLM's scores reach 50 above their row's mean
_FIT: Final = 1.2e-4  # largest error of exp relative to the row's largest weight
_GAP: Final = 1.25  # period over the interval that is fitted: the more, the fewer harmonics
_TAIL: Final = 8.0  # how much larger the error of exp(x/2) may be where it is small: it will be squared
NARROW: Final = 32  # ring of clamped scores
SCORE_FRAC: Final = 13  # fractional bits of opened queries and keys
EXP_FRAC: Final = 12  # fractional bits of opened exponentials


@dataclass(frozen=True, slots=True)
class Scale:
    """Public facts of ``softmax(factor · s)``.

    Attributes:
        cell_bits: The coarse maximum counts in units of 2^cell_bits of s, between 1.1 and 2.2 of factor · s.
        offset: Index of a score at its row's mean; indices of clamped scores lie between 0 and 63.
        high: Scores (times the factor) further above their row's mean are treated as equal: 52 or more.
        plan: How exp(factor · s / 2) is evaluated, for s minus the row's coarse maximum.
    """

    factor: float
    cell_bits: int
    offset: int
    high: float
    plan: Plan


@functools.cache
def scale_of(factor: float) -> Scale:
    """The smallest period that holds ``LEAST_HIGH``, as wide a range as it holds well, as few harmonics as that needs.

    Raises:
        ParameterError: A factor that is not a positive number of ordinary size.
    """
    if not 2.0**-10 <= factor <= 2.0**10:
        raise ParameterError(f"softmax of scores times {factor}", where="mpc attention", fix="use a scale between 2^-10 and 2^10")
    cell_bits = math.ceil(math.log2(1.1 / factor))
    cell = factor * 2.0**cell_bits
    top = cell + 0.3  # the coarse maximum is right to one cell
    beside = top + 3 * cell - LOW
    period_log2 = math.ceil(math.log2(_GAP * (LEAST_HIGH + beside) / factor))
    period = factor * 2.0**period_log2
    offset = math.ceil(-LOW / cell) + 2
    high = min(period / _GAP - beside, (61 - offset) * cell)
    mp = precise()
    # The argument is s itself, so the period in its units is a power of two whatever the factor.
    for count in range(13, 40):
        series = fit(
            lambda x: mp.exp(x / 2),
            low=top - period / _GAP,
            high=top,
            period=period,
            harmonics=range(1, count + 1),
            ridge=2e-6,
            weight=lambda x: 1 / (1 + (_TAIL - 1) * max(1 - mp.exp(x / 2), 0)),
        )
        x = np.linspace(series.low, series.high, 4001)
        if float(np.abs(series(x) ** 2 - np.exp(x)).max()) <= _FIT * math.exp(top):
            break
    else:
        raise ProtocolError(f"no series of exp for softmax of scores times {factor}", where="mpc bookkeeping")
    return Scale(factor, cell_bits, offset, high, Plan(series, 20 - period_log2, 20, 27, unit=factor))


def softmax_parts(rt: Runtime, s: Shares, keep: Tensor | None, factor: float) -> Protocol[tuple[Shares, Shares]]:
    """Unnormalised weights ``e ∝ exp(factor · s)`` of each row and their sum.

    Args:
        s: Scores, rows along the last axis, centred to within a few units on their row's mean over kept entries.
        keep: Public bool, broadcastable to the scores' shape: False entries get weight zero.

    Returns:
        ``e`` and the row sums, 12 fractional bits, ring 52. Sums lie between 0.1 and 10 times the row length.
    """
    scale = scale_of(factor)
    cut_frac = 1 - scale.cell_bits  # half a cell
    cut = 2.0**cut_frac / factor
    narrow = rescale(s, min(s.frac, scale.plan.frac + 3))
    ring = min(narrow.ring, NARROW)
    range_bits = min(ring - narrow.frac - 2, 20 - cut_frac)
    low, high = round(LOW * cut), round(scale.high * cut)
    t = yield from clamp(rt, narrow, low, high, frac=cut_frac, range_bits=range_bits, ring=ring, ends=True)
    if keep is not None:
        t = t.like(t.data * keep)
        rt.add_public(t.data, (~keep).to(torch.int64) * (round(LOW * cut) << (t.frac - cut_frac)))
    top = yield from _coarse_max(rt, t, scale)
    x = t.like(t.data - (top << (t.frac + scale.cell_bits)).unsqueeze(-1), ring=min(t.ring, 16 + t.frac + scale.cell_bits))
    root = yield from widen(rt, (yield from bulk(rt, x, scale.plan)), scale.plan.out_frac, EXP_FRAC)
    e = rescale(square_wire(rt, root), EXP_FRAC)
    e.dtype = s.dtype
    if keep is not None:
        e = e.like(e.data * keep)
    return e, e.like(e.data.sum(-1))


def centred(rt: Runtime, s: Shares) -> Protocol[Shares]:
    """Scores in the full ring minus their row's mean. Softmax does not see what is subtracted from a whole row."""
    n = s.shape[-1]
    total = yield from lift(rt, s.like(s.data.sum(-1, keepdim=True)), 8)
    mean = rescale(total.like(total.data * round(2.0**20 / n), 28), s.frac)
    return s.like(s.data - mean.data, ring=min(s.ring, mean.ring))


def mean_key(k: Shares, keep: Tensor | None) -> Shares:
    """Per row of scores the mean of the keys it attends to, ``(…, L or 1, d)``: the row's mean score is q times it.

    So scores are centred without adding a row of them up, which would need ring bits they do not have.
    """
    length = k.shape[-2]
    bits = 8 + math.ceil(math.log2(max(length, 2)))
    allowed = torch.ones(1, length, dtype=torch.float64) if keep is None else keep.expand(*keep.shape[:-1], length).to(torch.float64)
    weights = (allowed / allowed.sum(-1, keepdim=True).clamp(min=1) * 2.0**bits).round().to(torch.int64)
    return k.like(matmul(weights, k.data), k.frac + bits)


def _coarse_max(rt: Runtime, t: Shares, scale: Scale) -> Protocol[Tensor]:
    """Row maximum of clamped scores in cells of ``2^cell_bits``, to within one cell: int64 shares modulo 2^16."""
    index = shrink(t.data, t.frac + scale.cell_bits).to(torch.int16)
    rt.add_public(index, scale.offset)
    mask = rt.dealer.mask(t.shape, torch.int16)
    one = torch.ones((), dtype=torch.int64)
    word = rt.dealer.xor_share(lambda m: one << ((-m) & 63).to(torch.int64), mask.hidden, shape=t.shape)
    (opened,) = yield [Open(index + mask.shares, 6)]
    turn = (opened & 63).to(torch.int64)
    # Rotate one-hot(-mask) left by index + mask, then fill downwards: bits 0..index are one.
    word = (word << turn) | (((word >> 1) & ((1 << 63) - 1)) >> (63 - turn))
    for step in (1, 2, 4, 8, 16, 32):
        word ^= (word >> step) & ((1 << (64 - step)) - 1)
    rt.flip_public(word, -1)  # OR by De Morgan
    while word.shape[-1] > 1:
        width = min(4, word.shape[-1])
        if pad := -word.shape[-1] % width:
            ones = rt.constant(torch.full((*word.shape[1:-1], pad), -1))
            word = torch.cat([word, ones], -1)
        groups = word.view(*word.shape[:-1], word.shape[-1] // width, width)
        (word,) = yield from and_products(rt, [groups[..., i].contiguous() for i in range(width)], [tuple(range(width))])
    word = rt.flip_public(word[..., 0], -1)
    # Population count of the unary word, on arithmetic shares.
    flip = rt.dealer.xor_mask(tuple(word.shape[1:]))
    places = torch.arange(64)
    bits = rt.dealer.share(
        lambda m: ((m.unsqueeze(-1) >> places) & 1).to(torch.int16), flip.hidden, shape=(*word.shape[1:], 64), dtype=torch.int16
    )
    (opened,) = yield [Open(word ^ flip.shares, 64, xor=True)]
    public = ((opened.unsqueeze(-1) >> places) & 1).to(torch.int16)
    count = ((1 - 2 * public) * bits).sum(-1)
    return rt.add_public(count, public.sum(-1) - 1 - scale.offset).to(torch.int64)


def row_reciprocal(rt: Runtime, total: Shares, n: int, frac: int) -> Protocol[Wire]:
    """1 / (row sum), opened at ``frac`` fractional bits as a column, for sums of ``n`` weights; 4 rounds."""
    octaves = 6 + math.ceil(math.log2(n + 1)) + 4
    inverse = yield from power(rt, total, -1.0, low=-6, octaves=octaves + octaves % 2, safe=True)
    return (yield from open_lifted(rt, inverse.like(inverse.data.unsqueeze(-1)), frac))


def softmax(rt: Runtime, s: Shares, factor: float = 1.0) -> Protocol[Shares]:
    """Softmax along the last axis at the backend's fractional bits; ``s`` is in the full ring."""
    if 0 in s.shape:
        return s.like(s.data, rt.frac, WORD)
    e, total = yield from softmax_parts(rt, (yield from centred(rt, s)), None, factor)
    inverse, weights = yield from parallel(row_reciprocal(rt, total, s.shape[-1], 30), open_wire(rt, e))
    return (yield from lift(rt, multiply_wires(rt, weights, inverse), rt.frac))


def public_mask(rows: int, length: int, is_causal: bool, mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Which scores count, ``(…, rows or 1, length)`` bool or None for all of them, and what public numbers are added.

    Additive masks of -1e4 and below mean "not attended": they have no fixed-point form and need none.

    Raises:
        InvalidInput: NaN or plus infinity in an additive mask.
    """
    if mask is not None and mask.is_floating_point() and bool((mask.isnan() | (mask == math.inf)).any()):
        raise InvalidInput("the attention mask has NaN or plus infinity", where="mpc attention", fix="use bools, or numbers and -inf")
    keep = torch.ones(rows, length, dtype=torch.bool).tril() if is_causal else None
    bias = None
    if mask is not None:
        allowed = mask if mask.dtype == torch.bool else mask > -1e4
        if mask.dtype != torch.bool and bool((mask.masked_fill(~allowed, 0) != 0).any()):
            bias = mask.masked_fill(~allowed, 0)
        keep = allowed if keep is None else keep & allowed
    if keep is None or bool(keep.all()):
        return None, bias
    if keep.dim() > 1 and bool((keep == keep[..., :1, :]).all()):
        keep = keep[..., :1, :]
    return keep, bias


def _transposed(t: Tensor, lead: int) -> Tensor:
    return t.transpose(-1, -2)


def attention(rt: Runtime, q: Shares, k: Shares, v: Shares, keep: Tensor | None, bias: Tensor | None, factor: float) -> Protocol[Shares]:
    """``softmax(factor · q kᵀ + bias) v`` over the last two axes, batched.

    Args:
        q, k, v: ``(…, L, d)``, ``(…, S, d)``, ``(…, S, e)``.
        keep: Public bool mask broadcastable to ``(…, L, S)``.
        bias: Public additive scores of the same shape, or None.
    """
    if 0 in q.shape or 0 in k.shape:
        return Shares(torch.zeros(*q.data.shape[:-1], v.shape[-1], dtype=torch.int64), rt.frac, WORD, q.dtype)

    def reference() -> Protocol[Wire]:
        whole = k if k.ring == WORD else (yield from lift(rt, k, rt.frac))
        return (yield from open_lifted(rt, mean_key(whole, keep), SCORE_FRAC))

    def operands() -> Protocol[tuple[Wire, Wire]]:
        return (yield from parallel(open_wire(rt, q, min(q.frac, SCORE_FRAC)), open_wire(rt, k, min(k.frac, SCORE_FRAC))))

    def scores() -> Protocol[tuple[Shares, Shares]]:
        (wire_q, wire_k), wire_m = yield from parallel(operands(), reference())
        s = matmul_wires(rt, wire_q, wire_k.map(_transposed))
        mean = multiply_wires(rt, wire_q, wire_m).data.sum(-1, keepdim=True)
        s = Shares(s.data - mean, s.frac, s.ring, q.dtype)
        if bias is not None:  # public, so its row's mean is taken off here
            wide = bias.to(torch.float64)
            allowed = torch.ones_like(wide) if keep is None else keep.expand(wide.shape).to(torch.float64)
            wide = wide - (wide * allowed).sum(-1, keepdim=True) / allowed.sum(-1, keepdim=True).clamp(min=1)
            wide = wide / factor
            if wide.numel() and float(wide.abs().max()) >= 2.0 ** (s.headroom - 1):
                raise OutOfRange(
                    f"attention biases up to {float((wide * factor).abs().max()):.4g} from their row's mean",
                    where="mpc attention",
                    fix="use -inf, or False, for what is not attended, and moderate biases",
                )
            rt.add_public(s.data, (wide * 2.0**s.frac).round().to(torch.int64))
        if keep is not None:
            s = s.like(s.data * keep)
        return (yield from softmax_parts(rt, s, keep, factor))

    def values() -> Protocol[Shares]:
        return (yield from lift(rt, v, 14))

    (e, total), lifted = yield from parallel(scores(), values())

    def mixed() -> Protocol[Wire]:
        wire_e, wire_v = yield from parallel(open_wire(rt, e), open_wire(rt, lifted))
        return (yield from open_lifted(rt, matmul_wires(rt, wire_e, wire_v), rt.frac))

    wire_o, wire_r = yield from parallel(mixed(), row_reciprocal(rt, total, k.shape[-2], 34))
    out = yield from lift(rt, multiply_wires(rt, wire_o, wire_r), rt.frac)
    out.dtype = q.dtype
    return out
