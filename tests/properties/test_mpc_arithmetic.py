"""Opening, products, truncation and lifting on shares, against float64 and exact integers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privtensors.backends.mpc.protocols.arithmetic import (
    lift,
    lift_words,
    matmul_wires,
    multiply_wires,
    normal,
    open_wire,
    rescale,
    shrink,
    square_wire,
    with_headroom,
)
from privtensors.backends.mpc.runtime import parallel
from privtensors.backends.mpc.shares import Shares, Wire, sign_extend
from privtensors.errors import ProtocolError
from privtensors.testing.strategies import broadcast_pairs, shapes, tensors
from tests.unit.backends.mpc.harness import FRAC, ULP, Lab, value, words_of, worst

seeds = st.integers(0, 2**20)


def integers(lab: Lab, shape: tuple[int, ...], bits: int) -> torch.Tensor:
    """Uniform in ±2^bits, with the extremes and the neighbourhood of zero among them."""
    flat = torch.randint(-(1 << bits) + 1, 1 << bits, shape, generator=lab.generator).flatten()
    edges = torch.tensor([0, 1, -1, (1 << bits) - 1, -(1 << bits) + 1])
    flat[: len(edges)] = edges[: len(flat)]
    return flat.view(shape)


@given(shapes(), seeds, st.integers(20, 64), st.data())
def test_an_opened_wire_is_value_plus_mask(shape: tuple[int, ...], number: int, ring: int, data: st.DataObject) -> None:
    lab = Lab(number=number)
    words = integers(lab, shape, ring - 2)
    x = lab.words(words, FRAC, ring)
    wire: Wire = lab.run(open_wire(lab.rt, x))
    assert torch.equal(sign_extend(wire.public - wire.mask.value(), ring), words)
    assert torch.equal(wire.masks[0] + wire.masks[1], wire.mask.value())
    assert torch.equal(sign_extend(wire.residue().sum(0), ring), words)
    assert lab.meter.rounds == 1 and lab.meter.bytes_sent == words.numel() * ((ring + 7) // 8)
    again = lab.run(open_wire(lab.rt, x))
    assert again is wire and lab.meter.rounds == 1  # opened once, used many times


@given(shapes(min_dims=1), seeds)
def test_a_view_shares_the_opening_of_its_base(shape: tuple[int, ...], number: int) -> None:
    lab = Lab(number=number)
    x = lab.share(torch.randn(shape, generator=lab.generator))
    turned = x.view(lambda t, lead: t.movedim(lead, -1), whole=True)
    lab.run(open_wire(lab.rt, turned))
    wire = lab.run(open_wire(lab.rt, x))
    assert lab.meter.rounds == 1
    both = lab.run(open_wire(lab.rt, x.view(lambda t, lead: t.flatten(lead), whole=True)))
    assert lab.meter.rounds == 1 and torch.equal(both.public.flatten(), wire.public.flatten())
    assert torch.equal(both.residue().sum(0), x.data.sum(0).flatten())


@given(broadcast_pairs(), seeds, st.data())
def test_products_of_wires(pair: tuple[tuple[int, ...], tuple[int, ...]], number: int, data: st.DataObject) -> None:
    lab = Lab(number=number)
    x, y = (data.draw(tensors(shape, scale=30.0)) for shape in pair)
    a, b = lab.run(parallel(*(open_wire(lab.rt, lab.share(t)) for t in (x, y))))
    out = multiply_wires(lab.rt, a, b)
    want = x.double() * y.double()
    assert out.shape == tuple(want.shape) and (out.frac, out.ring) == (2 * FRAC, 64)
    bound = ULP * (1.0 + sum(float(t.abs().max()) if t.numel() else 0.0 for t in (x, y)))
    assert worst(value(out), want) <= bound
    square = square_wire(lab.rt, a)
    assert worst(value(square), x.double() ** 2) <= bound + ULP * (float(x.abs().max()) if x.numel() else 0.0)
    assert lab.meter.rounds == 1


@given(st.lists(st.integers(0, 3), max_size=2), st.tuples(*[st.integers(0, 6)] * 3), seeds, st.booleans(), st.booleans())
def test_matrix_products_of_wires(batch: list[int], sizes: tuple[int, int, int], number: int, weight: bool, flat_batch: bool) -> None:
    lab = Lab(number=number)
    m, k, n = sizes
    x = torch.randn(*batch, m, k, generator=lab.generator) * 10
    y = torch.randn(*([] if flat_batch else batch), k, n, generator=lab.generator) * 3
    a, b = lab.run(parallel(open_wire(lab.rt, lab.share(x)), open_wire(lab.rt, lab.share(y))))
    b.reused = weight  # the two orders of local work give the same shares of the product
    out = matmul_wires(lab.rt, a, b)
    want = x.double() @ y.double()
    assert out.shape == tuple(want.shape)
    assert worst(value(out), want) <= (k + 1) * ULP * 40
    assert lab.meter.rounds == 1


def test_products_are_exact_integers_modulo_the_smaller_ring() -> None:
    lab = Lab()
    x, y = integers(lab, (500,), 23), integers(lab, (500,), 23)
    a, b = lab.run(parallel(open_wire(lab.rt, lab.words(x, 5, 50)), open_wire(lab.rt, lab.words(y, 7, 61))))
    out = multiply_wires(lab.rt, a, b)
    assert (out.frac, out.ring) == (12, 50) and torch.equal(words_of(out), x * y)


@given(st.integers(4, 64), st.integers(1, 40), seeds)
def test_shrink_is_right_to_one_unit(ring: int, shift: int, number: int) -> None:
    lab = Lab(number=number)
    if shift > ring - 3:
        return
    words = integers(lab, (400,), ring - 2)
    x = lab.words(words, 40, ring)
    out = rescale(x, 40 - shift)
    assert out.ring == ring - shift and out.frac == 40 - shift
    # Exact comparison in integers: |out · 2^shift - words| ≤ 2^shift, modulo the ring.
    assert int(sign_extend((out.data.sum(0) << shift) - words, ring).abs().max()) <= 1 << shift
    back = rescale(out, 40)
    assert back.ring == ring  # raising the scale restores the ring bits that lowering it took


@pytest.mark.parametrize("shift", [1, 2, 7, 18])
def test_shrink_and_lift_are_unbiased(shift: int) -> None:
    lab = Lab()
    for word in (5, -3, 12345):
        x = lab.words(torch.full((200_000,), word), shift)
        for out in (rescale(x, 0), lab.run(lift(lab.rt, x, 0))):
            mean = float(words_of(out).double().mean())
            # Standard deviation of one truncation is at most 1/2; 200,000 of them.
            assert abs(mean - word / 2**shift) <= 6 * 0.5 / 200_000**0.5 + 2.0**-shift * (out.ring < 64)


@given(st.integers(20, 64), st.integers(0, 60), seeds)
@settings(max_examples=200)
def test_lift_keeps_the_most_significant_bit(ring: int, shift: int, number: int) -> None:
    lab = Lab(number=number)
    if shift > ring - 2:
        with pytest.raises(ProtocolError, match="truncation"):
            lab.run(lift_words(lab.rt, lab.words(torch.zeros(3, dtype=torch.int64), 0, ring).data, ring, shift))
        return
    words = integers(lab, (3000,), ring - 2)
    data = lab.words(words, 0, ring).data
    out = lab.run(lift_words(lab.rt, data, ring, shift)).sum(0)  # the full ring
    # In units of the result: shifted back, a wrap of the full ring would vanish.
    assert set((out - (words >> shift)).tolist()) <= ({0, 1} if shift else {0})
    rounds = int((ring, shift) != (64, 0))  # nothing to do in the full ring without a shift
    assert lab.meter.rounds == rounds and lab.meter.bytes_sent == rounds * 3000 * ((ring + 7) // 8)


@given(st.integers(20, 32), st.integers(0, 28), seeds)
def test_lift_of_32_bit_words(ring: int, shift: int, number: int) -> None:
    lab = Lab(number=number)
    shift = min(shift, ring - 2)
    words = integers(lab, (3000,), ring - 2)
    data = lab.words(words, 0, ring).data.to(torch.int32)
    out = lab.run(lift_words(lab.rt, data, ring, shift))
    assert out.dtype == torch.int64
    assert set((out.sum(0) - (words >> shift)).tolist()) <= ({0, 1} if shift else {0})


@given(st.integers(16, 40), st.integers(0, 45), st.integers(40, 64), seeds)
def test_lift_between_any_two_scales(frac: int, target: int, ring: int, number: int) -> None:
    lab = Lab(number=number)
    target = max(target, frac - ring + 2)
    bits = min(ring - 2, 61 - max(target - frac, 0))
    words = integers(lab, (300,), bits)
    x = lab.words(words, frac, ring)
    out: Shares = lab.run(lift(lab.rt, x, target))
    assert (out.frac, out.ring) == (target, 64)
    assert worst(words_of(out).double(), words.double() * 2.0 ** (target - frac)) <= max(1.0, 2.0 ** (bits - 52 + target - frac))
    again = lab.run(lift(lab.rt, x, target))
    assert torch.equal(words_of(again), words_of(out))


def test_lift_is_free_where_nothing_is_to_do_and_kept_for_reuse() -> None:
    lab = Lab()
    x = lab.share(torch.randn(5))
    assert lab.run(normal(lab.rt, x)) is x and lab.meter.rounds == 0
    assert lab.run(lift(lab.rt, x, FRAC + 3)).frac == FRAC + 3 and lab.meter.rounds == 0
    y = lab.share(torch.randn(5), 30)
    assert lab.run(normal(lab.rt, y)) is lab.run(normal(lab.rt, y)) and lab.meter.rounds == 1


def test_headroom_is_found_or_refused() -> None:
    lab = Lab()
    x = lab.share(torch.ones(3), 36)
    lifted = lab.run(with_headroom(lab.rt, x, FRAC))
    assert lifted.frac == FRAC and lifted.headroom - FRAC >= lab.rt.headroom
    with pytest.raises(ProtocolError, match="integer bits"):
        lab.run(with_headroom(lab.rt, x, FRAC + 20))


def test_a_ring_without_bits_is_refused() -> None:
    with pytest.raises(ProtocolError, match="ring of 0 bits"):
        Shares(torch.zeros(2, 3, dtype=torch.int64), 4, 0)
    with pytest.raises(ProtocolError, match="ring"):
        rescale(Lab().share(torch.ones(2), 30, 20), 5)


def test_shrink_leaves_its_operand_alone() -> None:
    data = torch.arange(10, dtype=torch.int64).view(2, 5)
    before = data.clone()
    for shift in (-2, 0, 3):
        shrink(data, shift)
    assert torch.equal(data, before)
