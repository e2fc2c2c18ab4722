"""A privacy loss distribution for a release of which only zero-concentrated DP is known.

zCDP with parameter rho bounds the hockey-stick divergence of neighbours at every ε (Canonne, Kamath and Steinke 2020, proposition 12, with
the best order for each ε). The true curve is convex in e^ε, so the convex envelope of the bounds is a bound too, and what
lies between its corners is covered by the chord. A convex bound is the curve of a pair of distributions, and such pairs
dominate under adaptive composition (Zhu, Dong and Wang 2022), so one zCDP release does not cost the tightness of all others.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from privtensors.accounting.events import dp_accounting

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_LOG_TAIL = math.log(1e-15)  # mass at an infinite loss, as dp-accounting truncates
_ORDERS_PER_FACTOR = 64
_LARGEST_LOSS = 500.0
_MOST_POINTS = 2**17


def zcdp_distribution(rho: float, interval: float) -> Any:
    """A pessimistic ``PrivacyLossDistribution`` of everything that is ``rho``-zCDP, on a grid of ``interval``.

    Raises:
        MissingExtra: dp-accounting is not installed.
    """
    dp_accounting()
    import numpy as np
    from dp_accounting.pld import pld_pmf, privacy_loss_distribution

    # Where the order that is best for a Gaussian bounds the curve by the tail: (ε - rho)² / (4 rho) = -log tail.
    furthest = rho + 2 * math.sqrt(-_LOG_TAIL * rho)
    # What lies beyond the cap counts as an infinite loss: sound, and then RDP has the better bound.
    last = max(1, math.ceil(min(furthest, _LARGEST_LOSS, _MOST_POINTS * interval) / interval))
    positive: NDArray[np.float64] = np.arange(last + 1) * np.float64(interval)
    upper = np.exp(log_delta_of_zcdp(rho, positive))
    # H(e^-ε; P, Q) = 1 - e^-ε + e^-ε H(e^ε; Q, P), and the bound holds in both directions.
    lower = -np.expm1(-positive[:0:-1]) + np.exp(-positive[:0:-1]) * upper[:0:-1]
    grid = np.concatenate([-positive[:0:-1], positive])
    deltas = np.minimum(np.concatenate([lower, upper]), 1.0)
    hull = _envelope(np.exp(grid), deltas)
    pmf = pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(interval, -last, last, hull)
    return privacy_loss_distribution.PrivacyLossDistribution(pmf)


def log_delta_of_zcdp(rho: float, epsilons: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithm (0 at most) of a bound of δ at each ε ≥ 0, the best over a grid of orders. Any order gives a bound."""
    import numpy as np

    # The best order is near (ε + rho) / (2 rho); below it the conversion's own terms matter, so small orders are tried as well.
    top = max(4.0, 2 * (float(epsilons[-1]) + rho) / (2 * rho))
    count = max(2, math.ceil(math.log(top / 1e-3, 2) * _ORDERS_PER_FACTOR))
    best = np.full(epsilons.shape, 0.0)
    for order in 1 + np.geomspace(1e-3, top, count):
        line = (order - 1) * (order * rho - epsilons + math.log1p(-1 / order)) - math.log(order)
        np.minimum(best, line, out=best)
    return best


def _envelope(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """The lower convex envelope of (0, 1) and the points, at each x (ascending, positive)."""
    import numpy as np

    corners_x, corners_y = [0.0], [1.0]
    for here_x, here_y in zip(x.tolist(), y.tolist(), strict=True):
        while len(corners_x) > 1:
            run, rise = corners_x[-1] - corners_x[-2], corners_y[-1] - corners_y[-2]
            if (here_y - corners_y[-2]) * run > rise * (here_x - corners_x[-2]):
                break
            corners_x.pop()
            corners_y.pop()
        corners_x.append(here_x)
        corners_y.append(here_y)
    return np.asarray(np.interp(x, corners_x, corners_y), dtype=np.float64)
