"""From a sensitivity and a release mechanism to noise on a grid, and the event that this really is.

**The grid.** g is a power of two, at most 2^-22 of the noise. A release is g · (round(v / g) + K) with K an exact random integer:
scaling by g and rounding to nearest are exact in float64, and the sum, rounded once at most, is post-processing. So neither the
noise nor the result depends on how floating-point numbers are spaced (Mironov 2012).

**Rounding costs sensitivity.** Between neighbours, round(v / g) changes by at most |v - v'| / g + 1 per entry, and not at all
where v does not change: by at most Δ₂ / g + √d in L2 and Δ₁ / g + d in L1 over d entries. The noise is made for that, and
the event says it.

**Gaussian.** K is discrete Gaussian with standard deviation s ≥ 2^23 (Canonne, Kamath and Steinke 2020). It is charged as a continuous
Gaussian of standard deviation √(s^2 - 64), which is sound: add N(0, s^2 - 64) to round(v / g), which is that Gaussian
mechanism, and then draw from the discrete Gaussian of standard deviation 8 centred there, which is post-processing. By Poisson
summation the normaliser of a discrete Gaussian of standard deviation t is the same for every centre up to a factor
1 ± 2.1 e^(-2 π^2 t^2), so the probability of each integer is that of K up to a factor 1 ± 10^-547. What differs is an
additive ε below d · 10^-546, which no accountant can represent.

**Laplace.** K is a continuous Laplace variable rounded to an integer, so the release is the Laplace mechanism followed by
rounding, and is charged as that mechanism.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from privtensors.accounting import events as accounting
from privtensors.backends.dp.noise.discrete import MAX_SCALE, MAX_STD, discrete_gaussian, rounded_laplace
from privtensors.backends.dp.payload import Aggregate
from privtensors.backends.dp.release import Gaussian, Laplace, Mechanism
from privtensors.core.randomness import ByteStream
from privtensors.errors import OutOfRange, ParameterError, UnboundedSensitivity

DELTA: Final = 1e-6
"""δ of a Gaussian release by epsilon where none is stated."""

_GAUSSIAN_BITS, _LAPLACE_BITS = 23, 30
_INNER: Final = 64.0  # variance in grid steps of the post-processing above
_UP: Final = 1 + 1e-9
_LARGEST: Final = 2.0**900
_NO_CHANGE: Final = 2.0**-60  # stands for the sensitivity of what no unit can change


@dataclass(frozen=True, slots=True)
class Plan:
    """Noise, ready to be drawn.

    Attributes:
        gaussian: Discrete Gaussian; else rounded Laplace.
        grid: g.
        steps: Standard deviation, or scale, in grid steps.
        sensitivity: L2, or L1, of the value before rounding to the grid.
        event: What drawing it is charged as.
    """

    gaussian: bool
    grid: float
    steps: int
    sensitivity: float
    event: accounting.Gaussian | accounting.Laplace

    def describe(self) -> str:
        """One line for the ledger; public facts only."""
        name, size, norm = ("gaussian", "standard deviation", "L2") if self.gaussian else ("laplace", "scale", "L1")
        return f"{name}, {size} {self.steps * self.grid:.6g} for an {norm} sensitivity of {self.sensitivity:.6g}"

    def draw(self, value: Tensor, stream: ByteStream) -> Tensor:
        """``value`` (float64, finite) with fresh noise, float64."""
        sample = discrete_gaussian if self.gaussian else rounded_laplace
        noise = sample(stream, self.steps, value.numel()).astype(np.float64).reshape(tuple(value.shape))
        return ((value / self.grid).round_() + torch.from_numpy(noise)) * self.grid


def plan(value: Aggregate, mechanism: Mechanism, where: str = "reveal(release=…)") -> Plan:
    """The noise of one release. Only public facts of ``value`` are read.

    Raises:
        UnboundedSensitivity: One unit can change the value without bound.
        ParameterError: The noise is too small or too large to be drawn exactly.
    """
    norm = value.l2 if isinstance(mechanism, Gaussian) else value.l1
    if not math.isfinite(norm):
        raise UnboundedSensitivity("one row can change the value without bound", where=where, fix="clamp the rows before they are summed")
    peak = float(value.peak.max()) if value.peak.numel() else 0.0
    if not peak < _LARGEST:
        raise OutOfRange("values this large cannot be released", where=where, fix="bound the rows more tightly")
    changing = int((value.each > 0).sum())
    return _gaussian(mechanism, norm, changing) if isinstance(mechanism, Gaussian) else _laplace(mechanism, norm, changing)


def _gaussian(mechanism: Gaussian, norm: float, changing: int) -> Plan:
    rounding = math.sqrt(max(changing, 1))
    grid, steps, in_steps = _on_grid(_ratio(mechanism), mechanism.std, norm, rounding, _GAUSSIAN_BITS, MAX_STD)
    effective = math.sqrt(steps * steps - _INNER) / (in_steps * _UP)
    return Plan(True, grid, steps, norm, accounting.Gaussian(effective))


def _laplace(mechanism: Laplace, norm: float, changing: int) -> Plan:
    ratio = 1 / mechanism.epsilon if mechanism.epsilon is not None else mechanism.noise_multiplier
    grid, steps, in_steps = _on_grid(ratio, mechanism.scale, norm, float(max(changing, 1)), _LAPLACE_BITS, MAX_SCALE)
    return Plan(False, grid, steps, norm, accounting.Laplace(steps / (in_steps * _UP)))


def _ratio(mechanism: Gaussian) -> float | None:
    if mechanism.epsilon is None:
        return mechanism.noise_multiplier
    return noise_multiplier(float(mechanism.epsilon), float(mechanism.delta or DELTA))


def noise_multiplier(epsilon: float, delta: float) -> float:
    """The least noise multiplier of one Gaussian release at (ε, δ) (Balle and Wang 2018, theorem 8), 0.1 % added.

    In closed form, so that a release takes no second of composition and needs no further package; the addition is what
    accountants that round privacy losses up want.
    """

    def spent(ratio: float) -> float:
        shift = epsilon * ratio
        inside, outside = _normal(0.5 / ratio - shift), _normal(-0.5 / ratio - shift)
        return inside - (math.exp(epsilon + math.log(outside)) if outside > 0 else 0.0)

    low, high = math.log(1e-9), math.log(1e9)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(math.exp(middle)) > delta else (low, middle)
    if spent(math.exp(high)) > delta:
        what = f"no noise of any useful size gives epsilon {epsilon:g} at delta {delta:g}"
        raise ParameterError(what, where="Gaussian", fix="state a larger epsilon or delta")
    return math.exp(high) * 1.001


def _normal(x: float) -> float:
    """Φ(x); 0 far out, which makes δ larger and is the safe side."""
    return math.erfc(-x / math.sqrt(2)) / 2


def _on_grid(
    ratio: float | None, absolute: float | None, norm: float, rounding: float, bits: int, largest: int
) -> tuple[float, int, float]:
    """Grid, noise in grid steps, and sensitivity in grid steps with rounding, for a ratio of noise to sensitivity or for absolute noise."""
    size = float(absolute) if absolute is not None else float(ratio or 0.0) * max(norm, _NO_CHANGE)
    if not 2.0**-900 < size < _LARGEST:
        raise ParameterError(f"noise of size {size:.3g} cannot be drawn", where="release", fix="scale the value, or state other noise")
    grid = 2.0 ** (math.floor(math.log2(size)) - bits)
    in_steps = norm / grid + rounding
    # The relative extra covers the inner variance of the Gaussian, and rounding in these few lines.
    wanted = size / grid if absolute is not None else float(ratio or 0.0) * in_steps * (1 + 1e-8)
    steps = math.ceil(wanted)
    if steps > largest:
        what = f"{rounding**2 if bits == _GAUSSIAN_BITS else rounding:.0f} entries need more noise than can be drawn exactly"
        raise ParameterError(what, where="release", fix="release fewer entries at once, or with less noise")
    return grid, steps, in_steps
