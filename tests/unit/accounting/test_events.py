"""Events as data: checked when made, exact in JSON, counted together, and mapped to dp-accounting."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace

import dp_accounting
import pytest

from privtensors.accounting import Account, Composed, Gaussian, Laplace, Relation, Release, SampledGaussian, ZeroConcentrated
from privtensors.accounting.events import (
    Event,
    account_from_json,
    event_from_json,
    event_to_json,
    group,
    release_from_json,
    release_to_json,
    to_dp_event,
    to_dp_relation,
)
from privtensors.errors import InvalidInput, MissingExtra

EVENTS: tuple[Event, ...] = (
    Gaussian(1.1),
    Laplace(0.5),
    SampledGaussian(0.7, 256 / 67349, 2367),
    ZeroConcentrated(0.1),
    Composed((Gaussian(1.0), Composed((Laplace(3.0),), 2)), 10),
)


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_survives_json_exactly(event: Event) -> None:
    release = Release(Account("reviews", "user", Relation.ADD_REMOVE), event, "dp_sgd", "ab12")
    assert event_from_json(json.loads(json.dumps(event_to_json(event)))) == event
    assert release_from_json(json.loads(json.dumps(release_to_json(release)))) == release
    assert release_to_json(release)["fingerprint"] == "ab12" and release.fingerprints == ("ab12",)
    several = replace(release, fingerprint=("ab12", "cd34"))
    assert release_from_json(json.loads(json.dumps(release_to_json(several)))) == several and several.fingerprints == ("ab12", "cd34")
    assert replace(release, fingerprint="").fingerprints == ()
    for bad in ((), ("ab",), ("ab", "ab"), ("ab", ""), ("ab", 3), ["ab", "cd"], 3):
        with pytest.raises(InvalidInput):
            replace(release, fingerprint=bad)
    for worse in (3, None, {"ab": 1}, ["ab"], ["ab", ["cd"]]):
        with pytest.raises(InvalidInput):
            release_from_json({**release_to_json(release), "fingerprint": worse})


@pytest.mark.parametrize("noise", [0.0, -1.0, math.inf, math.nan, "1", True, None])
def test_an_event_without_noise_is_no_event(noise: float) -> None:
    for make in (Gaussian, Laplace, ZeroConcentrated, lambda value: SampledGaussian(value, 0.1)):
        with pytest.raises(InvalidInput):
            make(noise)


@pytest.mark.parametrize(("rate", "steps"), [(0.0, 1), (1.01, 1), (math.nan, 1), (0.1, 0), (0.1, 1.0), (0.1, True), (0.1, 10**13)])
def test_sampling_is_checked(rate: float, steps: int) -> None:
    with pytest.raises(InvalidInput):
        SampledGaussian(1.0, rate, steps)


def test_compositions_are_checked() -> None:
    for events, count in (((), 1), (("gaussian",), 1), ((Gaussian(1.0),), 0)):
        with pytest.raises(InvalidInput):
            Composed(events, count)  # type: ignore[arg-type]
    deep: Event = Gaussian(1.0)
    with pytest.raises(InvalidInput, match="nested"):
        for _ in range(20):
            deep = Composed((deep,))


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"kind": "gaussian"},
        {"kind": "gaussian", "noise_multiplier": 1.0, "steps": 2},
        {"kind": "gaussian", "noise_multiplier": -1.0},
        {"kind": "skellam", "noise_multiplier": 1.0},
        {"kind": ["gaussian"]},
        {"kind": "composed", "count": 1, "events": "gaussian"},
    ],
)
def test_a_malformed_event_is_refused(value: object) -> None:
    with pytest.raises(InvalidInput):
        event_from_json(value)


def test_a_malformed_account_is_refused() -> None:
    for value in (
        {"dataset": "a", "unit": "row", "relation": "other"},
        {"dataset": "a", "unit": "row"},
        {"dataset": 1, "unit": "", "relation": 2},
    ):
        with pytest.raises(InvalidInput):
            account_from_json(value)
    for name in ("", " a", "a\n", "x" * 201):
        with pytest.raises(InvalidInput):
            Account(name)


def test_equal_events_are_counted_together() -> None:
    events = [SampledGaussian(1.0, 0.1, 5), Composed((SampledGaussian(1.0, 0.1, 2), Gaussian(3.0)), 4), SampledGaussian(3.0, 1.0, 2)]
    groups = group(events)
    assert dict(groups.counts) == {SampledGaussian(1.0, 0.1): 13, Gaussian(3.0): 6}  # a rate of 1 is no sampling
    assert groups == group(reversed(events)) == group(events[:1]) + group(events[1:])
    assert group(events[:2]).within(groups) and not groups.within(group(events[:2]))


def test_events_map_to_dp_accounting() -> None:
    step = dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.GaussianDpEvent(1.0))
    assert to_dp_event(SampledGaussian(1.0, 0.1, 5)) == dp_accounting.SelfComposedDpEvent(step, 5)
    inner = dp_accounting.ComposedDpEvent([dp_accounting.LaplaceDpEvent(2.0), dp_accounting.ZCDpEvent(0.1)])
    assert to_dp_event(Composed((Laplace(2.0), ZeroConcentrated(0.1)), 3)) == dp_accounting.SelfComposedDpEvent(inner, 3)
    assert to_dp_relation(Relation.ZERO_OUT) is dp_accounting.NeighboringRelation.REPLACE_SPECIAL
    assert to_dp_relation(Relation.ADD_REMOVE) is dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    assert Account("a").relation is Relation.ZERO_OUT


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(MissingExtra, match=r"pip install privtensors\[dp\]"):
        to_dp_event(Gaussian(1.0))
