"""What one run says against a whole privacy curve: the f-DP audit of Mahloujifar, Melis and Chaudhuri (2025).

(ε, δ) at one δ is one line below a trade-off curve. A mechanism of known noise, rate and steps promises the whole curve, and
more guesses contradict a curve than contradict one of its lines.

**Theorem.** Let neighbours (one canary in or out) satisfy P(A) <= F(Q(A)) for every event A, with F concave and increasing. Let
r of m canaries be guessed, W of them rightly, p_i = P[W = i], R_c = sum over i >= c of i p_i / m, H_c = the same of (r - i) p_i / m. Then

    R_c <= F(H_{c-1})    for c = 1..r.

Proof. Fix canary j and the event "j is guessed rightly and W >= c". Flipping j's coin and keeping the output makes of it "j is guessed
wrongly and W >= c - 1". So their probabilities are related by F, for each setting of the other coins; averaging over coins and over
the m canaries keeps the inequality, as F is concave. (For a canary without a guess both are 0.)

Given P[W >= v] = τ, the constraints c = v, …, 1 make the whole mass R_0 + H_0 at least what the recursion in :func:`refutes` finds, and
it is r / m. A larger result is a contradiction, so P[W >= v] < τ for every mechanism with the curve F.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from privtensors.accounting import PLDAccountant, RDPAccountant, SampledGaussian
from privtensors.accounting.accountants import distribution, interval_for
from privtensors.accounting.events import EventGroups, group
from privtensors.audit.guessing import Outcome
from privtensors.audit.one_run import check_confidence
from privtensors.errors import InvalidInput

_REACH: Final = 16.0  # e^-16 is below any mass that thousands of guesses at these confidences turn on
_STEP: Final = 0.05
_INTERVALS: Final = 2**11
_ORDERS: Final = (2.0, 3.0, 4.0, 8.0, 16.0, 32.0, 64.0)
_FACTOR: Final = 64.0  # how far from the claimed noise an explanation is looked for
_WIDTH: Final = 2e-3


@dataclass(frozen=True)
class PrivacyCurve:
    """P(A) <= min over lines of e^ε Q(A) + δ for neighbours P, Q in both orders: concave and increasing.

    Attributes:
        epsilons: One ε per line, any sign, (k,).
        deltas: Its δ, (k,); too large a δ is sound and only weakens an audit.
    """

    epsilons: NDArray[np.float64]
    deltas: NDArray[np.float64]

    @staticmethod
    def approximate(epsilon: float, delta: float) -> PrivacyCurve:
        """(ε, δ)-DP and nothing else."""
        return PrivacyCurve(np.array([epsilon]), np.array([delta]))

    @staticmethod
    def gaussian(mu: float) -> PrivacyCurve:
        """μ-Gaussian DP (Dong, Roth and Su 2022): sensitivity over standard deviation is μ > 0."""
        grid = _grid()
        deltas = [_normal_cdf(-e / mu + mu / 2) - math.exp(e) * _normal_cdf(-e / mu - mu / 2) for e in grid]
        return PrivacyCurve(grid, np.maximum(deltas, np.maximum(0.0, 1 - np.exp(grid))))

    @staticmethod
    def sampled_gaussian(event: SampledGaussian) -> PrivacyCurve:
        """Steps of DP-SGD, by its privacy loss distribution under zero-out neighbours. Raises MissingExtra without dp-accounting."""
        grid, whole = _grid(), _distribution(group(event))
        return PrivacyCurve(grid, np.asarray(whole.get_delta_for_epsilon(list(grid)), dtype=np.float64))

    def inverse(self, mass: float) -> float:
        """The least Q(A) with which P(A) can be ``mass``."""
        return max(0.0, float((np.exp(-self.epsilons) * (mass - self.deltas)).max()))


def refutes(outcome: Outcome, curve: PrivacyCurve, significance: float) -> bool:
    """Whether so many right guesses have probability below ``significance`` under every mechanism with this curve.

    The theorem of the module, after Mahloujifar, Melis and Chaudhuri, "Auditing f-Differential Privacy in One Run" (ICML 2025).
    Coins and guesses as for :func:`~privtensors.audit.one_run.p_value`.
    """
    canaries, guesses, correct = outcome.canaries, outcome.guesses, outcome.correct
    slopes = np.exp(-curve.epsilons)
    intercepts = slopes * curve.deltas
    right, wrong = significance * correct / canaries, significance * (guesses - correct) / canaries
    for count in range(correct - 1, -1, -1):
        needed = max(wrong, float((slopes * right - intercepts).max()))
        right += count / (guesses - count) * (needed - wrong)
        wrong = needed
        if right + wrong > guesses / canaries:
            return True
    return False


def curve_p_value(outcome: Outcome, curve: PrivacyCurve) -> float:
    """An upper bound on the probability of so many right guesses under the curve, to within 1 %; 1e-12 stands for less."""
    if not refutes(outcome, curve, 1.0 - 1e-12):
        return 1.0
    low, high = math.log(1e-12), 0.0
    while high - low > 0.01:
        middle = (low + high) / 2
        low, high = (low, middle) if refutes(outcome, curve, math.exp(middle)) else (middle, high)
    return math.exp(high)


def schedule_lower_bound(outcome: Outcome, schedule: SampledGaussian, delta: float, confidence: float = 0.999) -> float:
    """ε at δ of the noisiest run of this schedule that ``outcome`` does not refute; 0 where it refutes none.

    It looks for the noise that explains the outcome, at the schedule's rate and steps. If the run is the schedule at some noise
    (whatever it claims), the result is above its ε with probability at most 1 - ``confidence``, up to the accountant's rounding.
    It is above the claimed ε exactly where the claimed curve is refuted, and says nothing of mechanisms of another shape.

    Args:
        outcome: Of the game.
        schedule: Its noise is where the search starts, and is followed from 1/64 to 64 times that.
        delta: In (0, 1).
        confidence: In (0, 1).

    Raises:
        InvalidInput: An argument is out of range.
        MissingExtra: dp-accounting is not installed.
    """
    significance = check_confidence(confidence)
    if not 0 < delta < 1:
        raise InvalidInput(f"delta is {delta}", where="audit", fix="Give a float in (0, 1)")

    def at(log_factor: float) -> SampledGaussian:
        return SampledGaussian(schedule.noise_multiplier * math.exp(log_factor), schedule.sampling_rate, schedule.steps)

    def refuted(log_factor: float) -> bool:
        return refutes(outcome, PrivacyCurve.sampled_gaussian(at(log_factor)), significance)

    high, low = math.log(_FACTOR), -math.log(_FACTOR)
    if not refuted(high):
        return 0.0
    if refuted(low):
        return _epsilon(at(low), delta)
    while high - low > _WIDTH:  # more noise is post-processing: refuted from one place upwards
        middle = (low + high) / 2
        low, high = (low, middle) if refuted(middle) else (middle, high)
    return _epsilon(at(high), delta)


def _epsilon(event: SampledGaussian, delta: float) -> float:
    events = group(event)
    return PLDAccountant(interval_for(_rough(events, delta))).epsilon(events, delta)


def _distribution(events: EventGroups) -> Any:
    return distribution(events, interval_for(_rough(events, 1e-6), _INTERVALS))


def _rough(events: EventGroups, delta: float) -> float:
    return RDPAccountant(_ORDERS).epsilon(events, delta)


def _grid() -> NDArray[np.float64]:
    return np.arange(-_REACH, _REACH + _STEP / 2, _STEP)


def _normal_cdf(x: float) -> float:
    return math.erfc(-x / math.sqrt(2)) / 2
