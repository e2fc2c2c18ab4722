"""Activations: a Fourier series inside a window, an exact line or constant outside it, chosen by shared comparison bits.

So every activation is accurate for all values in ±8192 and saturates the way the function itself does.
"""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass
from typing import Any, Final

import torch

from privtensors.backends.mpc.fits import Function, Series, fit, largest, precise
from privtensors.backends.mpc.protocols.arithmetic import lift_opened, open_wire, rescale
from privtensors.backends.mpc.protocols.compare import at_least, select
from privtensors.backends.mpc.protocols.fourier import Plan, bulk, weights_of_opened, weights_of_pieces, widen
from privtensors.backends.mpc.runtime import Protocol, Runtime, parallel
from privtensors.backends.mpc.shares import WORD, Shares, Wire

RANGE_BITS: Final = 13  # activations compare |x| < 2^13
_CUT: Final = 2  # fractional bits of the window's comparison: its limits are decided to a quarter
_mp = precise()


@dataclass(frozen=True, slots=True)
class Activation:
    """``f(x) = series(x)`` (plus x / 2 with ``line``) inside [-window, window]; ``below`` under it; ``above``, or x, over it.

    Attributes:
        error: Largest absolute error of the evaluation, fit and rounding of the tables together.
    """

    name: str
    window: float
    plan: Plan
    below: float
    above: float
    line: bool
    error: float


def _activation(
    name: str,
    function: Function,
    *,
    window: float,
    period_log2: int,
    harmonics: int,
    parity: str,
    below: float = 0.0,
    above: float = 0.0,
    line: bool = False,
    error: float,
) -> Activation:
    reach = window + 0.3
    series = fit(function, low=-reach, high=reach, period=2.0**period_log2, harmonics=range(1, harmonics + 1), parity=parity, ridge=1e-6)
    biggest = largest(function, -reach, reach) + 0.01
    out_frac = math.floor(29.8 - math.log2(biggest))  # the lift needs the result below 2^30
    return Activation(name, window, Plan(series, 20 - period_log2, 20, out_frac), below, above, line, error)


def _gelu_even(x: Any) -> Any:
    return 0.5 * x * _mp.erf(x / _mp.sqrt(2))


def _gelu_tanh_even(x: Any) -> Any:
    return 0.5 * x * _mp.tanh(_mp.sqrt(2 / _mp.pi) * (x + 0.044715 * x**3))


@functools.cache
def activation(name: str) -> Activation:
    """The evaluation plan of ``gelu``, ``gelu_tanh``, ``silu``, ``tanh``, ``sigmoid`` or ``erf``; fitted once."""
    if name == "gelu":
        return _activation(
            name, _gelu_even, window=4.25, period_log2=4, harmonics=7, parity="even", line=True, error=1e-3
        )
    if name == "gelu_tanh":
        return _activation(name, _gelu_tanh_even, window=4.25, period_log2=4, harmonics=8, parity="even", line=True, error=1e-3)
    if name == "silu":
        return _activation(
            name, lambda x: 0.5 * x * _mp.tanh(x / 2), window=12.0, period_log2=5, harmonics=16, parity="even", line=True, error=2e-3
        )
    if name == "tanh":
        return _activation(name, _mp.tanh, window=5.5, period_log2=4, harmonics=16, parity="odd", below=-1.0, above=1.0, error=1e-3)
    if name == "sigmoid":
        return _activation(
            name, lambda x: 0.5 * _mp.tanh(x / 2), window=10.5, period_log2=5, harmonics=16, parity="odd", below=0.0, above=1.0, error=1e-3
        )
    return _activation(name, _mp.erf, window=3.5, period_log2=4, harmonics=20, parity="odd", below=-1.0, above=1.0, error=1e-3)


def activate(rt: Runtime, x: Shares, name: str | Activation) -> Protocol[Shares]:
    """Apply :func:`activation`, or a plan; 3 rounds. Values beyond ±8192 wrap in the comparison."""
    act = activation(name) if isinstance(name, str) else name
    limit = round(act.window * 2**_CUT)
    offset = (act.below + act.above) / 2  # the series is odd around it: 1/2 for sigmoid and the slopes of GELU and SiLU

    x = rescale(x, max(x.frac, rt.frac))
    # With a line, or where ranges are checked, x is wanted in the full ring as well: one opening serves all three.
    wire = (yield from open_wire(rt, x)) if act.line or rt.watch is not None else None

    def inside() -> Protocol[Wire]:
        value = yield from widen(rt, (yield from bulk(rt, x, act.plan, wire)), act.plan.out_frac, rt.frac)
        if offset:
            value.public += round(offset * 2**rt.frac)
        return value

    half = None if wire is None or not act.line else lift_opened(rt, wire, rt.frac - 1)
    above, value = yield from parallel(at_least(rt, x, [-limit, limit], frac=_CUT, range_bits=RANGE_BITS, wire=wire), inside())
    under, over = rt.flip_public(above[:, 0].clone()), above[:, 1]
    terms: list[tuple[torch.Tensor, Shares | Wire | int]] = [(above[:, 0] ^ over, value if half is None else value.plus(half))]
    if half is not None:  # opened at one fractional bit less, it reads as x / 2
        terms.append((over, half.doubled()))
    elif act.above:
        terms.append((over, round(act.above * 2**rt.frac)))
    if act.below:
        terms.append((under, round(act.below * 2**rt.frac)))
    out = yield from select(rt, terms, value)
    return Shares(out.data, rt.frac, WORD, x.dtype)


@functools.cache
def exponential_series() -> Series:
    """exp(x/2) on [-24, 8] with a margin of half a unit, period 64."""
    return fit(lambda x: _mp.exp(x / 2), low=-24.6, high=8.6, period=64.0, harmonics=range(1, 31), ridge=1e-9)


@functools.cache
def arithmetic_digest(device: torch.device | None = None) -> str:
    """SHA-256 of what ``device`` (None: the CPU) computes from opened words, on samples.

    At parties that differ in it, shares would add up to noise.
    """
    if device is not None:
        with device:
            return _arithmetic_digest()
    return _arithmetic_digest()


def _arithmetic_digest() -> str:
    plan, digest = activation("gelu").plan, hashlib.sha256()
    for words in (torch.arange(0, 1 << 20, 257, dtype=torch.int32), torch.arange(1, 100, dtype=torch.int32)):
        for pair in weights_of_opened(words, plan):
            digest.update(torch.stack(pair).cpu().numpy().astype("<i4").tobytes())
    samples = torch.arange(-(1 << 9), 1 << 9) * ((1 << 53) - 12345)
    weights = weights_of_pieces(samples, (plan.series,) * 3, (9, 23, 61), 54)
    digest.update(weights.cpu().numpy().astype("<i8").tobytes())
    return digest.hexdigest()
