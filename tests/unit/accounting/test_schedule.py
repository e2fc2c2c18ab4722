"""ε after each step of a planned run: never too small, close to the exact figure, and ready in time for a progress bar."""

from __future__ import annotations

import math
import time

import pytest

from privtensors.accounting import Gaussian, Laplace, PLDAccountant, Relation, SampledGaussian, epsilon_curve
from privtensors.accounting.events import EventGroups, group
from privtensors.errors import InvalidInput

SST2 = SampledGaussian(0.7, 256 / 67349, 2367)
SPENT = group([Laplace(2.0), Gaussian(8.0)])
FINE = PLDAccountant(2e-4)


@pytest.mark.parametrize(
    ("planned", "spent"),
    [(SST2, EventGroups()), (SST2, SPENT), (SampledGaussian(20.0, 0.3, 37), EventGroups()), (SampledGaussian(50.0, 1.0, 300), SPENT)],
)
def test_never_too_small_and_close(planned: SampledGaussian, spent: EventGroups) -> None:
    found = epsilon_curve(planned, 1e-5, spent=spent)
    assert found.steps[0] == 0 and found.steps[-1] == planned.steps and len(found.steps) <= 64
    assert list(found.epsilons) == sorted(found.epsilons)
    for step in {1, 2, planned.steps // 30, planned.steps // 3, planned.steps - 1, planned.steps} - {0}:
        exact = FINE.epsilon(spent + group(SampledGaussian(planned.noise_multiplier, planned.sampling_rate, step)), 1e-5)
        assert exact * (1 - 2e-4) <= found.at(step) <= exact * 1.15
    assert found.at(planned.steps) == pytest.approx(FINE.epsilon(spent + group(planned), 1e-5), rel=5e-3)
    assert found.at(0) == pytest.approx(FINE.epsilon(spent, 1e-5), rel=5e-3)


def test_between_entries_the_next_one_answers() -> None:
    found = epsilon_curve(SampledGaussian(2.0, 0.01, 1000), 1e-5, points=10)
    for step in range(1, 1001, 37):
        later = min(entry for entry in found.steps if entry >= step)
        assert found.at(step) == found.epsilons[found.steps.index(later)]


def test_one_step_and_odd_numbers() -> None:
    for steps in (1, 2, 3, 41, 83):
        planned = SampledGaussian(1.0, 0.1, steps)
        found = epsilon_curve(planned, 1e-5)
        assert found.steps[-1] == steps and len(set(found.steps)) == len(found.steps)
        assert found.at(steps) == pytest.approx(FINE.epsilon(group(planned), 1e-5), rel=5e-3)


def test_the_relation_is_used() -> None:
    assert epsilon_curve(SST2, 1e-5, relation=Relation.ADD_REMOVE).at(2367) == pytest.approx(
        FINE.epsilon(group(SST2), 1e-5, Relation.ADD_REMOVE), rel=5e-3
    )


def test_asking_is_cheap() -> None:
    start = time.process_time()
    found = epsilon_curve(SST2, 1e-5)
    ready = time.process_time() - start
    start = time.process_time()
    for _ in range(10_000):
        found.at(1234)
    assert ready < 5 and time.process_time() - start < 0.5


def test_bad_input() -> None:
    found = epsilon_curve(SampledGaussian(2.0, 0.01, 10), 1e-5)
    for step in (-1, 11, 1.0, True):
        with pytest.raises(InvalidInput, match="between 0 and 10"):
            found.at(step)  # type: ignore[arg-type]
    for delta, points in ((0.0, 40), (math.nan, 40), (1e-5, 0), (1e-5, 1.5)):
        with pytest.raises(InvalidInput):
            epsilon_curve(SST2, delta, points=points)  # type: ignore[arg-type]
