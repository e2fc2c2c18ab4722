"""Index of the largest element along the last axis, on shares: nothing is opened but masked values.

A tournament. Each level splits what is left into groups and compares every pair of a group side by side; an element wins
its group when it wins all its pairs, and the winner's value and index are selected together. Groups grow as fewer elements
are left, so that a level costs about as many comparisons as elements it removes and rounds stay few. (Pairwise comparison
of all elements of a small set for a constant number of rounds: Damgård et al., TCC 2006.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

from privtensors.backends.mpc.protocols.arithmetic import normal
from privtensors.backends.mpc.protocols.compare import and_products, at_least, select
from privtensors.backends.mpc.runtime import Protocol, Runtime, parallel
from privtensors.backends.mpc.shares import Shares

RANGE_BITS: Final = 19  # differences of two values lie below 2^19
_LARGE: Final = 512  # above this many elements, comparisons cost more than rounds
_GROUP: Final = 4
_FINAL: Final = 32  # all pairs of this many elements at once
_FAN_IN: Final = 6  # bits that one AND round joins: 2^6 shares of the dealer each


def levels(length: int) -> Iterator[tuple[int, int]]:
    """(groups, elements of each) of every level for rows of ``length``; the last element of a row may be padding."""
    while length > 1:
        size = length if length <= _FINAL else _GROUP if length > _LARGE else math.ceil(length / _FINAL)
        groups = math.ceil(length / size)
        yield groups, size
        length = groups


def fan_ins(count: int) -> Iterator[tuple[int, int]]:
    """(bits joined, results) of every AND round over ``count`` bits, as even as possible."""
    while count > 1:
        rounds = math.ceil(math.log(count) / math.log(_FAN_IN) - 1e-9)
        width = math.ceil(count ** (1 / rounds) - 1e-9)
        count = math.ceil(count / width)
        yield width, count


def argmax(rt: Runtime, x: Shares) -> Protocol[Shares]:
    """Index of the largest element of each row, the lowest where several are equal, as :func:`torch.argmax`.

    Exact on the shared fixed-point values, which for a value that carries more than the backend's fractional bits means
    after rounding it to them: elements closer than two units of ``2^-frac`` may then go either way. Values must lie in
    ±2^18. Guarantee class: computational, as every protocol of the backend.

    Rounds: 1 for a value that must be rounded first, and per level 3 for the comparison, 1 or 2 for the AND and 1 for the
    selection: 5 in all for 4 elements, 17 for 1,000, 27 for 32,000.

    Args:
        x: ``(parties, *rows, n)`` words with n ≥ 1.

    Returns:
        int64 shares ``(parties, *rows)`` with no fractional bits, in the full ring.
    """
    value = yield from normal(rt, x)
    index: Shares | None = None  # until the first level, an element's index is its place
    for groups, size in levels(x.shape[-1]):
        value, index = yield from _level(rt, value, index, groups, size)
    if index is None:
        index = Shares(torch.zeros_like(value.data), 0)
    return Shares(index.data[..., 0], 0, index.ring, torch.int64)


def _level(rt: Runtime, value: Shares, index: Shares | None, groups: int, size: int) -> Protocol[tuple[Shares, Shares]]:
    """Winners of each group: values and indices ``(parties, *rows, groups)``. The values of a last group are not selected."""
    grouped = _grouped(rt, value, groups, size, padding=-(1 << (RANGE_BITS - 1 + value.frac)))
    first, second = torch.triu_indices(size, size, offset=1)
    difference = value.like(grouped.data[..., first] - grouped.data[..., second])
    bits = yield from at_least(rt, difference, [0], frac=value.frac, range_bits=RANGE_BITS)
    wins = yield from _all(rt, _results(rt, bits[:, 0], size))
    terms = [wins[..., i] for i in range(size - 1)]  # of elements 1 .. size - 1; element 0 stands where none of them wins
    start = torch.arange(groups) * size

    def kept(x: Shares) -> Protocol[Shares]:
        out = yield from select(rt, [(bit, x.like(x.data[..., i] - x.data[..., 0])) for i, bit in enumerate(terms, 1)], x)
        return x.like(x.data[..., 0] + out.data, ring=min(x.ring, out.ring))

    def place() -> Protocol[Shares]:
        if index is not None:
            return (yield from kept(_grouped(rt, index, groups, size, padding=0)))
        out = yield from select(rt, [(bit, i) for i, bit in enumerate(terms, 1)], Shares(value.data, 0))
        return Shares(rt.add_public(out.data, start), 0)

    if groups == 1:
        chosen = yield from place()
        return value, chosen
    top, chosen = yield from parallel(kept(grouped), place())
    return top, chosen


def _grouped(rt: Runtime, x: Shares, groups: int, size: int, *, padding: int) -> Shares:
    """``(parties, *rows, groups, size)``: the rows cut into groups, the last filled up with a public number."""
    missing = groups * size - x.shape[-1]
    data = torch.nn.functional.pad(x.data, [0, missing])
    if missing and padding:
        rt.add_public(data[..., x.shape[-1] :], padding)
    return x.like(data.reshape(*data.shape[:-1], groups, size))


def _results(rt: Runtime, bits: Tensor, size: int) -> Tensor:
    """What elements 1 .. size - 1 need to win: int8 ``(parties, *rows, groups, size - 1, size - 1)``.

    Args:
        bits: Shares of "the first of the pair is at least the second", pairs along the last axis.
    """
    first, second = torch.triu_indices(size, size, offset=1)
    pair = torch.zeros(size, size, dtype=torch.int64)
    pair[first, second] = pair[second, first] = torch.arange(len(first))
    others = torch.tensor([[j for j in range(size) if j != i] for i in range(1, size)])
    own = torch.arange(1, size).unsqueeze(1)
    flipped = (others < own).to(torch.int8)  # of equal elements the earlier one wins
    return rt.flip_public(bits[..., pair[own, others]], flipped)


def _all(rt: Runtime, bits: Tensor) -> Protocol[Tensor]:
    """AND of XOR-shared bits along the last axis."""
    for width, results in fan_ins(bits.shape[-1]):
        filled = torch.nn.functional.pad(bits, [0, width * results - bits.shape[-1]])
        rt.flip_public(filled[..., bits.shape[-1] :])
        columns = [filled[..., i * results : (i + 1) * results].contiguous() for i in range(width)]
        (bits,) = yield from and_products(rt, columns, [tuple(range(width))])
    return bits[..., 0]
