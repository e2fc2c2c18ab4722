"""Checked ranges: whether a shared value lies in a public interval, for the price of a few dealer bytes.

c = v + m is open, for most operations anyway. Let u be a power of two, so that the interval has 17 to 34 units. The high parts
C = c div u and M = m div u differ by floor(v / u) or one more. Whether C - M lies in 0 .. n - 1 is linear over GF(2) in XOR
shares of M once the borrow of its lowest 5-bit digit is known, and the dealer's thermometer of that digit gives the borrow
by a local look-up. So a check is local: no round, no byte. What it gives is zero inside and not zero outside;
:class:`~privtensors.backends.mpc.watch.Watch` folds it into one word, and :func:`verdict` tells the receiver of a result
whether that word is zero and nothing else of it.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from privtensors.backends.mpc.hidden import Hidden
from privtensors.backends.mpc.runtime import Open, Protocol, Runtime
from privtensors.backends.mpc.shares import WORD, low_bits
from privtensors.backends.mpc.watch import parity
from privtensors.core.kernel import Cost
from privtensors.transport.base import packed_size

_DIGIT: Final = 5  # as in compare.py: a thermometer of it fills an int32 word
_UNITS: Final = 1 << _DIGIT
_HIGH: Final = 31  # most bits above the digit that are looked at, so that they and one bit more fill an int32 word


def watch_interval(rt: Runtime, opened: Tensor, mask: Hidden, ring: int, low: int, high: int) -> None:
    """Check ``low ≤ v < high`` for every element of a value that is open; local. Nothing where ranges are not checked.

    Values outside are always noticed, values more than two units away from both limits never; a unit is 1/17 to 1/34 of
    the interval. What is a multiple of 2^36 units too large looks like what is inside.

    Args:
        opened: ``v + mask`` modulo ``2^ring``, shape of the value.
        mask: The dealer's.
        ring: Low bits of both that count.
        low, high: In units of the value's last place.
    """
    if rt.watch is None or high - low < 2 * _UNITS or not opened.numel():
        return
    shift = max(0, math.ceil(math.log2((high - low) / (_UNITS + 2))))
    while (high - low) >> shift > _UNITS + 1:
        shift += 1
    units = ((high - low) >> shift) - 1  # accepted values of C - M
    above = min(_HIGH, ring - shift - _DIGIT)
    if above < 1:  # the ring holds nothing outside
        return
    rt.watch.stir(opened, ring)
    shape, one = tuple(opened.shape), torch.ones((), dtype=torch.int32)
    table = rt.dealer.xor_share(lambda m: (one << ((m >> shift) & (_UNITS - 1)).to(torch.int32)) - 1, mask, shape=shape, dtype=torch.int32)
    narrow, field = torch.int8 if above == 1 else torch.int32, (1 << above) - 1
    shares = rt.dealer.xor_share(lambda m: ((m >> (shift + _DIGIT)) & field).to(narrow), mask, shape=shape, dtype=narrow, bits=above)
    start = opened.to(torch.int64) - ((1 << shift) + low)
    bottom, top = (_parts(c, ring, shift, field) for c in (start, start + ((_UNITS - units) << shift)))
    borrow_bottom, borrow_top = ((table >> digit) & 1 for digit in (bottom[0], top[0]))
    # C - M - borrow is zero above the digit: M = C where there is no borrow, C - 1 where there is one.
    step = (bottom[1] ^ (bottom[1] - 1)) & field
    flags = (shares ^ (-borrow_bottom & step).to(narrow)) & field
    extra = borrow_bottom ^ borrow_top
    rt.flip_public(flags, bottom[1].to(narrow))
    rt.flip_public(extra, (bottom[1] != top[1]).to(torch.int32))
    # The same for C - M plus the units that are not accepted: then it was below their number.
    flags ^= extra.to(narrow) << above
    rt.watch.absorb(flags, above + 1)


def _parts(c: Tensor, ring: int, shift: int, field: int) -> tuple[Tensor, Tensor]:
    """The 5-bit digit of opened words and what is above it, both int32."""
    units = (low_bits(c, ring) if ring < WORD else c) >> shift
    return (units & (_UNITS - 1)).to(torch.int32), ((units >> _DIGIT) & field).to(torch.int32)


def watch_bits(rt: Runtime, bits: Tensor) -> None:
    """Check that XOR-shared single bits, int8, are all zero; local. Call it after :func:`watch_interval` of the same value."""
    if rt.watch is not None and bits.shape[1:].numel():
        rt.watch.absorb(bits, 1)


def verdict(rt: Runtime) -> Protocol[Tensor]:
    """What the receiver of a result may open: all zero where nothing left its range, 64 uniform bits where something did. 1 round.

    Words t that are zero if all is well are multiplied by a random matrix A over GF(2) that the dealer shares, so that A t
    tells whether t is zero and nothing else. (A t comes from opening t under a mask; Beaver, 1991.)

    Returns:
        int8, ``(parties held here, findings, 64)``: XOR shares, one line per finding.
    """
    assert rt.watch is not None
    words = torch.stack([finding.word for finding in rt.watch.take()], -1)
    lines = words.shape[-1]
    matrix, mask = rt.dealer.xor_mask((lines, 64)), rt.dealer.xor_mask((lines,))
    product = rt.dealer.xor_share(
        lambda a, m: parity(a & m.unsqueeze(-1)), matrix.hidden, mask.hidden, shape=(lines, 64), dtype=torch.int8, bits=1
    )
    (opened,) = yield [Open(words ^ mask.shares, WORD, xor=True)]
    return (parity(matrix.shares & opened.unsqueeze(-1)) ^ product) & 1


def verdict_cost(findings: int = 1) -> Cost:
    """What :func:`verdict` adds to a reveal at each party, the bits for the receiver included; those share the result's round."""
    return Cost(1, packed_size(findings, WORD) + packed_size(findings * 64, 1))


def added_by_comparison(elements: int, width: int) -> Cost:
    """What checking adds to a comparison that would open ``width`` bits of a value that is not open yet: its whole word."""
    return Cost(0, packed_size(elements, WORD) - packed_size(elements, width))
