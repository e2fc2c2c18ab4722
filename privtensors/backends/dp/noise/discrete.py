"""Exact integer noise: uniform random words, whole numbers and comparisons, and no floating-point arithmetic.

Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential Privacy" (2020), algorithms 1 to 3, run on many samples at
once. Everything is whole numbers below 2^63; every uniform draw rejects what would bias it. How long a draw takes depends on
the noise, so noise must not be drawn where an observer can time it finely.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from privtensors.core.randomness import ByteStream
from privtensors.errors import ParameterError

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

MAX_STD: Final = 1 << 25
"""Largest standard deviation of :func:`discrete_gaussian`: its squares must stay below 2^63."""

MAX_SCALE: Final = 1 << 40
"""Largest scale of the Laplace samplers."""

_FAR: Final = (1 << 31) - 1


def uniform_below(stream: ByteStream, bound: int, count: int) -> Ints:
    """``count`` uniform integers in [0, ``bound``), 1 ≤ bound < 2^63, without bias: words past the last whole multiple are redrawn."""
    if bound & (bound - 1) == 0:
        return (stream.words(count) & np.uint64(bound - 1)).view(np.int64)
    last = (1 << 64) - (1 << 64) % bound - 1
    words = stream.words(count)
    while (bad := np.flatnonzero(words > np.uint64(last))).size:
        words[bad] = stream.words(bad.size)
    return (words % np.uint64(bound)).view(np.int64)


def bernoulli_exp(stream: ByteStream, numerator: Ints, denominator: int) -> Bools:
    """True with probability exp(-numerator / denominator) exactly, per entry (Canonne et al. 2020, algorithm 1).

    Args:
        stream: Randomness.
        numerator: At least 0.
        denominator: At least 1 and below 2^52.
    """
    whole, part = np.divmod(numerator, denominator)
    out = _exp_of_fraction(stream, part, denominator)
    step = 1
    while (left := np.flatnonzero(out & (whole >= step))).size:  # exp(-1), once per whole unit
        out[left] = _exp_of_fraction(stream, np.ones(left.size, dtype=np.int64), 1)
        step += 1
    return out


def _exp_of_fraction(stream: ByteStream, numerator: Ints, denominator: int) -> Bools:
    """As :func:`bernoulli_exp` for fractions in [0, 1]: the parity of where a falling product of coins stops."""
    odd = np.ones(numerator.shape, dtype=np.bool_)
    active, k = np.arange(numerator.size), 1
    while active.size:
        heads = uniform_below(stream, denominator * k, active.size) < numerator[active]
        active = active[heads]
        odd[active] ^= True
        k += 1
    return odd


def geometric(stream: ByteStream, scale: int, count: int) -> Ints:
    """``count`` integers k ≥ 0 with probability proportional to exp(-k / scale) (algorithm 2, first half)."""
    _check(scale, MAX_SCALE)
    low = np.empty(count, dtype=np.int64)
    todo = np.arange(count)
    while todo.size:
        tried = uniform_below(stream, scale, todo.size)
        good = bernoulli_exp(stream, tried, scale)
        low[todo[good]] = tried[good]
        todo = todo[~good]
    high = np.zeros(count, dtype=np.int64)
    active = np.arange(count)
    while active.size:
        active = active[_exp_of_fraction(stream, np.ones(active.size, dtype=np.int64), 1)]
        high[active] += 1
    return low + scale * high


def _signs(stream: ByteStream, count: int) -> Ints:
    return 1 - 2 * uniform_below(stream, 2, count)


def discrete_laplace(stream: ByteStream, scale: int, count: int) -> Ints:
    """``count`` integers k with probability proportional to exp(-|k| / scale) (algorithm 2)."""
    out = np.empty(count, dtype=np.int64)
    todo = np.arange(count)
    while todo.size:
        size, sign = geometric(stream, scale, todo.size), _signs(stream, todo.size)
        good = (size != 0) | (sign > 0)  # or zero would count twice
        out[todo[good]] = (size * sign)[good]
        todo = todo[~good]
    return out


def rounded_laplace(stream: ByteStream, scale: int, count: int) -> Ints:
    """``count`` Laplace variables of scale ``scale``, each rounded to the nearest integer.

    For Laplace L, P(|L| ≥ 1/2) = exp(-1 / (2 scale)), and beyond 1/2 whole steps are geometric; so this is exact, and adding it to an
    integer is the Laplace mechanism followed by rounding: post-processing.
    """
    _check(scale, MAX_SCALE)
    out = np.zeros(count, dtype=np.int64)
    outside = np.flatnonzero(bernoulli_exp(stream, np.ones(count, dtype=np.int64), 2 * scale))
    out[outside] = (geometric(stream, scale, outside.size) + 1) * _signs(stream, outside.size)
    return out


def discrete_gaussian(stream: ByteStream, std: int, count: int) -> Ints:
    """``count`` integers k with probability proportional to exp(-k^2 / (2 std^2)) (algorithm 3, proposals of scale ``std``).

    Proposals beyond 2^31, which occur with probability below e^-60 and are kept with probability below e^-1800, are kept as
    often as one at 2^31.
    """
    _check(std, MAX_STD)
    out = np.empty(count, dtype=np.int64)
    todo = np.arange(count)
    while todo.size:
        tried = discrete_laplace(stream, std, todo.size)
        away = np.minimum(np.abs(np.abs(tried) - std), _FAR)
        good = bernoulli_exp(stream, away * away, 2 * std * std)
        out[todo[good]] = tried[good]
        todo = todo[~good]
    return out


def _check(scale: int, largest: int) -> None:
    if type(scale) is not int or not 1 <= scale <= largest:
        raise ParameterError(f"a scale of {scale} grid steps", where="integer noise", fix=f"1 to {largest} whole steps")
