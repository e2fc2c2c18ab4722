"""Tests of hypotheses, each a p-value: of standard normal numbers, and of independent coins."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from privtensors.audit.one_run import scipy_stats

_COARSEST = 200_000  # numbers in a Kolmogorov-Smirnov test: more cost time and find nothing that the other tests do not


def normal_tests(draws: NDArray[np.float64]) -> dict[str, float]:
    """P-values of ``draws`` being independent standard normal numbers, (steps, entries), at least 2 of each."""
    steps, entries = draws.shape
    if not np.isfinite(draws).all():
        return {"finite": 0.0}
    stats, size = scipy_stats(), draws.size
    variance = stats.chi2(size)
    squares = float((draws**2).sum())
    some = draws.ravel()[:: -(-size // _COARSEST)]
    later = min(5, steps - 1)
    # Sums of products of independent standard normal numbers: their exact variance is the number of products.
    within = float((draws[:, 1:] * draws[:, :-1]).sum()) / math.sqrt(steps * (entries - 1))
    between = {
        f"independence of steps {lag} apart": two_sided(float((draws[lag:] * draws[:-lag]).sum()) / math.sqrt((steps - lag) * entries))
        for lag in range(1, later + 1)
    }
    half = entries // 2
    folded = float((draws[:, :half] * draws[:, half : 2 * half]).sum()) / math.sqrt(steps * half)
    return {
        "normal distribution": float(stats.kstest(some, "norm").pvalue),
        "variance": min(1.0, 2 * min(float(variance.sf(squares)), float(variance.cdf(squares)))),
        "mean": two_sided(float(draws.sum()) / math.sqrt(size)),
        "independence of neighbouring entries": two_sided(within),
        "independence of the two halves": two_sided(folded),
        **between,
    }


def coin_tests(drawn: NDArray[np.bool_], rate: float) -> dict[str, float]:
    """P-values of ``drawn``, (steps, units), being independent coins with probability ``rate`` in (0, 1).

    The sums of squares are compared with normal numbers of their exact variance: take steps · rate and units · rate well above 10.
    """
    steps, units = drawn.shape
    stats, spread = scipy_stats(), rate * (1 - rate)
    coins = (drawn - rate) / math.sqrt(spread)
    kurtosis = (1 - 6 * spread) / spread  # excess, of one coin
    number = int(drawn.sum())
    tail = stats.binom(steps * units, rate)

    def dispersion(sums: NDArray[np.float64], terms: int) -> float:
        """Whether the squares of sums of ``terms`` coins are as large as they must be."""
        count = len(sums)
        variance = count * (2 + kurtosis / terms)
        # Close to a chi-squared variable; scaled to the right variance.
        freedom = 2 * count**2 / variance
        value = float((sums**2).sum() / terms) * freedom / count
        law = stats.chi2(freedom)
        return min(1.0, 2 * min(float(law.sf(value)), float(law.cdf(value))))

    return {
        "number drawn in all": min(1.0, 2 * min(float(tail.sf(number - 1)), float(tail.cdf(number)))),
        "size of a batch": dispersion(coins.sum(1), units),
        "how often a unit is drawn": dispersion(coins.sum(0), steps),
        "independence of one step and the next": two_sided(float((coins[1:] * coins[:-1]).sum()) / math.sqrt((steps - 1) * units)),
        "independence of neighbouring units": two_sided(float((coins[:, 1:] * coins[:, :-1]).sum()) / math.sqrt(steps * (units - 1))),
    }


def two_sided(z: float) -> float:
    """The p-value of a standard normal number."""
    return math.erfc(abs(z) / math.sqrt(2))
