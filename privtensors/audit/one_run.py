"""What one run says against (ε, δ)-DP: the bound of Steinke, Nasr and Jagielski (2023)."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np

from privtensors.audit.guessing import Outcome
from privtensors.errors import InvalidInput, MissingExtra

_LARGEST = 64.0
_WIDTH = 1e-6


def p_value(outcome: Outcome, epsilon: float, delta: float) -> float:
    """An upper bound on the probability of so many right guesses if the mechanism is (ε, δ)-DP.

    Steinke, Nasr and Jagielski, "Privacy Auditing with One (1) Training Run" (NeurIPS 2023), the theorem for approximate DP:
    with W* binomial of r trials with success probability e^ε / (1 + e^ε),

        P[W >= v]  <=  P[W* >= v] + 2 m δ · max over i = 1..v of P[v - i <= W* < v] / i.

    The coins must be fair and independent, neighbours differ in one canary, and the number of guesses r must be fixed
    beforehand. How the guesses are made is free.

    Args:
        outcome: Of the game.
        epsilon: At least 0.
        delta: In [0, 1 / (2 m)]. Beyond that the bound is no longer monotone in ε, and says next to nothing.

    Raises:
        InvalidInput: ε or δ is out of range.
        MissingExtra: scipy is not installed.
    """
    if not 0 <= epsilon < math.inf:
        raise InvalidInput(f"epsilon is {epsilon}", where="audit", fix="Give a finite number of at least 0")
    check_delta(delta, outcome.canaries)
    binomial = scipy_stats().binom(outcome.guesses, 1 / (1 + math.exp(-epsilon)))
    beta = float(binomial.sf(outcome.correct - 1))
    if outcome.correct == 0 or delta == 0:
        return min(1.0, beta)
    below = np.cumsum(binomial.pmf(np.arange(outcome.correct - 1, -1, -1)))
    alpha = float((below / np.arange(1, outcome.correct + 1)).max())
    return min(1.0, beta + 2 * outcome.canaries * delta * alpha)


def epsilon_lower_bound(outcome: Outcome, delta: float, confidence: float = 0.999) -> float:
    """The largest ε that ``outcome`` refutes at δ; 0 where it refutes none. Errors as :func:`p_value`.

    If the mechanism is (ε, δ)-DP, the result is above ε with probability at most 1 - ``confidence``. Several outcomes of one
    run need a union bound: divide 1 - ``confidence`` among them.
    """
    significance = check_confidence(confidence)
    if p_value(outcome, 0.0, delta) >= significance:
        return 0.0
    low, high = 0.0, _LARGEST
    while high - low > _WIDTH:  # the bound grows with ε where 2 m δ <= 1: refuted from 0 to one place
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(outcome, middle, delta) < significance else (low, middle)
    return low


def check_delta(delta: float, canaries: int) -> float:
    """``delta``, or InvalidInput unless it is in [0, 1 / (2 · canaries)]."""
    if not 0 <= delta <= 1 / (2 * canaries):
        fix = f"Give delta from 0 to {1 / (2 * canaries):.1g}, or take fewer canaries"
        raise InvalidInput(f"delta is {delta} with {canaries} canaries", where="audit", fix=fix)
    return delta


def check_confidence(confidence: float) -> float:
    """1 - ``confidence``, or InvalidInput unless it is in (0, 1)."""
    if not (isinstance(confidence, float) and 0 < confidence < 1):
        raise InvalidInput(f"confidence is {confidence!r}", where="audit", fix="Give a float below 1, e.g. 0.999")
    return 1 - confidence


def scipy_stats() -> ModuleType:
    """``scipy.stats``, imported when first needed; dp-accounting brings it along.

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        from scipy import stats  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtra("scipy is not installed", where="audit", fix="Run: pip install privtensors[dp]") from error
    module: ModuleType = stats
    return module
