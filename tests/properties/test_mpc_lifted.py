"""Values opened while they are lifted: elementwise products and selections without another round."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from privtensors.backends.mpc.protocols.arithmetic import (
    lift_wire,
    lift_words,
    matmul_wires,
    multiply_wires,
    open_lifted,
    open_wire,
    square_wire,
)
from privtensors.backends.mpc.protocols.compare import at_least, select
from privtensors.backends.mpc.shares import Shares, sign_extend
from privtensors.errors import ProtocolError
from privtensors.testing.strategies import broadcast_pairs, shapes
from tests.unit.backends.mpc.harness import FRAC, ULP, Lab, bits_of, same, value, words_of, worst

seeds = st.integers(0, 2**20)


def _lifted_from(lab: Lab, shape: tuple[int, ...], frac: int, ring: int) -> tuple[torch.Tensor, Shares]:
    x = torch.randn(shape, generator=lab.generator) * 8
    return x, lab.share(x, frac, ring)


@given(shapes(), seeds, st.sampled_from([(36, 64), (30, 64), (36, 52), (18, 46), (26, 41), (10, 40)]))
def test_the_opened_form_is_the_lifted_value(shape: tuple[int, ...], number: int, form: tuple[int, int]) -> None:
    lab = Lab(number=number)
    x, shares = _lifted_from(lab, shape, *form)
    wire = lab.run(open_lifted(lab.rt, shares, FRAC))
    assert lab.meter.rounds == 1
    got = Shares(wire.residue(), FRAC)
    assert worst(value(got), x.double()) <= 2 * ULP + 2.0 ** -form[0]
    # public - mask, the mask put together from the dealer's parts and public coefficients
    mask = wire.mask.value() + sum(p.coefficient * (p.mask.value() << p.shift) for p in wire.extra)
    assert torch.equal(wire.public - mask, words_of(got))
    assert torch.equal(wire.masks[0] + wire.masks[1], mask)


@given(seeds, st.integers(20, 63), st.integers(1, 18))
def test_lifting_with_and_without_keeping_the_opening_is_one_protocol(number: int, ring: int, shift: int) -> None:
    words = torch.randint(-(1 << (ring - 3)), 1 << (ring - 3), (50,), generator=torch.Generator().manual_seed(number))
    plain, kept = Lab(number=number), Lab(number=number)
    a = plain.run(lift_words(plain.rt, plain.words(words, 0, ring).data, ring, min(shift, ring - 2)))
    b = kept.run(lift_wire(kept.rt, kept.words(words, 0, ring).data, ring, min(shift, ring - 2), 0))
    assert torch.equal(a, b.residue())


@given(broadcast_pairs(), seeds, st.booleans(), st.booleans())
def test_products_of_lifted_and_plain_openings(
    pair: tuple[tuple[int, ...], tuple[int, ...]], number: int, lift_first: bool, lift_second: bool
) -> None:
    lab = Lab(number=number)
    (x, a), (y, b) = (
        _lifted_from(lab, shape, 36 if lifts else FRAC, 64) for shape, lifts in zip(pair, (lift_first, lift_second), strict=True)
    )
    one, other = lab.run(open_lifted(lab.rt, a, FRAC)), lab.run(open_lifted(lab.rt, b, FRAC))
    assert bool(one.extra) == lift_first and bool(other.extra) == lift_second
    rounds = lab.meter.rounds
    product = multiply_wires(lab.rt, one, other)
    assert lab.meter.rounds == rounds, "a product of opened values is local"
    assert product.shape == torch.broadcast_shapes(*pair)
    assert worst(value(product), x.double() * y.double()) <= 200 * ULP


@given(shapes(), seeds, st.sampled_from([(36, 64, FRAC), (36, 52, 14), (28, 32, 12), (25, 50, 20)]))
def test_squares(shape: tuple[int, ...], number: int, form: tuple[int, int, int]) -> None:
    frac, ring, kept = form
    lab = Lab(number=number)
    x = torch.rand(shape, generator=lab.generator) * 2 - 1
    wire = lab.run(open_lifted(lab.rt, lab.share(x, frac, ring), kept))
    once, general = square_wire(lab.rt, wire), multiply_wires(lab.rt, wire, wire.map(lambda t, lead: t))
    assert torch.equal(words_of(once), words_of(general))
    assert worst(value(once), x.double().square()) <= 4 * 2.0**-kept


@given(seeds)
def test_a_32_bit_value_lifts_and_squares(number: int) -> None:
    lab = Lab(number=number)
    words = torch.randint(-(1 << 29), 1 << 29, (200,), generator=lab.generator)
    data = lab.words(words, 27, 32).data.to(torch.int32)
    wire = lab.run(lift_wire(lab.rt, data, 32, 15, 12))
    want = words.double() / 2.0**27
    assert worst(value(Shares(wire.residue(), 12)), want) <= 2.0**-11
    assert worst(value(square_wire(lab.rt, wire)), want.square()) <= 2.0**-7


@given(shapes(), seeds)
def test_sums_and_doubles_of_opened_values(shape: tuple[int, ...], number: int) -> None:
    lab = Lab(number=number)
    x, y = (torch.randn(shape, generator=lab.generator) for _ in range(2))
    a, b = (lab.run(open_lifted(lab.rt, lab.share(v, frac, 64), FRAC)) for v, frac in ((x, 36), (y, 30)))
    both = a.plus(b)
    assert worst(value(multiply_wires(lab.rt, both, b.doubled())), (x + y).double() * 2 * y.double()) <= 200 * ULP
    assert worst(value(square_wire(lab.rt, both)), (x + y).double().square()) <= 200 * ULP


@given(shapes(), seeds)
def test_a_selected_value_that_is_open_costs_one_bit(shape: tuple[int, ...], number: int) -> None:
    lab = Lab(number=number)
    x, y = (torch.randn(shape, generator=lab.generator) * 4 for _ in range(2))
    above = lab.run(at_least(lab.rt, lab.share(x), [0], frac=12, range_bits=8))[:, 0]
    opened = lab.run(open_lifted(lab.rt, lab.share(y, 36, 64), FRAC))
    before = lab.meter.bytes_sent
    out = lab.run(select(lab.rt, [(above, opened)], opened))
    assert lab.meter.bytes_sent - before == (x.numel() + 7) // 8
    assert worst(value(out), torch.where(bits_of(above).bool(), y.double(), 0.0)) <= 2 * ULP


def test_what_is_opened_while_lifted_has_no_matrix_product() -> None:
    lab = Lab()
    wire = lab.run(open_lifted(lab.rt, lab.share(torch.ones(3, 3), 36, 64), FRAC))
    other = lab.run(open_wire(lab.rt, lab.share(torch.ones(3, 3))))
    for pair in ((wire, other), (other, wire)):
        with pytest.raises(ProtocolError, match="no matrix products"):
            matmul_wires(lab.rt, *pair)


def test_junk_above_the_ring_changes_nothing() -> None:
    def run(lab: Lab) -> list[torch.Tensor]:
        out = []
        for frac, ring in ((36, 64), (30, 52), (18, 41)):
            x, y = (_lifted_from(lab, (40,), frac, ring)[1] for _ in range(2))
            a, b = lab.run(open_lifted(lab.rt, x, FRAC)), lab.run(open_lifted(lab.rt, y, 14))
            bit = lab.run(at_least(lab.rt, x, [0], frac=4, range_bits=8))[:, 0]
            values = [multiply_wires(lab.rt, a, b), square_wire(lab.rt, a), lab.run(select(lab.rt, [(bit, b)], b))]
            out += [sign_extend(v.data.sum(0), v.ring) for v in values]
        return out

    same(run)
