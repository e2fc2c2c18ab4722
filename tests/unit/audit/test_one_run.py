"""The bound of Steinke, Nasr and Jagielski: exact where the answer is known, never above the true ε but by chance."""

from __future__ import annotations

import functools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from privtensors.audit import Outcome, epsilon_lower_bound, p_value, play
from privtensors.errors import InvalidInput


def accuracy(epsilon: float) -> float:
    return 1 / (1 + math.exp(-epsilon))


def failure_rate(size: int, epsilon: float, confidence: float) -> float:
    """The exact probability that the bound is above the ε of randomised response on ``size`` coins, all guessed."""
    law = stats.binom(size, accuracy(epsilon))
    low, high = 0, size + 1  # the smallest number of right guesses with a bound above ε
    while low < high:
        middle = (low + high) // 2
        if middle <= size and epsilon_lower_bound(Outcome(size, size, middle), 0.0, confidence) <= epsilon:
            low = middle + 1
        else:
            high = middle
    return float(law.sf(low - 1))


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0, 2.5, 4.0])
@pytest.mark.parametrize("size", [20, 300, 2000])
def test_randomised_response_fails_as_often_as_it_may(size: int, epsilon: float) -> None:
    assert failure_rate(size, epsilon, 0.999) <= 0.001
    assert failure_rate(size, epsilon, 0.9) <= 0.1
    if size == 2000 and epsilon <= 2.5:
        assert failure_rate(size, epsilon, 0.9) > 0.05  # and not much more rarely: the bound is tight


def test_simulated_randomised_response() -> None:
    random, epsilon, above = np.random.default_rng(5), 1.5, 0
    bound = functools.cache(lambda outcome: epsilon_lower_bound(outcome, 0.0, 0.95))
    found = []
    for _ in range(400):
        coins = random.random(500) < 0.5
        answers = np.where(random.random(500) < accuracy(epsilon), coins, ~coins)
        outcome = play(answers + 0.001 * random.random(500), coins, 500)
        found.append(bound(outcome))
        above += found[-1] > epsilon
    assert stats.binom.sf(above - 1, 400, 0.05) > 1e-6
    assert 1.1 < np.median(found) < 1.5


def test_close_to_the_truth_with_many_canaries() -> None:
    right = round(200_000 * accuracy(2.0))
    assert 1.96 < epsilon_lower_bound(Outcome(200_000, 200_000, right), 0.0) < 2.0


@pytest.mark.parametrize("guesses", [7, 100, 1000])
def test_all_right_has_a_closed_form(guesses: int) -> None:
    chance = 0.001 ** (1 / guesses)
    expected = max(0.0, math.log(chance / (1 - chance)))
    assert epsilon_lower_bound(Outcome(2000, guesses, guesses), 0.0) == pytest.approx(expected, abs=1e-5)


@given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 5), st.sampled_from([0.0, 0.4, 1.1, 3.0]), st.sampled_from([0.0, 1e-3, 0.01]))
def test_p_value_is_the_formula(guesses: int, correct: int, silent: int, epsilon: float, delta: float) -> None:
    correct = min(correct, guesses)
    q = Fraction(accuracy(epsilon))
    law = [Fraction(math.comb(guesses, i)) * q**i * (1 - q) ** (guesses - i) for i in range(guesses + 1)]
    beta = sum(law[correct:])
    alpha = max((sum(law[correct - i : correct]) / i for i in range(1, correct + 1)), default=Fraction(0))
    total = guesses + silent
    expected = min(1.0, float(beta + 2 * total * Fraction(delta) * alpha))
    assert p_value(Outcome(total, guesses, correct), epsilon, delta) == pytest.approx(expected, rel=1e-9, abs=1e-15)


@given(st.integers(1, 60), st.data())
def test_monotone_in_epsilon_and_delta(guesses: int, data: st.DataObject) -> None:
    outcome = Outcome(80, guesses, data.draw(st.integers(0, guesses)))
    low, high = sorted(data.draw(st.tuples(st.floats(0, 8), st.floats(0, 8))))
    small, large = sorted(data.draw(st.tuples(st.floats(0, 1 / 160), st.floats(0, 1 / 160))))
    assert p_value(outcome, low, small) <= p_value(outcome, high, small) + 1e-12
    assert p_value(outcome, low, small) <= p_value(outcome, low, large) + 1e-12


@pytest.mark.parametrize("correct", [80, 90, 99, 100])
def test_a_mechanism_that_sometimes_tells_everything(correct: int) -> None:
    # Randomised response that publishes all coins with probability δ is (ε, δ)-DP.
    epsilon, delta = 1.0, 1e-3
    exact = (1 - delta) * stats.binom.sf(correct - 1, 100, accuracy(epsilon)) + delta
    assert exact <= p_value(Outcome(100, 100, correct), epsilon, delta)
    assert epsilon_lower_bound(Outcome(100, 100, 100), delta) == 0.0  # at the confidence of its δ nothing can be said
    assert epsilon_lower_bound(Outcome(100, 100, 100), 0.0) > 2


def test_play_guesses_both_ends_and_abstains() -> None:
    scores = np.array([5.0, -4.0, 3.0, 0.0, -9.0, 0.1])
    coins = np.array([True, True, False, True, False, False])
    assert play(scores, coins, 2) == Outcome(6, 2, 2)  # 5.0 is in, -9.0 is out
    assert play(scores, coins, 4) == Outcome(6, 4, 2)


def test_ties_are_not_broken_by_the_coins() -> None:
    random = np.random.default_rng(1)
    right = [play(np.zeros(1000), random.random(1000) < 0.5, 1000).correct for _ in range(50)]
    assert abs(np.mean(right) - 500) < 15


@pytest.mark.parametrize(
    "call",
    [
        lambda: Outcome(10, 5, 6),
        lambda: Outcome(10, 11, 6),
        lambda: Outcome(0, 0, 0),
        lambda: p_value(Outcome(10, 5, 5), -0.1, 0.0),
        lambda: p_value(Outcome(10, 5, 5), math.inf, 0.0),
        lambda: p_value(Outcome(1000, 5, 5), 1.0, 0.001),
        lambda: epsilon_lower_bound(Outcome(10, 5, 5), 0.0, 1.0),
        lambda: play(np.zeros(4), np.zeros(4, dtype=bool), 3),
        lambda: play(np.zeros(4), np.zeros(4, dtype=bool), 6),
        lambda: play(np.array([0.0, math.nan]), np.zeros(2, dtype=bool), 2),
        lambda: play(np.zeros(4), np.zeros(5, dtype=bool), 2),
    ],
)
def test_bad_input(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InvalidInput):
        call()
