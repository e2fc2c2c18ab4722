"""Interval arithmetic: the range of a result from the ranges of its operands, float64, entry by entry.

Rounding is to nearest, not outwards: ranges of rows are enforced before anything is aggregated (:mod:`.contributions`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from privtensors.backends.dp.payload import Interval
from privtensors.errors import UnboundedSensitivity

Map = Callable[[Tensor], Tensor]

GELU_LEAST: Final = -0.17
SILU_LEAST: Final = -0.2785
"""Lower bounds of the two functions' minima, -0.16997 and -0.27846."""


def point(value: float) -> Interval:
    """A number."""
    t = torch.tensor(float(value), dtype=torch.float64)
    return Interval(t, t)


def zero_one(*_operands: Interval) -> Interval:
    """Truth values."""
    return Interval(torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))


def add(a: Interval, b: Interval) -> Interval:
    """a + b."""
    return Interval(a.low + b.low, a.high + b.high)


def negate(a: Interval) -> Interval:
    """-a."""
    return Interval(-a.high, -a.low)


def multiply(a: Interval, b: Interval) -> Interval:
    """a · b; a factor that is 0 gives 0, whatever the other is, since values are finite."""
    products = [torch.nan_to_num(x * y, nan=0.0, posinf=math.inf, neginf=-math.inf) for x in a for y in b]
    return Interval(_fold(torch.minimum, products), _fold(torch.maximum, products))


def scale(a: Interval, factor: float) -> Interval:
    """a times a number."""
    return multiply(a, point(factor))


def reciprocal(a: Interval, where: str) -> Interval:
    """1 / a.

    Raises:
        UnboundedSensitivity: 0 is in the range.
    """
    if bool(((a.low <= 0) & (a.high >= 0)).any()):
        raise UnboundedSensitivity(
            "the divisor can be 0, so the result has no bound", where=where, fix="keep it away from 0 first: x.clamp(min=0.1)"
        )
    return Interval(1 / a.high, 1 / a.low)


def hull(a: Interval, b: Interval) -> Interval:
    """What is a or b."""
    return Interval(torch.minimum(a.low, b.low), torch.maximum(a.high, b.high))


def least(a: Interval, b: Interval) -> Interval:
    """The smaller of both."""
    return Interval(torch.minimum(a.low, b.low), torch.minimum(a.high, b.high))


def largest(a: Interval, b: Interval) -> Interval:
    """The larger of both."""
    return Interval(torch.maximum(a.low, b.low), torch.maximum(a.high, b.high))


def absolute(a: Interval) -> Interval:
    """|a|."""
    low = torch.where((a.low <= 0) & (a.high >= 0), 0.0, torch.minimum(a.low.abs(), a.high.abs()))
    return Interval(low, a.magnitude)


def growing(f: Map) -> Callable[[Interval], Interval]:
    """The rule of a function that never falls."""
    return lambda a: Interval(f(a.low), f(a.high))


def dipping(f: Map, minimum: float) -> Callable[[Interval], Interval]:
    """The rule of a function that dips below 0 left of 0, not below ``minimum``, vanishes far left, and grows right of 0."""

    def rule(a: Interval) -> Interval:
        left = torch.nan_to_num(f(a.low), nan=0.0)  # at minus infinity
        low = torch.where(a.low >= 0, f(a.low), minimum)
        high = torch.where(a.high <= 0, 0.0, f(a.high))
        return Interval(torch.minimum(low, left), torch.maximum(high, torch.zeros_like(high)))

    return rule


def power(a: Interval, exponent: float, where: str) -> Interval:
    """a to a public power. Roots of what may be negative are not numbers, and such rows contribute zero.

    Raises:
        UnboundedSensitivity: A negative power of a range with 0.
    """
    if exponent < 0:
        return reciprocal(power(a, -exponent, where), where)
    if exponent == 0:
        one = torch.ones_like(a.low)
        return Interval(one, one)
    if float(exponent).is_integer():
        if int(exponent) % 2 == 0:
            a = absolute(a)
        return Interval(a.low.pow(exponent), a.high.pow(exponent))
    return Interval(a.low.clamp(min=0).pow(exponent), a.high.clamp(min=0).pow(exponent))


def root(a: Interval) -> Interval:
    """√a; rows with a negative entry contribute zero."""
    return power(a, 0.5, "sqrt")


def exponential(a: Interval, where: str) -> Interval:
    """e^a.

    Raises:
        UnboundedSensitivity: a has no upper bound, or one that overflows.
    """
    high = a.high.exp()
    if bool(torch.isinf(high).any()):
        raise UnboundedSensitivity("the argument has no useful upper bound", where=where, fix="bound it first: x.clamp(max=10)")
    return Interval(a.low.exp(), high)


def logarithm(a: Interval, where: str) -> Interval:
    """ln a.

    Raises:
        UnboundedSensitivity: a can be 0 or less.
    """
    if bool((a.low <= 0).any()):
        raise UnboundedSensitivity("the argument can be 0, so the result has no bound", where=where, fix="x.clamp(min=0.1) first")
    return Interval(a.low.log(), a.high.log())


def _fold(f: Callable[[Tensor, Tensor], Tensor], items: list[Tensor]) -> Tensor:
    out = items[0]
    for item in items[1:]:
        out = f(out, item)
    return out
