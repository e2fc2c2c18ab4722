"""Comparison with public thresholds, selection by shared bits, clamping.

x is opened under a mask m on a reduced window of its ring; x ≥ t then asks whether public bits lie below shared ones.
The dealer shares each 5-bit digit of m as a thermometer word, so "less" and "equal" per digit are one local shift, and
one round of AND (two for wide windows) combines the digits. (Reduced-ring comparison: Escudero et al., 2020; digit
tables as in Rathee et al., CrypTFlow2, 2020, with a dealer in place of oblivious transfer.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from privtensors.backends.mpc.hidden import Hidden, derive, itself
from privtensors.backends.mpc.protocols.arithmetic import open_wire, rescale, shrink
from privtensors.backends.mpc.protocols.ranges import watch_bits, watch_interval
from privtensors.backends.mpc.runtime import Open, Protocol, Runtime
from privtensors.backends.mpc.shares import WORD, Shares, Wire
from privtensors.errors import ProtocolError

DIGIT: Final = 5  # a thermometer of a 5-bit digit fills an int32 word


def at_least(
    rt: Runtime,
    x: Shares,
    thresholds: Sequence[int],
    *,
    frac: int,
    range_bits: int,
    digit: int = DIGIT,
    group: int = 3,
    wire: Wire | None = None,
) -> Protocol[Tensor]:
    """Boolean shares of ``x ≥ t`` for public thresholds.

    Args:
        x: The answer is right where ``|x - t| < 2^range_bits``; further away it wraps, so callers choose the range with care.
        thresholds: In units of ``2^-frac``.
        frac: Fractional bits looked at: the answer is exact except within one such unit of the threshold.
        range_bits: Integer bits of the window.
        digit: Bits per digit: 5 (4 dealer bytes a digit), or 10 for few elements (128 dealer bytes, fewer rounds).
        group: Digits combined per AND round.
        wire: ``x`` opened before, with no fewer fractional bits than ``frac``: then it is not opened again. Where ranges
            are checked, all of ``x`` is opened, and whether it lies in the window is checked.

    Returns:
        int8 tensor ``(parties, len(thresholds), *shape)`` of XOR-shared bits. 2 rounds for up to ``group`` digits, 3 for
        up to ``group²``; one less with ``wire``.
    """
    low = frac + range_bits
    width, shift = low + 1, x.frac - frac
    if low < 1:
        raise ProtocolError(f"a comparison window of {width} bits", where="mpc bookkeeping")
    if x.ring - max(shift, 0) < width or (wire is not None and (shift < 0 or wire.frac != x.frac or wire.ring < x.ring or wire.extra)):
        raise ProtocolError(f"comparison of {width} bits in a ring of {x.ring - shift}", where="mpc bookkeeping")
    if rt.watch is not None:
        if shift < 0:
            x, shift = rescale(x, frac), 0
        wire = wire if wire is not None else (yield from open_wire(rt, x))
        reach = 1 << (low + shift)
        watch_interval(rt, wire.public, wire.mask, wire.ring, (max(thresholds) << shift) - reach + 1, (min(thresholds) << shift) + reach)
    narrow = torch.int32 if width <= 32 else torch.int64
    masks = torch.empty(0)
    if wire is None:
        mask = rt.dealer.mask(x.shape, narrow)
        hidden, masks = mask.hidden, mask.shares
    else:  # both shifted: right to one unit
        hidden = derive(lambda m: (m >> shift).to(narrow), wire.mask)
    digits = [(start, min(digit, low - start)) for start in range(0, low, digit)]
    tables = [_thermometer(rt, hidden, start, size, x.shape) for start, size in digits]
    top = rt.dealer.xor_share(lambda m: ((m >> low) & 1).to(torch.int8), hidden, shape=x.shape, dtype=torch.int8, bits=1)
    if wire is not None:
        opened = (wire.public >> shift).to(narrow)
    else:
        (opened,) = yield [Open(shrink(x.data, shift).to(narrow) + masks, width)]
    less, equal = [], []
    shape = (len(thresholds), *x.shape)
    offsets = torch.tensor(thresholds, dtype=torch.int64).to(narrow).view(-1, *[1] * len(x.shape))
    c = opened.unsqueeze(0) - offsets
    for (start, size), table in zip(digits, tables, strict=True):
        a = (c >> start) & ((1 << size) - 1)
        less.append(_below(table, a))
        equal.append(_not_above(rt, table, a) ^ less[-1])
    borrow = yield from _first_difference(rt, less, equal, group)
    sign = borrow.view(rt.parties, *shape) ^ top.unsqueeze(1)
    return rt.flip_public(sign, ((c >> low) & 1).to(torch.int8) ^ 1)


def _thermometer(rt: Runtime, mask: Hidden, start: int, size: int, shape: tuple[int, ...]) -> Tensor:
    """XOR shares of the word whose bit j is [j < digit], for the digit of ``size`` bits at ``start``: one int32 word for
    5-bit digits, else int64 words along a last axis."""
    low = (1 << size) - 1
    if size <= DIGIT:
        one = torch.ones((), dtype=torch.int32)
        return rt.dealer.xor_share(lambda m: (one << ((m >> start) & low).to(torch.int32)) - 1, mask, shape=shape, dtype=torch.int32)
    starts = torch.arange(0, 1 << size, 64)

    def words(m: Tensor) -> Tensor:
        digit = ((m >> start) & low).to(torch.int64).unsqueeze(-1)
        word = (torch.ones((), dtype=torch.int64) << (digit & 63)) - 1
        return torch.where(starts + 64 <= digit, -1, torch.where(starts <= digit, word, 0))

    return rt.dealer.xor_share(words, mask, shape=(*shape, len(starts)))


def _below(table: Tensor, a: Tensor) -> Tensor:
    """Bit a of a shared thermometer, for ``a`` of shape ``(thresholds, *shape)``: int8 ``(parties, thresholds, *shape)``."""
    if table.dtype == torch.int32:
        return ((table.unsqueeze(1) >> a.to(torch.int32)) & 1).to(torch.int8)
    wide = a.to(torch.int64)
    index = (wide >> 6).unsqueeze(-1).expand(len(table), *wide.shape, 1)
    words = table.unsqueeze(1).expand(len(table), *wide.shape, table.shape[-1]).gather(-1, index).squeeze(-1)
    return ((words >> (wide & 63)) & 1).to(torch.int8)


def _not_above(rt: Runtime, table: Tensor, a: Tensor) -> Tensor:
    """[a - 1 < digit], which is true for a = 0."""
    if table.dtype == torch.int32:
        return _below(rt.flip_public(table << 1), a)
    return rt.flip_public(_below(table, (a - 1).clamp_(min=0)) * (a > 0), (a == 0).to(torch.int8))


def _first_difference(rt: Runtime, less: list[Tensor], equal: list[Tensor], group: int) -> Protocol[Tensor]:
    """Shares of ``less`` at the highest digit that is not ``equal``; digits are given lowest first."""
    while len(less) > 1:
        jobs, firsts = [], []
        for start in range(0, len(less), group):
            lt, eq = less[start : start + group], equal[start : start + group]
            firsts.append(lt[-1])
            jobs.append((lt, eq, start > 0))  # the lowest group's own equality is never needed
        results = yield from _chains(rt, jobs)
        less = [first ^ chain for first, (chain, _) in zip(firsts, results, strict=True)]
        equal = [all_equal for _, all_equal in results]
    return less[0]


def _chains(rt: Runtime, jobs: list[tuple[list[Tensor], list[Tensor], bool]]) -> Protocol[list[tuple[Tensor, Tensor]]]:
    """Per job: ⊕_i lt_i · Π_{j>i} eq_j over all but the highest digit, and Π eq_j if asked for; 1 round for all jobs."""
    inputs: list[Tensor] = []
    plans: list[tuple[list[tuple[int, ...]], tuple[int, ...]]] = []
    for lt, eq, wants_equal in jobs:
        base, n = len(inputs), len(lt)
        inputs += [*eq[1:], *lt[:-1]]  # eq_1..eq_{n-1}, lt_0..lt_{n-2}
        eq_at = {j: base + j - 1 for j in range(1, n)}
        terms = [tuple(sorted((*(eq_at[j] for j in range(i + 1, n)), base + n - 1 + i))) for i in range(n - 1)]
        whole: tuple[int, ...] = ()
        if wants_equal and n > 1:
            whole = tuple(sorted((*eq_at.values(), len(inputs))))
            inputs.append(eq[0])
        plans.append((terms, whole))
    products = sorted({t for terms, whole in plans for t in (*terms, whole) if len(t) > 1})
    values = dict(zip(products, (yield from and_products(rt, inputs, products)), strict=True))
    zero = torch.zeros_like(inputs[0])
    out = []
    for (terms, whole), (_, eq, _wants) in zip(plans, jobs, strict=True):
        chain = zero
        for term in terms:
            chain = chain ^ values[term]
        out.append((chain, values[whole] if len(whole) > 1 else eq[0]))
    return out


def and_products(rt: Runtime, inputs: list[Tensor], products: list[tuple[int, ...]]) -> Protocol[list[Tensor]]:
    """AND of subsets of XOR-shared words in one round: each input is opened under one mask, the dealer shares the
    products of the masks (multi-input Beaver, Ohata and Nuida, 2020).

    Args:
        inputs: Tensors ``(parties, *shape)`` of one integer dtype; int8 inputs hold single bits.
        products: Index sets, each of two or more inputs.
    """
    if not inputs:
        return []
    bits = 1 if inputs[0].dtype == torch.int8 else {torch.int32: 32, torch.int64: 64}[inputs[0].dtype]
    shape = tuple(inputs[0].shape[1:])
    masks = [rt.dealer.xor_mask(shape, inputs[0].dtype, 1 if bits == 1 else None) for _ in inputs]
    subsets = sorted({s for p in products for s in _subsets(p)}, key=len)
    plain: dict[tuple[int, ...], Hidden] = {}
    shared: dict[tuple[int, ...], Tensor] = {}
    for s in subsets:
        if len(s) == 1:
            plain[s], shared[s] = masks[s[0]].hidden, masks[s[0]].shares
            continue
        plain[s] = derive(torch.bitwise_and, plain[s[:-1]], masks[s[-1]].hidden)
        shared[s] = rt.dealer.xor_share(itself, plain[s], shape=shape, dtype=inputs[0].dtype, bits=bits)
        if bits == 1:
            with rt.meter.offline():
                shared[s].bitwise_and_(1)
    opened = yield [Open(x ^ mask.shares, bits, xor=True) for x, mask in zip(inputs, masks, strict=True)]
    known: dict[tuple[int, ...], Tensor] = {}

    def public(s: tuple[int, ...]) -> Tensor:
        if s not in known:
            known[s] = opened[s[0]] if len(s) == 1 else public(s[:-1]) & opened[s[-1]]
        return known[s]

    out = []
    for p in products:
        total = shared[p].clone()
        for s in _subsets(p):
            if len(s) < len(p):
                total ^= shared[s] & public(tuple(i for i in p if i not in s))
        out.append(rt.flip_public(total, public(p)))
    return out


def _subsets(items: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Every non-empty sub-tuple of ``items``."""
    return [tuple(x for k, x in enumerate(items) if choice >> k & 1) for choice in range(1, 1 << len(items))]


