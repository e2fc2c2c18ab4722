"""Samples of the backward rows. Operands that come out of the forward pass are computed by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import torch

from privtensors.testing.samples_losses import LOSSES
from privtensors.testing.samples_types import Sample, ramp, rand, sample

_a: Final = torch.ops.aten


def _elementwise(overload: object, seed: int, low: float, high: float, *rest: object) -> list[Sample]:
    return [sample(overload, "ramp", rand(4, 16, seed=seed), ramp(low, high, 4, 16), *rest)]


def _softmax() -> list[Sample]:
    out = ramp(-30, 30, 3, 8).roll(3, 0).softmax(-1)
    return [sample(_a._softmax_backward_data.default, "rows", rand(3, 8, seed=60), out, -1, torch.float32)]


def _layer_norm() -> list[Sample]:
    x, weight, bias = rand(2, 3, 8, seed=61, scale=3.0), rand(8, seed=62), rand(8, seed=63)
    _, mean, rstd = _a.native_layer_norm.default(x, [8], weight, bias, 1e-5)
    args = (rand(2, 3, 8, seed=64), x, [8], mean, rstd)
    row = _a.native_layer_norm_backward.default
    return [
        sample(row, "affine", *args, weight, bias, [True, True, True], mixes=((0, 1, 3, 4, 5, 6), (0, 1, 3, 4))),
        sample(row, "plain", *args, None, None, [True, False, False], mixes=((0, 1, 3, 4),)),
    ]


def _attention() -> list[Sample]:
    q, k, v = (rand(1, 2, 4, 8, seed=s) for s in (65, 66, 67))
    out, lse = _a._scaled_dot_product_flash_attention_for_cpu.default(q, k, v, 0.0, False)
    row = _a._scaled_dot_product_flash_attention_for_cpu_backward.default
    return [sample(row, "no mask", rand(1, 2, 4, 8, seed=68), q, k, v, out, lse, 0.0, False, mixes=((0, 1, 2, 3, 4, 5),))]


def _convolution() -> list[Sample]:
    args = (rand(1, 4, 5, 5, seed=69), rand(1, 3, 7, 7, seed=70), rand(4, 3, 3, 3, seed=71))
    rest = ([4], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, True, True])
    return [sample(_a.convolution_backward.default, "3x3", *args, *rest)]


def _max_pool() -> list[Sample]:
    found = []
    for name, shape, options in (
        ("2x2", (1, 2, 6, 6), ([2, 2], [2, 2], [0, 0], [1, 1], False)),
        ("overlapping", (1, 2, 6, 6), ([3, 3], [2, 2], [1, 1], [1, 1], False)),
        ("narrow", (2, 5, 2), ([3, 3], [1, 1], [1, 1], [1, 1], False)),
    ):
        x = rand(*shape, seed=72, scale=3.0)
        out, indices = _a.max_pool2d_with_indices.default(x, *options)
        found.append(sample(_a.max_pool2d_with_indices_backward.default, name, rand(*out.shape, seed=73), x, *options, indices))
    return found


BACKWARD: Final[Mapping[str, Callable[[], list[Sample]]]] = MappingProxyType(
    {
        "relu_backward": lambda: _elementwise(_a.threshold_backward.default, 50, -3, 3, 0),
        "gelu_backward": lambda: [
            *_elementwise(_a.gelu_backward.default, 51, -17, 24),
            sample(_a.gelu_backward.default, "tanh", rand(4, 8, seed=52), ramp(-5, 5, 4, 8), kw={"approximate": "tanh"}),
        ],
        "silu_backward": lambda: _elementwise(_a.silu_backward.default, 53, -17, 17),
        "tanh_backward": lambda: _elementwise(_a.tanh_backward.default, 54, -1, 1),
        "sigmoid_backward": lambda: _elementwise(_a.sigmoid_backward.default, 55, 0, 1),
        "clamp_backward": lambda: _elementwise(_a.hardtanh_backward.default, 56, -3, 9, 0.0, 6.0),
        "softmax_backward": _softmax,
        "layer_norm_backward": _layer_norm,
        "attention_backward": _attention,
        "select_backward": lambda: [sample(_a.select_backward.default, "middle", rand(4, 5, seed=57), [4, 3, 5], 1, 1)],
        "slice_backward": lambda: [sample(_a.slice_backward.default, "step 2", rand(2, 5, seed=58), [4, 5], 0, 0, 4, 2)],
        "convolution_backward": _convolution,
        "max_pool2d_backward": _max_pool,
        **LOSSES,
    }
)
