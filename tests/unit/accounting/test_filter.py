"""The privacy filter: sound parts of δ, admission exactly up to the limit, and what is left."""

from __future__ import annotations

import math

import pytest

from privtensors.accounting import Composed, FilterAccountant, Gaussian, Laplace, RDPAccountant, RenyiFilter, SampledGaussian, calibrate
from privtensors.accounting.accountants import conversion, rdp_curve
from privtensors.accounting.events import Event, EventGroups, Relation, group
from privtensors.errors import InvalidInput


@pytest.mark.parametrize("epsilon", [0.01, 0.1, 1.0, 8.0, 50.0])
@pytest.mark.parametrize("delta", [1e-9, 1e-5, 0.01])
def test_the_parts_of_delta_add_up(epsilon: float, delta: float) -> None:
    gate = RenyiFilter(epsilon, delta)
    assert gate.orders and math.fsum(gate.parts) <= delta
    for order, part, limit in zip(gate.orders, gate.parts, gate.limits, strict=True):
        assert limit > 0 and limit + conversion(order, part) == pytest.approx(epsilon)  # each order alone is (ε, its part)-DP


@pytest.mark.parametrize(
    "event", [Gaussian(9.0), Laplace(12.0), SampledGaussian(0.9, 0.01, 20), Composed((Gaussian(30.0), Laplace(40.0)), 3)]
)
def test_it_stops_before_overspending(event: Event) -> None:
    gate, spent, count = RenyiFilter(2.0, 1e-5), EventGroups(), 0
    fits = gate.fits(spent, event)
    while gate.admits(spent + group(event)):
        spent, count = spent + group(event), count + 1
        assert gate.spent(spent) <= 2.0 and gate.left(spent) == 2.0 - gate.spent(spent)
    assert 3 < count == fits and gate.fits(spent, event) == 0
    assert gate.spent(spent + group(event)) > 2.0
    # What it let through is within the budget by every bound for fixed schedules, which are smaller.
    assert RDPAccountant().epsilon(spent, 1e-5) <= gate.spent(spent)


def test_admission_needs_one_order_with_room_and_no_more() -> None:
    gate, events = RenyiFilter(2.0, 1e-5), group(Composed((Gaussian(10.0),), 15))
    curve = rdp_curve(events, gate.orders)
    room = [value <= limit for value, limit in zip(curve, gate.limits, strict=True)]
    assert any(room) and not all(room) and gate.admits(events)


def test_a_gaussian_may_use_most_of_the_budget() -> None:
    # The price of full adaptivity against the fixed schedule's RDP.
    gate = RenyiFilter(3.0, 1e-5)
    noise = calibrate(Gaussian, 3.0, 1e-5, accountant=FilterAccountant(gate))
    assert gate.admits(group(Gaussian(noise))) and RDPAccountant().epsilon(group(Gaussian(noise)), 1e-5) > 0.85 * 3.0


def test_calibration_by_the_filter_counts_what_was_spent() -> None:
    gate, spent = RenyiFilter(3.0, 1e-5), group(Gaussian(2.5))
    noise = calibrate(lambda s: SampledGaussian(s, 0.01, 300), 3.0, 1e-5, accountant=FilterAccountant(gate, spent))
    assert gate.admits(spent + group(SampledGaussian(noise, 0.01, 300)))
    assert not gate.admits(spent + group(SampledGaussian(noise * 0.98, 0.01, 300)))
    with pytest.raises(InvalidInput):
        FilterAccountant(gate).epsilon(spent, 1e-6)
    with pytest.raises(InvalidInput):
        FilterAccountant(gate).epsilon(spent, 1e-5, Relation.ADD_REMOVE)


def test_nothing_costs_nothing_and_too_small_a_budget_admits_nothing() -> None:
    gate = RenyiFilter(0.01, 1e-9)
    assert gate.admits(EventGroups()) and gate.spent(EventGroups()) == 0 and gate.left(EventGroups()) == 0.01
    assert gate.fits(EventGroups(), Gaussian(1.0)) == 0 and not gate.admits(group(Gaussian(1.0)))


@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 1e-5), (math.inf, 1e-5), (1.0, 0.0), (1.0, 1.0), (1.0, math.nan)])
def test_bad_budgets(epsilon: float, delta: float) -> None:
    with pytest.raises(InvalidInput):
        RenyiFilter(epsilon, delta)
