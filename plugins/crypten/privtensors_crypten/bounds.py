"""Largest errors of the kernels, and for which operands: fixed point with 16 fractional bits, so one unit is 2^-16.

Products and what is made of them are declared for operands up to :data:`SPAN` in absolute value. The ranges of the functions
are those where CrypTen's iterations converge; outside of them a result can be wrong by 2^32 without any sign of it, because
nobody sees the operand:

======================  =====================  ==================================================================
function                range                  outside
======================  =====================  ==================================================================
exp                     -256..4                3 % too small at 4 and worse above; exp(-541) gives 4e9
reciprocal, div         0.1..150 (either sign) 1/256 gives 4e11: the first guess 3 exp(1 - 2x) leaves exp's range
rsqrt, sqrt             0.1..150               rsqrt(200) gives 0.016 for 0.071, rsqrt(0.05) is wrong by 0.23
sigmoid, tanh, silu     -100..100 (silu ±32)   exp of a number beyond its range
softmax                 differences up to 250, at most 150 equal maxima in a row
======================  =====================  ==================================================================

The bounds hold up to the failures of CrypTen's truncation, see ``backend.py``. Those of the functions are 1.1 to 6 times the largest
error found on grids of 200,000 points, several runs each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from torch import Tensor

from privtensors_crypten.payload import Held

ErrorOf = Callable[..., float]
UNIT: Final = 2.0**-16
SPAN: Final = 32.0
EXP: Final = 2.1  # at 4: (1 + x/256)^256 lacks 1.64, and one unit before eight squarings is 0.4
EXP_BELOW_ZERO: Final = 0.009
RECIPROCAL: Final = 0.006
RSQRT: Final = 0.02
SQRT: Final = 0.05
SIGMOID: Final = 0.006
TANH: Final = 0.012
SILU: Final = 0.02
SOFTMAX: Final = 0.02


def fixed(bound: float) -> ErrorOf:
    """The same bound for every operand in the range."""
    return lambda _backend, *_args, **_kwargs: bound


def largest(x: Any) -> float:
    """Largest absolute value of a factor: known where it is public, else :data:`SPAN`."""
    if isinstance(x, Held):
        return SPAN
    if isinstance(x, Tensor):
        return float(x.abs().max()) if x.numel() else 0.0
    return abs(float(x))


def _product(x: Any, y: Any, terms: int = 1) -> float:
    rounding = sum(largest(b) * UNIT / 2 for a, b in ((x, y), (y, x)) if not isinstance(a, Held))
    return 2 * UNIT + terms * rounding


def mul(_backend: Any, x: Any, y: Any) -> float:
    return _product(x, y)


def add(_backend: Any, x: Any, y: Any, *, alpha: float = 1) -> float:
    return UNIT + (0.0 if float(alpha).is_integer() else _product(y, float(alpha)))


def rsub(_backend: Any, x: Any, y: Any, alpha: float = 1) -> float:
    return UNIT + (0.0 if float(alpha).is_integer() else _product(x, float(alpha)))


def div(_backend: Any, x: Any, y: Any) -> float:
    return 2 * UNIT + largest(x) * (RECIPROCAL if isinstance(y, Held) else UNIT)


def power(_backend: Any, _x: Any, exponent: float) -> float:
    return 2 * UNIT if exponent == 2 else (2 * SPAN + 2) * UNIT


def addcmul(_backend: Any, _x: Any, a: Any, b: Any, *, value: float = 1) -> float:
    return UNIT + abs(value) * _product(a, b) + _product(a, float(value))


def mm(_backend: Any, x: Any, y: Any) -> float:
    return _product(x, y, int(x.shape[-1]))


def addmm(_backend: Any, x: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> float:
    scaled = sum(SPAN * UNIT for factor in (beta, alpha) if factor != 1)
    return 2 * UNIT + abs(alpha) * _product(a, b, int(a.shape[-1])) + scaled


def convolution(_backend: Any, x: Any, weight: Any, *_rest: Any) -> float:
    return UNIT + _product(x, weight, math.prod(weight.shape[1:]))


def clamp(_backend: Any, *_args: Any, **_kwargs: Any) -> float:
    return 2 * UNIT


EXACT: Final = fixed(UNIT)
MEAN: Final = fixed(2 * UNIT)
