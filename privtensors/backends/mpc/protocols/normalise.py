"""Reciprocal and inverse square root over many octaves, and layer normalisation.

A power law is fitted once on one interval [1, 4] and moved to every other by exact scaling; all intervals are evaluated
from one opening and the right one is selected by shared comparison bits, so small and large values have the same relative
error. Values outside all intervals saturate.
"""

from __future__ import annotations

import functools
import math
from typing import Final

import torch

from privtensors.backends.mpc.fits import Series, fit
from privtensors.backends.mpc.protocols.arithmetic import lift, multiply_wires, normal, open_lifted, open_wire, rescale, square_wire
from privtensors.backends.mpc.protocols.compare import at_least, select
from privtensors.backends.mpc.protocols.fourier import pieces
from privtensors.backends.mpc.protocols.ranges import watch_bits
from privtensors.backends.mpc.runtime import Protocol, Runtime, parallel
from privtensors.backends.mpc.shares import WORD, Shares, Wire

ROW_DIGIT: Final = 10  # rows are few: long digits, one round of AND
_GUARD: Final = 4  # an interval's limits are decided to 1/16 of its lower end


@functools.cache
def unit_fit(exponent: float) -> Series:
    """``x ** exponent`` on [1, 4] with a margin."""
    return fit(lambda x: x**exponent, low=0.9, high=4.5, period=8.0, harmonics=range(1, 11), ridge=1e-9, weight=lambda x: x**-exponent)


def power(rt: Runtime, x: Shares, exponent: float, *, low: int, octaves: int, safe: bool = False) -> Protocol[Shares]:
    """``x ** exponent`` for positive x in [2^low, 2^(low + octaves)], saturating outside, zero and negative x included.

    Relative error below 6e-6 while the results span 15 octaves, 5e-5 for 18. x beyond 2^(low + octaves + 6) wraps.
    3 rounds. The result has as many fractional bits as the largest value allows, in the full ring.

    Args:
        exponent: -1 or -0.5 (any negative power).
        low: log2 of the smallest value told apart.
        octaves: Even number of octaves covered.
        safe: x cannot leave [2^low, 2^(low + octaves)], or does where nobody looks: there is nothing to check.
    """
    x = rescale(x, max(x.frac, 2 - low))  # the smallest octaves need some units to be told apart
    count = octaves // 2
    unit = unit_fit(exponent)
    # Chosen so that the largest result, at the bottom, keeps two bits of headroom.
    out_frac = 60 - math.ceil(low * exponent)
    scales = [2.0 ** (exponent * (low + 2 * j)) for j in range(count)]
    series = tuple(
        Series(
            constant=unit.constant * s,
            cosine=tuple(c * s for c in unit.cosine),
            sine=tuple(c * s for c in unit.sine),
            harmonics=unit.harmonics,
            period=unit.period,
            low=unit.low,
            high=unit.high,
            error=unit.error * s,
            relative=unit.relative,
        )
        for s in scales
    )
    period_bits = tuple(3 + low + 2 * j + x.frac for j in range(count))
    frac = _GUARD - low
    thresholds = [1 << (2 * j + _GUARD) for j in range(count + 1)]
    values, above = yield from parallel(
        pieces(rt, x, series, period_bits, out_frac),
        at_least(rt, x, thresholds, frac=frac, range_bits=min(x.ring - x.frac - 2, low + octaves + 6), digit=ROW_DIGIT, group=5),
    )
    under = rt.flip_public(above[:, 0].clone())
    if not safe:
        watch_bits(rt, torch.stack([under, above[:, count]], 1))
    terms: list[tuple[torch.Tensor, Shares | Wire | int]] = [(under, round(scales[0] * 2.0**out_frac))]
    for j in range(count):
        terms.append((above[:, j] ^ above[:, j + 1], Shares(values[:, j].contiguous(), out_frac, WORD, x.dtype)))
    terms.append((above[:, count], round(2.0 ** (exponent * (low + octaves) + out_frac))))
    return (yield from select(rt, terms, Shares(values[:, 0], out_frac, WORD, x.dtype)))


def layer_norm(rt: Runtime, x: Shares, gain: Shares | None, eps: float) -> Protocol[Shares]:
    """``(x - mean) / sqrt(var + eps) · gain`` over the last axis; the bias is the caller's.

    For variances in [2^-14, 2^14]; smaller and larger ones saturate. From 1e-2 up the error stays below 4e-3; at 1e-4 the
    rounding of x itself, 2^-14 or finer, is amplified to about 1e-2.
    6 rounds; the result has the backend's fractional bits, in the full ring.
    """
    n = x.shape[-1]
    bits = math.ceil(math.log2(n))
    frac = min(18, (62 - 15 - 2 * bits) // 2)
    sums = x.like(x.data.sum(-1, keepdim=True))
    y, total = yield from parallel(open_lifted(rt, x, frac), open_lifted(rt, sums, frac))
    # n² · var = n · Σ y² - (Σ y)²
    spread = square_wire(rt, y).data.sum(-1, keepdim=True) * n - square_wire(rt, total).data
    rt.add_public(spread, round(eps * n * n * 2.0 ** (2 * frac)))

    def inverse_deviation() -> Protocol[Wire]:
        root = yield from power(rt, Shares(spread, 2 * frac, WORD, x.dtype), -0.5, low=2 * bits - 16, octaves=30)
        return (yield from open_lifted(rt, root, 38))

    def weighted() -> Protocol[Wire | None]:
        if gain is None:
            return None
        weight = yield from open_wire(rt, (yield from normal(rt, gain)))
        product = multiply_wires(rt, y, weight)
        centred = product.like(product.data * n - multiply_wires(rt, total, weight).data)
        return (yield from open_lifted(rt, centred, 14))

    scale, numerator = yield from parallel(inverse_deviation(), weighted())
    # 14 (or 18 without gain) + 38 fractional bits leave 2^8 for |normalised · gain|.
    if numerator is not None:
        out = multiply_wires(rt, numerator, scale)
    else:
        out = multiply_wires(rt, y, scale)
        out = out.like(out.data * n - multiply_wires(rt, total, scale).data)
    return (yield from lift(rt, out, rt.frac))
