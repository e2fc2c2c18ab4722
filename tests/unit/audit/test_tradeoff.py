"""The f-DP audit: its recursion against a linear program, its p-values against exact and simulated mechanisms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import linprog

from privtensors.accounting import SampledGaussian, cost
from privtensors.audit import Outcome, PrivacyCurve, curve_p_value, play, refutes, schedule_lower_bound
from privtensors.errors import InvalidInput


def most_likely(outcome: Outcome, curve: PrivacyCurve) -> float:
    """The largest P[W >= v] that the theorem's inequalities allow, over all laws of W: a linear program."""
    m, r, v = outcome.canaries, outcome.guesses, outcome.correct
    rows, limits = [], []
    for c in range(1, v + 1):
        for epsilon, delta in zip(curve.epsilons, curve.deltas, strict=True):
            right = np.array([i / m if i >= c else 0.0 for i in range(r + 1)])
            wrong = np.array([(r - i) / m if i >= c - 1 else 0.0 for i in range(r + 1)])
            rows.append(right - math.exp(epsilon) * wrong)
            limits.append(delta)
    reached = np.array([-1.0 if i >= v else 0.0 for i in range(r + 1)])
    found = linprog(reached, A_ub=np.array(rows), b_ub=limits, A_eq=np.ones((1, r + 1)), b_eq=[1.0], bounds=(0, 1))
    assert found.status == 0
    return float(-found.fun)


CURVES = {
    "0.7": PrivacyCurve.approximate(0.7, 0.0),
    "1, 0.02": PrivacyCurve.approximate(1.0, 0.02),
    "two lines": PrivacyCurve(np.array([-1.0, 0.0, 0.5, 2.0]), np.array([0.7, 0.3, 0.15, 0.01])),
}


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize(("m", "r", "v"), [(12, 12, 9), (12, 12, 12), (20, 10, 8), (15, 6, 4), (9, 9, 1), (30, 14, 11)])
def test_recursion_is_the_linear_program(name: str, m: int, r: int, v: int) -> None:
    outcome = Outcome(m, r, v)
    assert curve_p_value(outcome, CURVES[name]) == pytest.approx(most_likely(outcome, CURVES[name]), rel=0.02, abs=1e-9)


@pytest.mark.parametrize("mu", [0.2, 1.0, 2.5])
def test_valid_for_the_gaussian_mechanism(mu: float) -> None:
    # Every coordinate is guessed by its sign: the number of right guesses is binomial.
    law, curve = stats.binom(60, stats.norm.cdf(mu / 2)), PrivacyCurve.gaussian(mu)
    for correct in range(61):
        assert law.sf(correct - 1) <= curve_p_value(Outcome(60, 60, correct), curve) + 1e-12


@pytest.mark.parametrize("guesses", [40, 120, 400])
def test_valid_with_abstention(guesses: int) -> None:
    random, mu, m, runs, level = np.random.default_rng(2), 1.2, 400, 1500, 0.05
    curve = PrivacyCurve.gaussian(mu)
    bar = next((v for v in range(guesses + 1) if refutes(Outcome(m, guesses, v), curve, level)), guesses + 1)
    refuted = 0
    for _ in range(runs):
        coins = random.random(m) < 0.5
        refuted += play(mu * coins + random.standard_normal(m), coins, guesses).correct >= bar
    assert stats.binom.sf(refuted - 1, runs, level) > 1e-6


def test_valid_for_sampled_steps() -> None:
    random, sigma, rate, steps, m, runs, level = np.random.default_rng(4), 1.5, 0.3, 8, 300, 1000, 0.1
    curve = PrivacyCurve.sampled_gaussian(SampledGaussian(sigma, rate, steps))
    bar = next(v for v in range(61) if refutes(Outcome(m, 60, v), curve, level))
    refuted = 0
    for _ in range(runs):
        coins = random.random(m) < 0.5
        seen = (random.random((steps, m)) < rate) * coins + sigma * random.standard_normal((steps, m))
        ratio = np.logaddexp(math.log(1 - rate), math.log(rate) + (seen - 0.5) / sigma**2).sum(0)
        refuted += play(ratio, coins, 60).correct >= bar
    assert 0 < bar <= 60 and stats.binom.sf(refuted - 1, runs, level) > 1e-6


def test_full_batch_is_gaussian_dp() -> None:
    sampled, exact = PrivacyCurve.sampled_gaussian(SampledGaussian(4.0, 1.0, 4)), PrivacyCurve.gaussian(0.5)
    near = np.abs(exact.epsilons) < 3
    assert np.all(sampled.deltas[near] >= exact.deltas[near] - 1e-6)
    assert np.allclose(sampled.deltas[near], exact.deltas[near], atol=2e-3)


def test_more_noise_is_refuted_by_more() -> None:
    outcome = Outcome(2000, 400, 300)
    found = [refutes(outcome, PrivacyCurve.gaussian(mu), 1e-3) for mu in (0.05, 0.2, 0.5, 1.0, 2.0, 4.0)]
    assert found == sorted(found, reverse=True) and found[0] and not found[-1]


SCHEDULE = SampledGaussian(3.43, 0.2, 50)


def expected_right(sigma: float, guesses: int, seed: int, m: int = 2000) -> Outcome:
    random = np.random.default_rng(seed)
    coins = random.random(m) < 0.5
    seen = (random.random((50, m)) < 0.2) * coins + sigma * random.standard_normal((50, m))
    ratio = np.logaddexp(math.log(0.8), math.log(0.2) + (seen - 0.5) / sigma**2).sum(0)
    return play(ratio, coins, guesses)


def test_schedule_bound_is_below_the_truth_and_says_something() -> None:
    truth = cost(SCHEDULE, 1e-6).epsilon
    found = [schedule_lower_bound(expected_right(3.43, 400, seed), SCHEDULE, 1e-6) for seed in range(2)]
    assert max(found) < truth and max(found) > 0.1 * truth
    # From what a quarter of the noise gives away, the search arrives at far more, and below that run's own ε.
    quarter = SampledGaussian(3.43 / 4, 0.2, 50)
    above = schedule_lower_bound(expected_right(3.43 / 4, 400, 0), SCHEDULE, 1e-6)
    assert truth < above < cost(quarter, 1e-6).epsilon


def test_schedule_bound_agrees_with_the_curve() -> None:
    outcome = expected_right(3.43 / 2, 400, 1)
    claimed = cost(SCHEDULE, 1e-6).epsilon
    for confidence in (0.6, 0.999):
        above = schedule_lower_bound(outcome, SCHEDULE, 1e-6, confidence) > claimed * 1.01
        assert above == refutes(outcome, PrivacyCurve.sampled_gaussian(SCHEDULE), 1 - confidence) or not above


def test_nothing_known_nothing_refuted() -> None:
    assert schedule_lower_bound(Outcome(2000, 400, 205), SCHEDULE, 1e-6) == 0.0
    assert curve_p_value(Outcome(2000, 400, 180), PrivacyCurve.gaussian(0.1)) == 1.0


def test_everything_right_is_bounded_by_the_search() -> None:
    assert schedule_lower_bound(Outcome(2000, 400, 400), SCHEDULE, 1e-6) > 4


def test_bad_delta() -> None:
    with pytest.raises(InvalidInput):
        schedule_lower_bound(Outcome(20, 4, 4), SCHEDULE, 0.0)
