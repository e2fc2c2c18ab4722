"""What is promised of rows is enforced before they are added up, whatever computed them."""

from __future__ import annotations

import math

import pytest
import torch

from privtensors.backends.dp.contributions import contributions, summed
from privtensors.backends.dp.payload import Interval, Rows, multiplicity
from privtensors.errors import UnboundedSensitivity


def rows(value: torch.Tensor, low: float, high: float, units: list[int] | None = None, **norms: float) -> Rows:
    """Rows that claim a range and norms, true or not."""
    ids = torch.arange(len(value)) if units is None else torch.tensor(units)
    shape = (1, *value.shape[1:])
    bounds = Interval(torch.full(shape, low, dtype=torch.float64), torch.full(shape, high, dtype=torch.float64))
    return Rows(value.double(), 0, ids, torch.ones(int(ids.max()) + 1, dtype=torch.bool), bounds, torch.float32, **norms)


WILD = torch.tensor([[5.0, -9.0], [1e30, 2.0], [math.nan, 1.0], [math.inf, 0.0], [0.5, 0.5]])


def test_entries_are_clamped_to_their_range() -> None:
    out = contributions(rows(WILD, -1.0, 2.0), "sum", terms=5)
    assert out.tolist() == [[2.0, -1.0], [2.0, 2.0], [0.0, 0.0], [0.0, 0.0], [0.5, 0.5]]


def test_zero_is_zero_also_where_the_range_has_no_zero() -> None:
    assert contributions(rows(WILD, 0.25, 2.0), "sum", terms=5)[2:4].abs().max() == 0


@pytest.mark.parametrize(("order", "name"), [(1.0, "l1"), (2.0, "l2")])
@pytest.mark.parametrize("units", [None, [0, 1, 2, 0, 0], [0, 0, 0, 0, 0]])
def test_units_are_scaled_down_to_their_norms(order: float, name: str, units: list[int] | None) -> None:
    generator = torch.Generator().manual_seed(4)
    value = torch.randn(5, 30, generator=generator) * torch.tensor([[1e-3], [1.0], [30.0], [5.0], [100.0]])
    claimed = rows(value, -1000.0, 1000.0, units, **{name: 7.0})
    out = contributions(claimed, "sum", terms=5)
    for unit in set(claimed.units.tolist()):
        own = out[claimed.units == unit].flatten()
        assert float(torch.linalg.vector_norm(own, order)) <= 7.0
        assert float(torch.linalg.vector_norm(own, order)) > 6.99 or torch.allclose(own, value.double()[claimed.units == unit].flatten())


def test_dead_records_stay_dead() -> None:
    claimed = rows(torch.ones(3, 2), 0.0, 1.0)
    claimed.alive[1] = False
    assert contributions(claimed, "sum", terms=3).sum(1).tolist() == [2.0, 0.0, 2.0]


def test_sums_are_exact_in_any_order() -> None:
    value = torch.randn(10_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).exp()
    out = contributions(rows(value, 0.0, 100.0), "sum", terms=len(value)).flatten()
    assert len({float(out[torch.randperm(len(out))].sum()) for _ in range(5)} | {math.fsum(out.tolist()), float(out.cumsum(0)[-1])}) == 1
    assert (out <= value.flatten()).all() and (value.flatten() - out).max() < 2.0**-30


def test_whole_numbers_are_counted_as_they_are() -> None:
    counted = rows(torch.ones(1000, 1), 0.0, 1.0)
    counted.integral = True
    assert summed(counted, [0], False, torch.int64, "sum").value.tolist() == [1000.0]


def test_without_a_range_nothing_is_added_up() -> None:
    with pytest.raises(UnboundedSensitivity):
        contributions(rows(WILD, -math.inf, 1.0), "sum", terms=5)


def test_multiplicity() -> None:
    assert multiplicity(torch.tensor([3, -1, -1, -1, 3, 0])) == 2 and multiplicity(torch.tensor([-1, -1])) == 0
