"""Comparison, AND products, selection and clamping on shares, against plain integers."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privtensors.backends.mpc.protocols.compare import and_products, at_least, clamp, select
from privtensors.backends.mpc.shares import Shares
from privtensors.errors import ProtocolError
from privtensors.testing.strategies import shapes
from tests.unit.backends.mpc.harness import FRAC, Lab, bits_of, value, words_of, worst

seeds = st.integers(0, 2**20)


def rounds(digits: int, group: int = 3) -> int:
    """One opening, then one AND round per level of the tree."""
    count = 1
    while digits > 1:
        digits, count = -(-digits // group), count + 1
    return count


@given(st.integers(10, 47), st.integers(0, 12), st.integers(0, 12), st.integers(2, 4), seeds)
@settings(max_examples=150)
def test_at_least(width: int, frac: int, shift: int, group: int, number: int) -> None:
    """``width`` is the window: fractional and integer bits and the sign."""
    lab = Lab(number=number)
    low = width - 1
    range_bits = low - frac
    edge = (1 << low) - 1
    thresholds = [0, 1, -1, edge // 2, -(edge // 2), int(torch.randint(-edge // 2, edge // 2, (1,), generator=lab.generator))]
    wide = torch.randint(-edge // 2, edge // 2, (300,), generator=lab.generator)
    near = torch.tensor([t + d for t in thresholds for d in (-3, -2, -1, 0, 1, 2, 3)])
    units = torch.cat([wide, near.clamp(-(edge // 2), edge // 2)])
    ring = min(64, width + shift + 2)
    below = torch.randint(0, 1 << shift, units.shape, generator=lab.generator) if shift else 0
    x = lab.words((units << shift) + below, frac + shift, ring)
    got = bits_of(lab.run(at_least(lab.rt, x, thresholds, frac=frac, range_bits=range_bits, group=group)))
    assert lab.meter.rounds == rounds(-(-low // 5), group)
    for bit, t in zip(got, thresholds, strict=True):
        want = (units >= t).to(torch.int8)
        unclear = (units - t).abs() <= (1 if shift else 0)  # truncation is right to one unit
        if shift == 0:
            unclear &= False
        assert torch.equal(bit[~unclear], want[~unclear])


@given(st.integers(10, 40), st.integers(0, 10), seeds)
def test_thresholds_at_the_edge_of_the_window(width: int, frac: int, number: int) -> None:
    """Exact for every |x - t| < 2^range_bits, whatever x and t are themselves."""
    lab = Lab(number=number)
    edge = 1 << (width - 1)
    for t in (edge - 1, -edge + 1, edge, -edge, 3 * edge):
        units = t + torch.cat([torch.randint(-edge, edge, (200,), generator=lab.generator), torch.tensor([-edge, edge - 1, 0, -1, 1])])
        x = lab.words(units, frac, 64)
        got = bits_of(lab.run(at_least(lab.rt, x, [t], frac=frac, range_bits=width - 1 - frac)))
        assert torch.equal(got[0], (units >= t).to(torch.int8))


@given(shapes(), seeds)
def test_comparison_of_any_shape(shape: tuple[int, ...], number: int) -> None:
    lab = Lab(number=number)
    x = torch.randn(shape, generator=lab.generator)
    got = lab.run(at_least(lab.rt, lab.share(x), [0, 1 << 12], frac=12, range_bits=18))
    assert tuple(got.shape) == (2, 2, *shape)
    far = (x.abs() > 2.0**-11) & ((x - 1).abs() > 2.0**-11)
    assert torch.equal(bits_of(got)[1][far], (x >= 1).to(torch.int8)[far])


def test_a_window_wider_than_the_ring_is_refused() -> None:
    lab = Lab()
    with pytest.raises(ProtocolError, match="comparison of 32 bits"):
        lab.run(at_least(lab.rt, lab.share(torch.ones(2), 18, 30), [0], frac=13, range_bits=18))


@given(st.integers(2, 4), st.sampled_from([torch.int8, torch.int32, torch.int64]), seeds)
def test_and_products_of_every_subset(count: int, dtype: torch.dtype, number: int) -> None:
    lab = Lab(number=number)
    width = {torch.int8: 1, torch.int32: 32, torch.int64: 64}[dtype]
    plain = [torch.randint(-(1 << 62), 1 << 62, (50,), generator=lab.generator).to(dtype) for _ in range(count)]
    if width == 1:
        plain = [p & 1 for p in plain]
    first = [torch.randint(-(1 << 62), 1 << 62, (50,), generator=lab.generator).to(dtype) for _ in range(count)]
    inputs = [torch.stack([f, f ^ p]) for f, p in zip(first, plain, strict=True)]
    if width == 1:  # junk above the single bit
        for i in inputs:
            i[1] ^= torch.randint(0, 64, (50,), generator=lab.generator).to(dtype) << 1
    products = [c for size in range(2, count + 1) for c in itertools.combinations(range(count), size)]
    out = lab.run(and_products(lab.rt, inputs, products))
    assert lab.meter.rounds == 1
    for product, got in zip(products, out, strict=True):
        want = plain[product[0]]
        for i in product[1:]:
            want = want & plain[i]
        opened = got[0] ^ got[1]
        assert torch.equal(opened & 1 if width == 1 else opened, want)


def boolean(lab: Lab, bits: torch.Tensor) -> torch.Tensor:
    """XOR shares of single bits with junk above them."""
    first = torch.randint(-128, 128, bits.shape, generator=lab.generator).to(torch.int8)
    junk = (torch.randint(0, 64, bits.shape, generator=lab.generator) << 1).to(torch.int8)
    return torch.stack([first, first ^ bits.to(torch.int8) ^ junk])


@given(shapes(), st.integers(20, 64), seeds)
def test_select_is_exact(shape: tuple[int, ...], ring: int, number: int) -> None:
    lab = Lab(number=number)
    bound = 1 << (ring - 3)
    x, y = (torch.randint(-bound, bound, shape, generator=lab.generator) for _ in range(2))
    b, c, d = (torch.randint(0, 2, shape, generator=lab.generator) for _ in range(3))
    terms: list[tuple[torch.Tensor, Shares | int]] = [
        (boolean(lab, b), lab.words(x, 5, ring)),
        (boolean(lab, c), 77),
        (boolean(lab, d), lab.words(y, 5, 64)),
        (boolean(lab, b), -(1 << 59)),
    ]
    out = lab.run(select(lab.rt, terms, lab.words(x, 5, ring)))
    assert (out.frac, out.ring) == (5, ring) and lab.meter.rounds == 1
    expected = b * x + 77 * c + d * y - b * (1 << 59)
    difference = (words_of(out) - expected) << (64 - ring)
    assert not bool(difference.any())


@given(st.sampled_from([(0, 12), (4, 12), (-2, 13), (12, 18)]), seeds, st.sampled_from(["both", "low", "high"]))
def test_clamp(format_: tuple[int, int], number: int, sides: str) -> None:
    frac, range_bits = format_
    lab = Lab(number=number)
    unit = 2.0**-frac
    reach = 2.0 ** (range_bits - 1)
    x = (torch.rand(500, generator=lab.generator) * 2 - 1).double() * reach
    low, high = (-3 * unit - 20, 40.0)
    low, high = round(low / unit) * unit, round(high / unit) * unit
    x[:6] = torch.tensor([low, high, low - unit, low + unit, high + unit, high - unit])
    a, b = (round(low / unit) if sides != "high" else None), (round(high / unit) if sides != "low" else None)
    shared = lab.share(x)
    out = lab.run(clamp(lab.rt, shared, a, b, frac=frac, range_bits=range_bits))
    assert (out.frac, out.ring) == (FRAC, 64)
    want = x.clamp(low if a is not None else None, high if b is not None else None)
    exact = ((x - low).abs() > unit) & ((x - high).abs() > unit)
    # Away from the limits the value is exact, near them within one unit.
    assert (
        worst(
            value(out)[exact],
            ((x * 2.0**FRAC).round() / 2.0**FRAC)[exact].clamp(low if a is not None else None, high if b is not None else None),
        )
        == 0
    )
    assert worst(value(out), want) <= unit


def test_clamp_of_a_coarse_scale() -> None:
    """Integers have fewer fractional bits than the limits are given in."""
    lab = Lab()
    x = torch.arange(-20, 20)
    out = lab.run(clamp(lab.rt, lab.words(x, 0), -5 << 12, 6 << 12, frac=12, range_bits=18))
    assert torch.equal(value(out), x.clamp(-5, 6).double())
