"""Least-squares Fourier series of smooth functions on part of a period (a Fourier extension).

A series in cos(2πkx/P), sin(2πkx/P) is what one masked opening can evaluate on shares: x - δ is opened mod P, and the
dealer supplies shares of cos and sin of kδ. Fitting on a sub-interval of the period lets non-periodic functions converge
fast (Fourier extension: Huybrechs, 2010).

Both parties multiply shares by numbers that follow from the coefficients, so these must be the same to the last bit on
every host. Floating-point solvers are not: they follow the processor's vector width. The normal equations are solved in
multiple precision instead, and the solution is rounded once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from mpmath import MPContext

Array = npt.NDArray[np.float64]
Function = Callable[[Any], Any]

_BITS: Final = 160  # the worst-conditioned fit loses 60 of them
_POINTS: Final = 400  # several for each coefficient
_CHECKED: Final = 801


def precise() -> Any:
    """A multiple-precision context: its ``mpf``, ``exp``, ``erf``, ``log``, … are the same on every host."""
    context = MPContext()
    context.prec = _BITS
    return context


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
    function: Function,
    *,
    low: float,
    high: float,
    period: float,
    harmonics: range,
    parity: str = "none",
    ridge: float = 1e-7,
    weight: Function | None = None,
) -> Series:
    """Fit ``function`` on [low, high] by ridge-regularised weighted least squares on Chebyshev points.

    Args:
        function: Of one multiple-precision number, by the functions of :func:`precise`.
        low, high: Interval; must be inside one period.
        period: Period P.
        harmonics: Which multiples of the base frequency to use, without 0.
        parity: ``"even"`` (cosines only), ``"odd"`` (sines only) or ``"none"``.
        ridge: Regularisation; keeps coefficients, and with them rounding noise, small.
        weight: Weight per point, e.g. ``lambda x: 1 / function(x)`` for a relative fit.
    """
    mp, ks = precise(), list(harmonics)
    half, middle, turn = (mp.mpf(high) - low) / 2, (mp.mpf(high) + low) / 2, 2 * mp.pi / mp.mpf(period)
    points = [mp.cos(mp.pi * (2 * i + 1) / (2 * _POINTS)) * half + middle for i in range(_POINTS)]
    weights = _fixed([mp.mpf(1) if weight is None else weight(x) ** 2 for x in points])
    values = _fixed([function(x) for x in points]) * weights >> _BITS
    cosine, sine = _multiples([mp.cos_sin(turn * x) for x in points], 2 * ks[-1])
    # A product of two cosines or sines is a sum of two: every entry of the normal matrix is made of these few sums.
    cos_sum, sin_sum = ([int(row.dot(weights)) for row in rows] for rows in (cosine, sine))
    unknowns = [(0, False), *((k, False) for k in ks if parity != "odd"), *((k, True) for k in ks if parity != "even")]

    def entry(first: tuple[int, bool], second: tuple[int, bool]) -> int:
        (k, odd), (m, other) = first, second
        if odd and other:
            return cos_sum[abs(k - m)] - cos_sum[k + m]
        if not odd and not other:
            return cos_sum[abs(k - m)] + cos_sum[k + m]
        k, m = (k, m) if odd else (m, k)
        return sin_sum[k + m] + (sin_sum[k - m] if k >= m else -sin_sum[m - k])

    system = [[mp.mpf(entry(u, v)) for v in unknowns] + [mp.mpf(2 * int((sine if u[1] else cosine)[u[0]].dot(values)))] for u in unknowns]
    for i in range(1, len(system)):
        system[i][i] += 2 * _POINTS * mp.mpf(ridge) ** 2 * mp.mpf(2) ** (2 * _BITS)
    solution = _solve(np.array(system, dtype=object))
    zeros, n = (0.0,) * len(ks), len(ks) + 1 if parity != "odd" else 1
    found = Series(
        constant=solution[0],
        cosine=tuple(solution[1:n]) if parity != "odd" else zeros,
        sine=tuple(solution[n:]) if parity != "even" else zeros,
        harmonics=tuple(ks),
        period=period,
        low=low,
        high=high,
        error=0.0,
        relative=0.0,
    )
    grid = np.linspace(low, high, _CHECKED)
    residual = np.abs(found(grid) - sampled(function, grid))
    relative = residual if weight is None else residual * sampled(weight, grid)
    return dataclasses.replace(found, error=float(residual.max()), relative=float(relative.max()))


def sampled(function: Function, points: Array) -> Array:
    """A function of :func:`fit` at float64 points."""
    mp = precise()
    mp.prec = 64
    return np.array([float(function(mp.mpf(float(x)))) for x in points])


def largest(function: Function, low: float, high: float) -> float:
    """Largest absolute value of a function of :func:`fit` on a grid of [low, high]."""
    return float(np.abs(sampled(function, np.linspace(low, high, 257))).max())


def _fixed(values: list[Any]) -> Any:
    """Multiple-precision numbers as whole multiples of 2^-160: an array of Python integers."""
    return np.array([int(value * (1 << _BITS)) for value in values], dtype=object)


def _multiples(first: list[tuple[Any, Any]], count: int) -> tuple[list[Any], list[Any]]:
    """cos and sin of 0, 1, …, ``count`` times each angle, by multiple, from those of the angles; fixed point."""
    cos, sin = _fixed([c for c, _ in first]), _fixed([s for _, s in first])
    cosine, sine = [cos * 0 + (1 << _BITS)], [sin * 0]
    for _ in range(count):
        a, b = cosine[-1], sine[-1]
        cosine.append(a * cos - b * sin >> _BITS)
        sine.append(a * sin + b * cos >> _BITS)
    return cosine, sine


def _solve(system: Any) -> list[float]:
    """Solve a positive definite system ``(n, n + 1)``, the right-hand side in its last column, by elimination."""
    n = len(system)
    for i in range(n):
        system[i, i + 1 :] /= system[i, i]
        for j in range(i + 1, n):
            system[j, i + 1 :] -= system[i, i + 1 :] * system[j, i]
    solution = system[:, n]
    for i in reversed(range(n)):
        solution[:i] -= system[:i, i] * solution[i]
    return [float(x) for x in solution]
