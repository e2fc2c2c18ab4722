"""Index of the largest element on shares, against torch: exact on the fixed-point values, ties to the lowest index."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privtensors.backends.mpc import costs
from privtensors.backends.mpc.protocols.argmax import RANGE_BITS, argmax, fan_ins, levels
from privtensors.core.kernel import Cost
from privtensors.errors import InvalidInput
from tests.unit.backends.mpc.harness import FRAC, ULP, JunkChannel, Lab, same, words_of

seeds = st.integers(0, 2**20)


@given(st.integers(1, 40) | st.sampled_from([64, 65, 130, 512, 513, 700]), st.integers(0, 3), st.integers(0, 18), seeds)
@settings(max_examples=60, deadline=None)
def test_as_torch(length: int, rows: int, coarse: int, number: int) -> None:
    """With ``coarse`` bits dropped from every value, many are equal."""
    lab = Lab(number=number)
    units = torch.randint(-(1 << 24), 1 << 24, (rows, length), generator=lab.generator) >> coarse << coarse
    x = lab.words(units, FRAC)
    cost = costs.argmax(lab.backend, x, -1)
    got = lab.run(argmax(lab.rt, x))
    assert torch.equal(words_of(got), units.argmax(-1))
    assert got.dtype == torch.int64 and got.frac == 0 and got.ring == 64
    assert Cost(lab.meter.rounds, lab.meter.bytes_sent) == (cost if rows else Cost(cost.rounds, 0))


@pytest.mark.parametrize("length", [2, 3, 4, 7, 33])
def test_every_place_can_win_and_one_unit_decides(length: int) -> None:
    lab = Lab()
    units = torch.zeros(length, length, dtype=torch.int64) + torch.eye(length, dtype=torch.int64)
    assert torch.equal(words_of(lab.run(argmax(lab.rt, lab.words(units, FRAC)))), torch.arange(length))
    assert torch.equal(words_of(lab.run(argmax(lab.rt, lab.words(-units, FRAC)))), torch.tensor([1] + [0] * (length - 1)))


def test_every_order_of_four() -> None:
    lab = Lab()
    rows = torch.tensor(list(itertools.product((-1, 0, 2), repeat=4)))
    assert torch.equal(words_of(lab.run(argmax(lab.rt, lab.words(rows, FRAC)))), rows.argmax(-1))


def test_values_of_the_whole_range() -> None:
    """Padding of the last group must lose to the smallest value there is."""
    lab = Lab()
    edge = (1 << (RANGE_BITS - 1 + FRAC)) - 1
    low = torch.full((1, 33), -edge)
    high = low.clone()
    high[0, 32] = edge
    assert int(words_of(lab.run(argmax(lab.rt, lab.words(low, FRAC))))) == 0
    assert int(words_of(lab.run(argmax(lab.rt, lab.words(high, FRAC))))) == 32


def test_a_finer_value_is_rounded_first_and_decided_to_two_units() -> None:
    lab = Lab()
    x = torch.randn(40, 50, generator=lab.generator, dtype=torch.float64)
    got = words_of(lab.run(argmax(lab.rt, lab.share(x, 30, 60))))
    chosen = x.gather(-1, got.unsqueeze(-1)).squeeze(-1)
    assert (x.amax(-1) - chosen).max() <= 2 * ULP
    assert lab.meter.rounds == 1 + 10  # 50 elements: pairs, then 25


def test_junk_above_the_ring_and_packed_messages_change_nothing() -> None:
    same(lambda lab: lab.run(argmax(lab.rt, lab.share(torch.linspace(-3, 3, 90).flip(0).view(2, 45)))))
    lab = Lab(JunkChannel())
    assert int(words_of(lab.run(argmax(lab.rt, lab.share(torch.linspace(-3, 3, 45)))))) == 44


@given(st.integers(1, 60_000))
def test_levels_end_at_one_and_cover_every_element(length: int) -> None:
    left = length
    for groups, size in levels(length):
        assert groups * size >= left > (groups - 1) * size
        left = groups
    assert left == 1
    for width, results in fan_ins(length):
        assert 1 < width <= 6 and results >= 1


def test_no_element_is_refused() -> None:
    lab = Lab()
    with pytest.raises(InvalidInput, match="no element"):
        lab.kernel("argmax", "A", lab.share(torch.zeros(2, 0)), 1)
    with pytest.raises(InvalidInput, match="dimension 2"):
        lab.kernel("argmax", "A", lab.share(torch.zeros(2, 3)), 2)
