"""Least-squares Fourier series of smooth functions on part of a period (a Fourier extension).

A series in cos(2πkx/P), sin(2πkx/P) is what one masked opening can evaluate on shares: x - δ is opened mod P, and the
dealer supplies shares of cos and sin of kδ. Fitting on a sub-interval of the period lets non-periodic functions converge
fast (Fourier extension: Huybrechs, 2010).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Series:
    """``f(x) ≈ constant + Σ cosine[i]·cos(2π k_i x / period) + sine[i]·sin(2π k_i x / period)`` on [low, high].

    Attributes:
        harmonics: The k_i, an arithmetic progression.
        error: Largest absolute error found on a dense grid of [low, high].
        relative: Largest error times the fit's weight (1/|f| for relative fits).
    """

    constant: float
    cosine: tuple[float, ...]
    sine: tuple[float, ...]
    harmonics: tuple[int, ...]
    period: float
    low: float
    high: float
    error: float
    relative: float

    def __call__(self, x: Array) -> Array:
        """The series at float64 points."""
        angle = 2 * np.pi * np.outer(x, self.harmonics) / self.period
        value: Array = self.constant + np.cos(angle) @ np.asarray(self.cosine) + np.sin(angle) @ np.asarray(self.sine)
        return value

    @property
    def norm(self) -> float:
        """Sum of the absolute coefficients: how much rounding noise of the tables is amplified."""
        return sum(map(abs, self.cosine)) + sum(map(abs, self.sine))


def fit(
    function: Callable[[Array], Array],
    *,
    low: float,
    high: float,
    period: float,
    harmonics: range,
    parity: str = "none",
    ridge: float = 1e-7,
    weight: Callable[[Array], Array] | None = None,
    points: int = 4000,
) -> Series:
    """Fit ``function`` on [low, high] by ridge-regularised weighted least squares on Chebyshev points.

    Args:
        function: Vectorised function on float64 arrays.
        low, high: Interval; must be inside one period.
        period: Period P.
        harmonics: Which multiples of the base frequency to use.
        parity: ``"even"`` (cosines only), ``"odd"`` (sines only) or ``"none"``.
        ridge: Regularisation; keeps coefficients, and with them rounding noise, small.
        weight: Weight per point, e.g. ``lambda x: 1 / function(x)`` for a relative fit.
        points: Number of fitting points.
    """
    grid = np.cos(np.pi * (np.arange(points) + 0.5) / points) * (high - low) / 2 + (high + low) / 2
    k = np.asarray(harmonics)

    def basis(x: Array) -> Array:
        angle = 2 * np.pi * np.outer(x, k) / period
        parts = [np.ones((len(x), 1))]
        if parity != "odd":
            parts.append(np.cos(angle))
        if parity != "even":
            parts.append(np.sin(angle))
        return np.concatenate(parts, axis=1)

    scale = np.ones(points) if weight is None else weight(grid)
    matrix = basis(grid)
    regular = np.eye(matrix.shape[1]) * ridge * math.sqrt(points)
    regular[0, 0] = 0.0
    solution = np.linalg.lstsq(
        np.concatenate([matrix * scale[:, None], regular]), np.concatenate([function(grid) * scale, np.zeros(matrix.shape[1])]), rcond=None
    )[0]
    check = np.linspace(low, high, 2 * points + 1)
    residual = np.abs(basis(check) @ solution - function(check))
    n = len(k)
    cosine = solution[1 : n + 1] if parity != "odd" else np.zeros(n)
    sine = np.zeros(n) if parity == "even" else solution[-n:]
    return Series(
        constant=float(solution[0]),
        cosine=tuple(map(float, cosine)),
        sine=tuple(map(float, sine)),
        harmonics=tuple(map(int, k)),
        period=period,
        low=low,
        high=high,
        error=float(residual.max()),
        relative=float((residual * (np.ones_like(check) if weight is None else weight(check))).max()),
    )