def select(rt: Runtime, terms: Sequence[tuple[Tensor, Shares | Wire | int]], like: Shares | Wire) -> Protocol[Shares]:
    """``Σ bit · value`` for XOR-shared bits and values that are shared, opened, or public integers (in units of the result's scale).
    The result's ring is the smallest of theirs.

    Bit conversion by a shared random bit (daBit: Rotaru and Wood, 2019) and the products take the same single round.

    Args:
        terms: int8 bits ``(parties, *shape)``, each with its value. All shared and opened values have one scale.
        like: Gives the scale of the result when every value is public, and the dtype when it is Shares.
    """
    shape = tuple(terms[0][0].shape[1:])
    ring = min([WORD, *(value.ring for _, value in terms if not isinstance(value, int))])
    messages: list[Open] = []
    flips: list[tuple[Hidden, Tensor]] = []
    values: list[Wire | int] = []
    for bit, value in terms:
        flip = rt.dealer.xor_mask(shape, torch.int8, 1)
        plain = derive(lambda m: m.to(torch.int64), flip.hidden)
        flips.append((plain, rt.dealer.share(itself, plain, shape=shape, bits=ring)))
        messages.append(Open(bit ^ flip.shares, 1, xor=True))
        if isinstance(value, Shares):
            mask = rt.dealer.mask(value.shape)
            messages.append(Open(value.data + mask.shares, value.ring))
            # Its public words are filled in below, once they are open.
            values.append(Wire(torch.empty(0, dtype=torch.int64), mask.shares, mask.hidden, value.frac, value.ring, rt.first))
        else:
            values.append(value)
    products = [_bit_mask_products(rt, plain, shape, ring, value) for (plain, _), value in zip(flips, values, strict=True)]
    opened = iter((yield messages))
    total: Tensor | None = None
    frac = like.frac
    for (_, arithmetic), (_, given), value, product in zip(flips, terms, values, products, strict=True):
        flipped = next(opened).to(torch.int64) & 1
        sign = 1 - 2 * flipped
        arithmetic *= sign
        rt.add_public(arithmetic, flipped)
        if isinstance(value, int):
            arithmetic *= value
        else:  # b · (p - m) = p · b - flipped · m - sign · (β m)
            if isinstance(given, Shares):
                value.public = next(opened)
            arithmetic *= value.public
            for coefficient, words in product:
                arithmetic -= words.mul_(sign if coefficient is None else sign * coefficient)
            arithmetic -= value.masks * flipped
            frac = value.frac
        total = arithmetic if total is None else total.add_(arithmetic)
    assert total is not None
    return Shares(total, frac, ring, like.dtype if isinstance(like, Shares) else torch.float32)


