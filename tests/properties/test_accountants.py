"""Accounting under arbitrary events: JSON and grouping lose nothing, bounds are ordered, books balance."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from privtensors.accounting import (
    Composed,
    Gaussian,
    Laplace,
    PLDAccountant,
    RDPAccountant,
    RenyiFilter,
    SampledGaussian,
    ZeroConcentrated,
    epsilon_curve,
)
from privtensors.accounting.accountants import coarsen, rdp_curve
from privtensors.accounting.events import Event, EventGroups, event_from_json, event_to_json, group, merge
from privtensors.accounting.profile import zcdp_distribution

NOISE = st.floats(0.3, 300)
PRIMITIVES: st.SearchStrategy[Event] = st.one_of(
    NOISE.map(Gaussian),
    NOISE.map(Laplace),
    st.builds(SampledGaussian, NOISE, st.floats(1e-5, 1), st.integers(1, 10**6)),
    st.floats(1e-6, 10).map(ZeroConcentrated),
)
EVENTS = st.recursive(
    PRIMITIVES, lambda inner: st.builds(Composed, st.lists(inner, min_size=1, max_size=3).map(tuple), st.integers(1, 1000)), max_leaves=5
).filter(lambda event: event_depth(event) <= 7)


def event_depth(event: Event) -> int:
    return 1 + max(map(event_depth, event.events)) if isinstance(event, Composed) else 0


@given(EVENTS)
def test_json_gives_the_event_back(event: Event) -> None:
    assert event_from_json(json.loads(json.dumps(event_to_json(event)))) == event


@given(st.lists(EVENTS, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_grouping_knows_no_order_and_no_nesting(events: list[Event], draw: object) -> None:
    shuffled = list(events)
    draw.shuffle(shuffled)  # type: ignore[attr-defined]
    assert group(events) == group(shuffled) == group(Composed(tuple(events))) == merge(group(event) for event in events)
    assert group(events[:-1]).within(group(events))


@given(st.lists(PRIMITIVES, min_size=1, max_size=8), st.integers(2, 4))
@settings(max_examples=25, deadline=None)
def test_coarser_is_never_cheaper(events: list[Event], limit: int) -> None:
    exact, orders = group(events), (2.0, 5.0, 32.0)
    coarse = coarsen(exact, limit)
    assert len(coarse.counts) <= limit + 2
    for rough, fine in zip(rdp_curve(coarse, orders), rdp_curve(exact, orders), strict=True):
        assert rough >= fine * (1 - 1e-9) - 1e-15


@given(st.lists(PRIMITIVES.map(lambda event: replace(event, steps=3) if isinstance(event, SampledGaussian) else event), max_size=6), NOISE)
@settings(max_examples=40, deadline=None)
def test_the_filter_is_monotone_and_above_the_fixed_schedule(events: list[Event], noise: float) -> None:
    gate, spent = RenyiFilter(2.0, 1e-5), group(events)
    more = spent + group(Gaussian(noise))
    assert gate.spent(spent) <= gate.spent(more) or math.isclose(gate.spent(spent), gate.spent(more))
    assert gate.admits(spent) or not gate.admits(more)
    if gate.admits(more):
        assert RDPAccountant().epsilon(more, 1e-5) <= gate.spent(more) * (1 + 0.02) + 1e-9 and gate.left(more) >= 0
    count = gate.fits(spent, Gaussian(noise))
    assert (count > 0) == gate.admits(more)


@given(st.floats(0.8, 30), st.floats(0.05, 1), st.integers(1, 30))
@settings(max_examples=6, deadline=None)
def test_pld_is_below_rdp_and_grows_with_steps(noise: float, rate: float, steps: int) -> None:
    one, two = (group(SampledGaussian(noise, rate, count)) for count in (steps, 2 * steps))
    pld = PLDAccountant()
    assert pld.epsilon(one, 1e-5) <= RDPAccountant().epsilon(one, 1e-5) * 1.001 + 1e-3
    assert pld.epsilon(one, 1e-5) <= pld.epsilon(two, 1e-5) * 1.001
    assert pld.epsilon(EventGroups(), 1e-5) == 0


@given(st.floats(1e-6, 20), st.floats(1e-3, 0.05))
@settings(max_examples=25, deadline=None)
def test_the_zcdp_distribution_is_a_profile_that_lies_below_every_order(rho: float, interval: float) -> None:
    found = zcdp_distribution(rho, interval)
    epsilons = [k * interval for k in range(-5, 200, 7)]
    deltas = [float(found.get_delta_for_epsilon(epsilon)) for epsilon in epsilons]
    assert all(first >= second - 1e-12 for first, second in pairwise(deltas)) and deltas[0] <= 1
    for epsilon, delta in zip(epsilons, deltas, strict=True):
        assert delta >= -math.expm1(epsilon) - 1e-9  # no pair of distributions is closer than equal ones
        if delta < 1:  # never below the exact Gaussian of that rho, which is one of the mechanisms that it must cover
            mu = math.sqrt(2 * rho)
            assert delta >= _cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * _cdf(-mu / 2 - epsilon / mu) - 1e-12


@given(NOISE.filter(lambda noise: noise > 0.6), st.floats(1e-4, 1), st.integers(1, 400), st.integers(1, 12))
@settings(max_examples=10, deadline=None)
def test_the_curve_of_a_run_is_monotone_and_never_too_small(noise: float, rate: float, steps: int, points: int) -> None:
    found = epsilon_curve(SampledGaussian(noise, rate, steps), 1e-5, points=points)
    assert list(found.epsilons) == sorted(found.epsilons) and found.steps[-1] == steps
    for step in {1, steps // 2, steps} - {0}:
        assert found.at(step) >= PLDAccountant().epsilon(group(SampledGaussian(noise, rate, step)), 1e-5) * 0.999 - 1e-4


def _cdf(x: float) -> float:
    return math.erfc(-x / math.sqrt(2)) / 2
