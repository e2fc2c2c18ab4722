"""Square roots, quotients and logarithms over a very wide range: each value is first moved into [1, 4) by a shared power of two.

The octave of a value is found by comparing it with every even power of two; the comparison bits select the power that moves
it into [1, 4), where one Fourier fit serves. So the relative error is the same for the square of a gradient, 10^-11, as for
a variance of 100, which optimizers need. (Normalisation before an approximation: Catrina and Saxena, 2010.)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from torch import Tensor

from privtensors.backends.mpc.fits import Function, Series, fit, precise
from privtensors.backends.mpc.protocols.arithmetic import lift, multiply_wires, open_lifted, open_wire, rescale
from privtensors.backends.mpc.protocols.compare import at_least, select
from privtensors.backends.mpc.protocols.fourier import pieces
from privtensors.backends.mpc.protocols.normalise import ROW_DIGIT
from privtensors.backends.mpc.runtime import Protocol, Runtime, parallel
from privtensors.backends.mpc.shares import WORD, Shares, Wire

GUARD: Final = 4  # the lowest limit is decided to 1/16 of itself
BEYOND: Final = 6  # octaves above the range in which a value saturates; further up the comparison wraps
GROUP: Final = 5  # digits per AND round
UNIT_FRAC: Final = 54  # fractional bits of a function on [1, 4) when it is evaluated
ROOT_FRAC: Final = 24  # of a square root when it is opened
INVERSE_FRAC: Final = 28  # of 1/d when it is opened
_mp = precise()
_FUNCTIONS: Final[Mapping[str, Function]] = MappingProxyType({"sqrt": _mp.sqrt, "inverse": lambda x: 1 / x, "log": _mp.log})


@dataclass(frozen=True, slots=True)
class Span:
    """The range [2^low, 2^(low + octaves)], both even, as seen by values of ``frac`` fractional bits."""

    low: int
    octaves: int
    frac: int

    @property
    def count(self) -> int:
        """Intervals of two octaves."""
        return self.octaves // 2

    @property
    def window(self) -> tuple[int, int]:
        """Fractional and integer bits that the comparison looks at."""
        return GUARD - self.low, self.low + self.octaves + BEYOND


def span(frac: int, low: int, high: int) -> Span:
    """From the least even octave that ``frac`` fractional bits tell apart, but no lower than ``low``, up to ``high``."""
    bottom = max(low, GUARD - frac)
    bottom += bottom % 2
    return Span(bottom, high - bottom, min(max(frac, GUARD - bottom), WORD - 1 - high - BEYOND))


@functools.cache
def _series(name: str) -> Series:
    return fit(_FUNCTIONS[name], low=0.9, high=4.5, period=8.0, harmonics=range(1, 13), ridge=1e-9)


@dataclass(frozen=True, slots=True, eq=False)
class Located:
    """Comparison bits of a value: which interval it lies in, ``(parties, *shape)`` int8 each."""

    inside: list[Tensor]
    under: Tensor
    over: Tensor


def locate(rt: Runtime, x: Shares, where: Span) -> Protocol[Located]:
    """The interval of every element."""
    frac, whole = where.window
    limits = [1 << (2 * j + GUARD) for j in range(where.count + 1)]
    above = yield from at_least(rt, x, limits, frac=frac, range_bits=whole, digit=ROW_DIGIT, group=GROUP)
    inside = [above[:, j] ^ above[:, j + 1] for j in range(where.count)]
    return Located(inside, rt.flip_public(above[:, 0].clone()), above[:, where.count])


def _constants(rt: Runtime, bits: list[Tensor], values: list[int], frac: int, like: Shares) -> Protocol[Shares]:
    """The public number that belongs to the one bit that is set, or 0."""
    found = yield from select(rt, list(zip(bits, values, strict=True)), Shares(like.data, frac, WORD, like.dtype))
    return found


def _unit(rt: Runtime, name: str, d: Shares) -> Protocol[Shares]:
    """A function of [1, 4)."""
    words = yield from pieces(rt, d, (_series(name),), (3 + d.frac,), UNIT_FRAC)
    return Shares(words[:, 0], UNIT_FRAC, WORD, d.dtype)


def _moved(rt: Runtime, x: Wire, factor: Wire, outside: Shares, where: Span) -> Shares:
    """x · factor in [1, 4), and 1 for values outside the range."""
    product = multiply_wires(rt, x, factor)
    return Shares(product.data + outside.data, where.frac + where.low + 2 * (where.count - 1), WORD, outside.dtype)


def _prepared(rt: Runtime, x: Shares, where: Span) -> Protocol[Shares]:
    ready = x if x.ring == WORD and x.frac <= where.frac else (yield from lift(rt, x, where.frac))
    return rescale(ready, where.frac)


def _shifts(where: Span) -> list[int]:
    """Per interval the power of two that moves it onto the highest one."""
    return [1 << (2 * (where.count - 1 - j)) for j in range(where.count)]


def wide_sqrt(rt: Runtime, x: Shares, where: Span) -> Protocol[Shares]:
    """x^(1/2) on the span. What lies below it, zero and negative values included, reads as the root of its lower end.

    What lies above reads as the root of its upper end.

    Relative error below 1e-5. 8 rounds for values of at most ``where.frac`` fractional bits. The result has as many
    fractional bits as its largest value leaves room for.
    """
    x = yield from _prepared(rt, x, where)
    wire, at = yield from parallel(open_wire(rt, x), locate(rt, x, where))
    bits = [at.under, *at.inside, at.over]
    root_frac = -where.low // 2
    scales = [1, *(1 << j for j in range(where.count)), 1 << where.count]
    one = 1 << (where.frac + where.low + 2 * (where.count - 1))
    factor, outside, scale = yield from parallel(
        _constants(rt, at.inside, _shifts(where), 0, x),
        _constants(rt, [at.under, at.over], [one, one], 0, x),
        _constants(rt, bits, scales, root_frac, x),
    )
    wire_f, wire_s = yield from parallel(open_wire(rt, factor), open_wire(rt, scale))
    unit = yield from _unit(rt, "sqrt", _moved(rt, wire, wire_f, outside, where))
    out = multiply_wires(rt, (yield from open_lifted(rt, unit, ROOT_FRAC)), wire_s)
    found = rescale(out, WORD - 4 - (where.low + where.octaves) // 2)
    found.dtype = x.dtype
    return found


def wide_quotient(rt: Runtime, x: Shares, y: Shares, where: Span, frac: int) -> Protocol[Shares]:
    """x / y for positive y on the span; y below or above it counts as its lower or upper end. Quotients must stay below 2^9.

    8 rounds for operands of few fractional bits; the result has 52.

    Args:
        frac: Fractional bits at which x enters; x must be below ``2^(62 - frac)``.
    """
    ready, y = yield from parallel(_at(rt, x, frac), _prepared(rt, y, where))
    wire_x, wire_y, at = yield from parallel(open_wire(rt, ready), open_wire(rt, y), locate(rt, y, where))
    one = 1 << (where.frac + where.low + 2 * (where.count - 1))
    shifts = _shifts(where)
    factor, outside, moves = yield from parallel(
        _constants(rt, at.inside, shifts, 0, y),
        _constants(rt, [at.under, at.over], [one, one], 0, y),
        _constants(rt, [at.under, *at.inside, at.over], [shifts[0], *shifts, 1], 0, y),
    )
    wire_f, wire_m = yield from parallel(open_wire(rt, factor), open_wire(rt, moves))
    numerator = multiply_wires(rt, wire_x, wire_m)
    numerator = Shares(numerator.data, frac + where.low + 2 * (where.count - 1), WORD, x.dtype)
    unit, wire_n = yield from parallel(_unit(rt, "inverse", _moved(rt, wire_y, wire_f, outside, where)), open_lifted(rt, numerator, 24))
    out = multiply_wires(rt, wire_n, (yield from open_lifted(rt, unit, INVERSE_FRAC)))
    out.dtype = x.dtype
    return out


def _at(rt: Runtime, x: Shares, frac: int) -> Protocol[Shares]:
    if x.frac <= frac and x.ring == WORD:
        return rescale(x, frac)
    return (yield from lift(rt, x, frac))


def logarithm(rt: Runtime, x: Shares, where: Span) -> Protocol[Shares]:
    """Natural logarithm on the span; values outside it read as its ends. Absolute error below 1e-5 beside what rounding x costs."""
    x = yield from _prepared(rt, x, where)
    wire, at = yield from parallel(open_wire(rt, x), locate(rt, x, where))
    one = 1 << (where.frac + where.low + 2 * (where.count - 1))
    octave = [round((where.low + 2 * j) * math.log(2) * 2.0**UNIT_FRAC) for j in range(where.count + 1)]
    factor, outside, whole = yield from parallel(
        _constants(rt, at.inside, _shifts(where), 0, x),
        _constants(rt, [at.under, at.over], [one, one], 0, x),
        _constants(rt, [at.under, *at.inside, at.over], [octave[0], *octave], UNIT_FRAC, x),
    )
    wire_f = yield from open_wire(rt, factor)
    unit = yield from _unit(rt, "log", _moved(rt, wire, wire_f, outside, where))
    return (yield from lift(rt, Shares(unit.data + whole.data, UNIT_FRAC, WORD, x.dtype), rt.frac))