def _bit_mask_products(
    rt: Runtime, bit: Hidden, shape: tuple[int, ...], ring: int, value: Wire | int
) -> list[tuple[Tensor | None, Tensor]]:
    """Shares modulo ``2^ring`` of the dealer's bit times each part of an opened value's mask, with the part's public coefficient."""
    if isinstance(value, int):
        return []
    whole = tuple(value.masks.shape[1:])
    shape = shape if shape == whole else tuple(torch.broadcast_shapes(shape, whole))  # type: ignore[no-untyped-call]
    out: list[tuple[Tensor | None, Tensor]] = [(None, rt.dealer.share(torch.mul, bit, value.mask, shape=shape, bits=ring))]
    for part in value.extra:
        if part.shift >= ring:  # a multiple of 2^ring is nothing
            continue
        words = rt.dealer.share(torch.mul, bit, part.mask, shape=shape, bits=ring - part.shift)
        with rt.meter.offline():
            words <<= part.shift
        out.append((part.coefficient, words))
    return out


def clamp(
    rt: Runtime, x: Shares, low: int | None, high: int | None, *, frac: int, range_bits: int, ring: int = WORD, ends: bool = False
) -> Protocol[Shares]:
    """``x`` limited to [low, high], both in units of ``2^-frac``; scale and ring stay unless x is coarser than a
    unit. Within one unit of a limit either side may be returned.

    Args:
        ring: Bits that the result keeps; what is above them is looked at where ranges are checked, and opened only then.
        ends: Values above ``high`` are out of range, which checked ranges tell; else limiting them is what the caller wants.
    """
    x = rescale(x, max(x.frac, frac))
    if rt.watch is None:
        x = x.like(x.data, ring=min(x.ring, ring))
    limits = [t for t in (low, high) if t is not None]
    wire = yield from open_wire(rt, x)
    above = yield from at_least(rt, x, limits, frac=frac, range_bits=range_bits, wire=wire)
    if ends and high is not None:
        watch_bits(rt, above[:, -1])
    if x.ring > ring:
        x = x.like(x.data, ring=ring)
        wire = Wire(wire.public, wire.masks, wire.mask, wire.frac, ring, wire.first)
    scale = x.frac - frac
    first, last = above[:, 0], above[:, -1]
    if low is None or high is None:
        keep = first if low is not None else rt.flip_public(first.clone())
        outside = rt.flip_public(keep.clone())
        return (yield from select(rt, [(keep, wire), (outside, limits[0] << scale)], x))
    under = rt.flip_public(first.clone())
    return (yield from select(rt, [(first ^ last, wire), (last, high << scale), (under, low << scale)], x))
