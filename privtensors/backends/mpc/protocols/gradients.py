"""What training adds to the activations: softplus, and the derivatives of GELU, SiLU and the others, as Fourier series in a window."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import torch

from privtensors.backends.mpc.fits import Function, fit, largest, precise
from privtensors.backends.mpc.protocols.activation import RANGE_BITS, Activation, activate
from privtensors.backends.mpc.protocols.arithmetic import lift, normal, open_lifted, open_wire, square_wire
from privtensors.backends.mpc.protocols.compare import at_least
from privtensors.backends.mpc.protocols.fourier import Plan
from privtensors.backends.mpc.protocols.normalise import power
from privtensors.backends.mpc.runtime import Protocol, Runtime, parallel
from privtensors.backends.mpc.shares import WORD, Shares

_mp = precise()


def _gelu_slope(x: Any) -> Any:
    return 0.5 * _mp.erf(x / _mp.sqrt(2)) + x * _mp.exp(-x * x / 2) / _mp.sqrt(2 * _mp.pi)


def _gelu_tanh_slope(x: Any) -> Any:
    c = _mp.sqrt(2 / _mp.pi)
    t = _mp.tanh(c * (x + 0.044715 * x**3))
    return 0.5 * t + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x)


def _silu_slope(x: Any) -> Any:
    s = 1 / (1 + _mp.exp(-x))
    return s * (1 + x * (1 - s)) - 0.5


def _softplus_even(x: Any) -> Any:
    return _mp.log(_mp.exp(x / 2) + _mp.exp(-x / 2))


_FUNCTIONS: Final[Mapping[str, Function]] = MappingProxyType(
    {"softplus": _softplus_even, "gelu": _gelu_slope, "gelu_tanh": _gelu_tanh_slope, "silu": _silu_slope}
)


@functools.cache
def smooth(name: str) -> Activation:
    """The plan of ``softplus``, ``gelu``, ``gelu_tanh`` or ``silu`` (the last three: their derivatives); fitted once.

    Derivatives are 1/2 plus an odd function that ends at ±1/2; softplus is x/2 plus an even one.
    """
    window, period_log2, count, parity = (12.0, 5, 20, "odd") if name == "silu" else (5.0, 4, 16, "odd")
    if name == "softplus":
        window, period_log2, count, parity = 12.0, 5, 16, "even"
    function = _FUNCTIONS[name]
    reach = window + 0.3
    series = fit(function, low=-reach, high=reach, period=2.0**period_log2, harmonics=range(1, count + 1), parity=parity, ridge=1e-6)
    biggest = largest(function, -reach, reach) + 0.01
    out_frac = math.floor(29.8 - math.log2(biggest))
    line = name == "softplus"
    return Activation(name, window, Plan(series, 20 - period_log2, 20, out_frac), 0.0, 0.0 if line else 1.0, line, 1e-3)


def evaluate(rt: Runtime, x: Shares, name: str) -> Protocol[Shares]:
    """Apply :func:`smooth`; 3 rounds, right for values in ±8192."""
    ready = x if x.ring - x.frac > RANGE_BITS else (yield from normal(rt, x))
    return (yield from activate(rt, ready, smooth(name)))


def between(rt: Runtime, x: Shares, limits: Sequence[int], frac: int, range_bits: int) -> Protocol[torch.Tensor]:
    """Boolean shares of ``limits[0] ≤ x`` and, with a second limit, ``x < limits[1]``; limits in units of ``2^-frac``."""
    ready = x if x.ring - max(x.frac - frac, 0) > frac + range_bits else (yield from normal(rt, x))
    above = yield from at_least(rt, ready, limits, frac=frac, range_bits=range_bits)
    return above[:, 0] if len(limits) == 1 else above[:, 0] ^ above[:, 1]


def one_hot(rt: Runtime, labels: Shares, classes: int) -> Protocol[torch.Tensor]:
    """Boolean shares ``(parties, classes, *shape)`` of ``labels == c`` for shared class indices 0 … classes - 1.

    One opening of the labels serves all classes. An index outside 0 … classes - 1 counts as one of them, not always the nearest.
    """
    if classes == 1:
        return rt.constant(torch.ones(1, *labels.shape, dtype=torch.int8))
    bits = (classes - 1).bit_length() + 1
    whole = labels if labels.frac == 0 else (yield from normal(rt, labels))
    scale = whole.frac
    above = yield from at_least(rt, whole, [c << scale for c in range(1, classes)], frac=scale, range_bits=bits)
    first = rt.flip_public(above[:, :1].clone())
    return torch.cat([first, above[:, :-1] ^ above[:, 1:], above[:, -1:]], 1)


def statistics(rt: Runtime, x: Shares, eps: float) -> Protocol[tuple[Shares, Shares]]:
    """Mean and (variance + eps)^(-1/2) over the last axis, ``(…, 1)`` each, for variances in [2^-14, 2^14]; 5 rounds."""
    n = x.shape[-1]
    bits = math.ceil(math.log2(max(n, 2)))
    frac = min(18, (62 - 15 - 2 * bits) // 2)
    sums = x.like(x.data.sum(-1, keepdim=True))
    y, total = yield from parallel(open_lifted(rt, x, frac), lift(rt, sums, frac))
    wire = yield from open_wire(rt, total)
    spread = square_wire(rt, y).data.sum(-1, keepdim=True) * n - square_wire(rt, wire).data
    rt.add_public(spread, round(eps * n * n * 2.0 ** (2 * frac)))
    root = yield from power(rt, Shares(spread, 2 * frac, WORD, x.dtype), -0.5, low=2 * bits - 16, octaves=30)
    root = yield from lift(rt, root, 38)  # 1 / (n · deviation)
    deviation = root.like(root.data * n)
    mean = Shares(total.data * round(2.0**20 / n), total.frac + 20, WORD, x.dtype)
    return mean, (yield from lift(rt, deviation, 24))
