"""Sample inputs for every row of the op table, in the ranges that real models have.

Ranges of the nonlinear rows are those of layer 0 of MiniLM on English text: GELU inputs -17..24, attention scores -30..30,
variances 0.16..126. Shapes are small; geometry is explored by the suite's property tests.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor

from privtensors.testing.samples_backward import BACKWARD
from privtensors.testing.samples_types import Sample, ramp, rand, sample

__all__ = ["Sample", "samples"]

_a: Final = torch.ops.aten


def _x(seed: int = 1) -> Tensor:
    return rand(3, 4, seed=seed, scale=3.0)


def _mask(*shape: int) -> Tensor:
    return rand(*shape, seed=9) > 0


def _shapes() -> Mapping[str, list[Sample]]:
    cube = rand(2, 3, 4, seed=2)
    return {
        "detach": [sample(_a.detach.default, "plain", _x()), sample(_a.alias.default, "alias", _x())],
        "view": [
            sample(_a.view.default, "flat", _x(), [12]),
            sample(_a.view.default, "infer", cube, [2, -1]),
            sample(_a._unsafe_view.default, "unsafe", _x(), [2, 6]),
            sample(_a.view.default, "empty", torch.zeros(0, 4), [2, 0, 2]),
        ],
        "t": [sample(_a.t.default, "matrix", _x()), sample(_a.t.default, "vector", rand(5))],
        "transpose": [sample(_a.transpose.int, "inner", cube, 1, 2), sample(_a.transpose.int, "negative", cube, 0, -1)],
        "permute": [sample(_a.permute.default, "rotate", cube, [2, 0, 1])],
        "unsqueeze": [sample(_a.unsqueeze.default, "front", _x(), 0), sample(_a.unsqueeze.default, "back", _x(), -1)],
        "squeeze": [
            sample(_a.squeeze.default, "all", rand(1, 3, 1)),
            sample(_a.squeeze.dim, "one", rand(1, 3, 1), 0),
            sample(_a.squeeze.dims, "some", rand(1, 3, 1), [0, 2]),
        ],
        "expand": [sample(_a.expand.default, "rows", rand(1, 4), [3, 4]), sample(_a.expand.default, "new", rand(4), [2, 3, -1])],
        "select": [sample(_a.select.int, "row", cube, 0, 1), sample(_a.select.int, "last", cube, -1, -1)],
        "slice": [
            sample(_a.slice.Tensor, "middle", cube, 2, 1, 3),
            sample(_a.slice.Tensor, "step", cube, 1, 0, 9223372036854775807, 2),
            sample(_a.slice.Tensor, "empty", cube, 1, 2, 2),
        ],
        "split": [
            sample(_a.split.Tensor, "equal", cube, 2, 2),
            sample(_a.split.Tensor, "ragged", cube, 2, 1),
            sample(_a.split_with_sizes.default, "sizes", cube, [1, 2], 1),
        ],
        "unbind": [sample(_a.unbind.int, "rows", _x()), sample(_a.unbind.int, "columns", _x(), 1)],
    }


def _structure() -> Mapping[str, list[Sample]]:
    x, cube, ints = _x(), rand(2, 3, 4, seed=2), torch.tensor([[2, 0], [1, 1]])
    return {
        "clone": [
            sample(_a.clone.default, "plain", x),
            sample(_a.clone.default, "contiguous", x, kw={"memory_format": torch.contiguous_format}),
        ],
        "to_copy": [
            sample(_a._to_copy.default, "same", x),
            sample(_a._to_copy.default, "float64", x, kw={"dtype": torch.float64}),
            sample(_a._to_copy.default, "bfloat16", ramp(-2, 2, 3, 4), kw={"dtype": torch.bfloat16}),
        ],
        "cat": [sample(_a.cat.default, "rows", [x, rand(1, 4)]), sample(_a.cat.default, "columns", [x, x, rand(3, 1)], -1)],
        "stack": [sample(_a.stack.default, "front", [x, _x(3)]), sample(_a.stack.default, "back", [x, _x(3)], -1)],
        "repeat": [sample(_a.repeat.default, "grow", x, [2, 1, 3])],
        "flip": [sample(_a.flip.default, "both", x, [0, 1])],
        "roll": [sample(_a.roll.default, "rows", x, [1], [0])],
        "index": [
            sample(_a.index.Tensor, "columns", x, [None, torch.tensor([0, 3])], public=(1,)),
            sample(_a.index.Tensor, "points", x, [torch.tensor([0, 2]), torch.tensor([1, 1])], public=(1,)),
            sample(_a.index.Tensor, "mask", x, [torch.tensor([True, False, True])], public=(1,)),
        ],
        "index_select": [sample(_a.index_select.default, "rows", x, 0, torch.tensor([2, 0]), public=(2,))],
        "gather": [sample(_a.gather.default, "columns", x, 1, ints, public=(2,))],
        "embedding": [
            sample(_a.embedding.default, "rows", x, torch.tensor([[2, 0], [1, 1]])),
            sample(_a.embedding.default, "public ids", x, torch.tensor([2, 2, 0]), 1, public=(1,)),
        ],
        "constant_pad_nd": [
            sample(_a.constant_pad_nd.default, "zeros", x, [1, 2]),
            sample(_a.constant_pad_nd.default, "value", x, [0, 1, 2, 0], -1.5),
        ],
        "tril": [sample(_a.tril.default, "main", x), sample(_a.tril.default, "above", x, 1)],
        "triu": [sample(_a.triu.default, "main", x), sample(_a.triu.default, "above", x, 1)],
        "masked_fill": [
            sample(_a.masked_fill.Scalar, "public mask", x, _mask(3, 4), -1.5, public=(1,)),
            sample(_a.masked_fill.Scalar, "any mask", x, _mask(3, 4), 2.0, mixes=((0, 1), (1,))),
        ],
        "where": [
            sample(_a.where.self, "public mask", _mask(3, 4), x, _x(3), public=(0,)),
            sample(_a.where.self, "any mask", _mask(3, 4), x, _x(3), mixes=((0, 1, 2), (0, 1), (0, 2), (0,))),
            sample(_a.where.ScalarOther, "other", _mask(3, 4), x, 0.5, public=(0,)),
            sample(_a.where.ScalarSelf, "self", _mask(3, 4), -2.0, x, public=(0,)),
            sample(_a.where.self, "broadcast", _mask(1, 3, 4), cube[:, :, :1].clone(), torch.tensor(-1.0), public=(0, 2)),
        ],
        "zeros_like": [sample(_a.zeros_like.default, "plain", x)],
        "ones_like": [sample(_a.ones_like.default, "plain", x)],
        "zero": [sample(_a.zero_.default, "in place", x)],
        "copy": [
            sample(_a.copy_.default, "in place", x, _x(3), mixes=((0, 1), (0,))),
            sample(_a.copy_.default, "broadcast", x, rand(4), mixes=((0, 1), (0,))),
        ],
    }


def _binary(name: str, divisor: bool = False) -> list[Sample]:
    packet = getattr(_a, name)
    x, y = _x(), ramp(0.2, 20, 3, 4) if divisor else _x(4)
    row = (y[0] if divisor else rand(4, seed=5)).clone()
    out = [
        sample(packet.Tensor, "same shape", x, y),
        sample(packet.Tensor, "broadcast", x, row),
        sample(packet.Tensor, "both broadcast", x[:, :1].clone(), row),
        sample(packet.Tensor, "scalar tensor", x, torch.tensor(2.5)),
        sample(packet.Tensor, "empty", torch.zeros(0, 4), row),
        sample(packet.Scalar, "scalar overload", x, -0.75),
    ]
    if name == "rsub":  # its tensor overload takes no number
        return out
    numbers = [
        sample(packet.Tensor, "number", x, 1.5),
        sample(packet.Tensor, "integer", x, 3),
        sample(packet.Tensor, "number first", 2.0, y),
    ]
    return [*out, *numbers]


def _arithmetic() -> Mapping[str, list[Sample]]:
    x, y, cube = _x(), _x(4), rand(2, 3, 4, seed=2)
    scaled = {"alpha": -0.5}
    return {
        "add": [*_binary("add"), sample(_a.add.Tensor, "alpha", x, y, kw=scaled)],
        "sub": [*_binary("sub"), sample(_a.sub.Tensor, "alpha", x, y, kw=scaled)],
        "rsub": [*_binary("rsub"), sample(_a.rsub.Scalar, "one minus", x, 1)],
        "neg": [sample(_a.neg.default, "plain", x)],
        "mul": _binary("mul"),
        "div": _binary("div", divisor=True),
        "pow": [sample(_a.pow.Tensor_Scalar, name, x, n) for name, n in (("square", 2), ("cube", 3))]
        + [sample(_a.pow.Tensor_Scalar, "root", ramp(0.1, 150, 3, 4), 0.5)],
        "addcmul": [sample(_a.addcmul.default, "plain", x, y, _x(5)), sample(_a.addcmul.default, "value", x, y, _x(5), kw={"value": 0.25})],
        "addcdiv": [
            sample(_a.addcdiv.default, "plain", x, y, ramp(0.2, 20, 3, 4)),
            sample(_a.addcdiv.default, "step", x, y, ramp(0.2, 20, 3, 4), kw={"value": -0.1}),
        ],
        "lerp": [sample(_a.lerp.Scalar, "average", x, y, 0.1), sample(_a.lerp.Scalar, "half", x, y, 0.5)],
        "sum": [
            sample(_a.sum.default, "all", x),
            sample(_a.sum.dim_IntList, "rows", cube, [-1]),
            sample(_a.sum.dim_IntList, "keep", cube, [0, 2], True),
        ],
        "mean": [sample(_a.mean.default, "all", x), sample(_a.mean.dim, "rows", cube, [-1]), sample(_a.mean.dim, "keep", cube, [1], True)],
        "cumsum": [sample(_a.cumsum.default, "rows", x, 1)],
        "bincount": [
            sample(_a.bincount.default, "ids", torch.tensor([2, 0, 2, 1]), None, 3),
            sample(_a.bincount.default, "weights", torch.tensor([2, 0, 2, 1]), rand(4, seed=6), 4, mixes=((0, 1), (0,))),
        ],
        "histc": [sample(_a.histc.default, "bins", ramp(-2.9, 2.9, 5, 7), 4, -2.0, 2.0)],
        "renorm": [sample(_a.renorm.default, "rows", x, 2, 0, 1.5), sample(_a.renorm.default, "rows, L1", cube, 1, 0, 2.0)],
    }


def _linear() -> Mapping[str, list[Sample]]:
    a, b, bias = rand(3, 16, seed=10), rand(16, 5, seed=11), rand(5, seed=12)
    ba, bb = rand(2, 3, 8, seed=13), rand(2, 8, 4, seed=14)
    image, weight = rand(1, 3, 6, 6, seed=15), rand(4, 3, 3, 3, seed=16)
    conv = _a.convolution.default
    return {
        "mm": [sample(_a.mm.default, "plain", a, b), sample(_a.mm.default, "empty", torch.zeros(0, 16), b)],
        "bmm": [sample(_a.bmm.default, "plain", ba, bb)],
        "mv": [sample(_a.mv.default, "plain", a, rand(16, seed=17))],
        "dot": [sample(_a.dot.default, "plain", rand(16, seed=18), rand(16, seed=19))],
        "addmm": [
            sample(_a.addmm.default, "linear", bias, a, b),
            sample(_a.addmm.default, "scaled", rand(3, 5), a, b, kw={"beta": 0.5, "alpha": 2.0}, mixes=((0, 1, 2),)),
        ],
        "baddbmm": [sample(_a.baddbmm.default, "plain", rand(2, 3, 4, seed=20), ba, bb)],
        "convolution": [
            sample(conv, "3x3", image, weight, rand(4), [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mixes=((0, 1, 2), (0, 1), (0,), (1,))),
            sample(conv, "patches", image, rand(4, 3, 2, 2, seed=21), None, [2, 2], [0, 0], [1, 1], False, [0, 0], 1),
            sample(conv, "depthwise", image, rand(3, 1, 3, 3, seed=22), None, [1, 1], [1, 1], [1, 1], False, [0, 0], 3),
        ],
        "avg_pool2d": [sample(_a.avg_pool2d.default, "2x2", image, [2, 2], [2, 2])],
        "adaptive_avg_pool2d": [sample(_a._adaptive_avg_pool2d.default, "global", image, [1, 1])],
    }


def _comparison() -> Mapping[str, list[Sample]]:
    x, y, image = _x(), _x(4), rand(1, 2, 6, 6, seed=23)
    rows = {
        name: [
            sample(getattr(_a, name).Scalar, "zero", x, 0),
            sample(getattr(_a, name).Scalar, "number", x, 0.75),
            sample(getattr(_a, name).Tensor, "tensors", x, y),
        ]
        for name in ("gt", "ge", "lt", "le")
    }
    ids = torch.tensor([2, 0, 1, 2])
    rows["eq"] = [
        sample(_a.eq.Scalar, "number", ids, 2),
        sample(_a.eq.Tensor, "one-hot", ids.view(4, 1), torch.arange(3), public=(1,)),
        sample(_a.eq.Tensor, "tensors", ids, torch.tensor([2, 1, 1, 0])),
    ]
    clamp = _a.clamp.default
    return rows | {
        "maximum": [sample(_a.maximum.default, "tensors", x, y), sample(_a.maximum.default, "scalar tensor", x, torch.tensor(0.5))],
        "minimum": [sample(_a.minimum.default, "tensors", x, y)],
        "amax": [sample(_a.amax.default, "rows", x, [-1], True), sample(_a.amax.default, "drop", rand(2, 3, 5, seed=24, scale=9.0), [-1])],
        "argmax": [
            sample(_a.argmax.default, "rows", rand(3, 7, seed=25, scale=9.0), -1),
            sample(_a.argmax.default, "first axis", cube := rand(5, 2, 3, seed=26), 0, True),
            sample(_a.argmax.default, "ties", torch.tensor([[1.0, 3.0, 3.0, -2.0, 3.0], [0.0, 0.0, 0.0, 0.0, 0.0]]), 1),
            sample(_a.argmax.default, "all", cube),
            sample(_a.argmax.default, "one", rand(4, 1, seed=27), -1),
            sample(_a.argmax.default, "long rows", rand(2, 150, seed=28, scale=4.0), -1),
        ],
        "max_pool2d": [
            sample(_a.max_pool2d_with_indices.default, "2x2", image, [2, 2], [2, 2]),
            sample(_a.max_pool2d_with_indices.default, "3x3", image, [3, 3], [2, 2], [1, 1]),
        ],
        "abs": [sample(_a.abs.default, "plain", x)],
        "relu": [sample(_a.relu.default, "ramp", ramp(-20, 20, 4, 8)), sample(_a.relu.default, "empty", torch.zeros(0, 3))],
        "clamp": [
            sample(clamp, "both", x, -1.0, 2.0),
            sample(clamp, "low", x, 0),
            sample(clamp, "high", x, None, 1.5),
            sample(_a.hardtanh.default, "hardtanh", x),
            sample(_a.hardtanh.default, "relu6", ramp(-4, 9, 3, 4), 0, 6),
            sample(_a.hardtanh.default, "hardtanh from -2", x, -2, 1),
        ],
    }


def _nonlinear() -> Mapping[str, list[Sample]]:
    def each(name: str, low: float, high: float) -> list[Sample]:
        return [
            sample(getattr(_a, name).default, "ramp", ramp(low, high, 8, 33)),
            sample(getattr(_a, name).default, "near 0", ramp(-1, 1, 5, 5)),
        ]

    def positive(name: str, low: float, high: float) -> list[Sample]:
        return [
            sample(getattr(_a, name).default, "ramp", ramp(low, high, 8, 33)),
            sample(getattr(_a, name).default, "small", ramp(low, 2, 40)),
        ]

    return {
        "exp": [sample(_a.exp.default, "ramp", ramp(-30, 4, 8, 33))],
        "tanh": each("tanh", -12, 12),
        "sigmoid": each("sigmoid", -20, 20),
        "gelu": [*each("gelu", -17, 24), sample(_a.gelu.default, "tanh", ramp(-17, 24, 8, 16), kw={"approximate": "tanh"})],
        "silu": each("silu", -17, 17),
        "erf": each("erf", -6, 6),
        "rsqrt": positive("rsqrt", 0.1, 150),
        "sqrt": positive("sqrt", 0.1, 150),
        "reciprocal": positive("reciprocal", 0.1, 150),
    }


def _attention_samples() -> list[Sample]:
    q, k, v = (rand(2, 2, 5, 8, seed=s, scale=2.0) for s in (30, 31, 32))
    row = _a._scaled_dot_product_flash_attention_for_cpu.default
    padding = torch.zeros(2, 1, 5, 5)
    padding[1, :, :, 3:] = torch.finfo(torch.float32).min
    return [
        sample(row, "no mask", q, k, v),
        sample(row, "grouped heads", rand(2, 4, 5, 8, seed=29, scale=2.0), k, v, mixes=((0, 1, 2),)),
        sample(row, "causal", q, k, v, 0.0, True, mixes=((0, 1, 2),)),
        sample(row, "padding", q, k, v, kw={"attn_mask": padding}, mixes=((0, 1, 2),)),
        sample(row, "scale", q, k, v, 0.0, False, kw={"scale": 0.5}, mixes=((0, 1, 2),)),
    ]


def _fused() -> Mapping[str, list[Sample]]:
    scores = ramp(-30, 30, 6, 16).flatten().roll(37).view(6, 16)
    x, weight, bias = rand(2, 5, 16, seed=33, scale=2.0), rand(16, seed=34), rand(16, seed=35)
    spread = rand(4, 16, seed=36) * torch.tensor([[0.35], [1.0], [4.0], [12.0]])  # variances about 0.1..150
    image, mean, var = rand(2, 3, 4, 4, seed=37), rand(3, seed=38), ramp(0.2, 4, 3)
    gain, shift = rand(3, seed=39), rand(3, seed=40)
    norm, batch, inference = _a.native_layer_norm.default, _a.native_batch_norm.default, _a._native_batch_norm_legit_no_training.default
    return {
        "softmax": [
            sample(_a._softmax.default, "ramp", scores, -1, False),
            sample(_a._softmax.default, "attention", rand(2, 2, 5, 5, seed=41, scale=5.0), -1, False),
            sample(_a._softmax.default, "first axis", rand(4, 3, seed=42), 0, False),
            sample(_a._safe_softmax.default, "safe", scores, -1),
        ],
        "layer_norm": [
            sample(norm, "affine", x, [16], weight, bias, 1e-5),
            sample(norm, "plain", x, [16], None, None, 1e-5),
            sample(norm, "variances", spread, [16], weight, bias, 1e-12, mixes=((0, 2, 3),)),
        ],
        "batch_norm": [
            sample(batch, "affine", image, gain, shift, mean, var, False, 0.1, 1e-5, mixes=((0, 1, 2), (0, 1, 2, 3, 4), (0,))),
            sample(inference, "inference", image, gain, shift, mean, var, 0.1, 1e-5, mixes=((0, 1, 2), (0,))),
        ],
        "attention": _attention_samples(),
    }


@functools.cache
def _all() -> Mapping[str, tuple[Sample, ...]]:
    tables: list[Callable[[], Mapping[str, list[Sample]]]] = [_shapes, _structure, _arithmetic, _linear, _comparison, _nonlinear, _fused]
    rows = {op: tuple(found) for table in tables for op, found in table().items()}
    return MappingProxyType(rows | {op: tuple(make()) for op, make in BACKWARD.items()})


def samples(op: str) -> tuple[Sample, ...]:
    """The samples of row ``op``; at least one for every row of the op table."""
    return _all()[op]


def reference(case: Sample, args: tuple[Any, ...]) -> Any:
    """Run the sample's overload on plain ``args``; float32 inputs are computed in float64 and rounded at the end.

    A kernel is compared with the exact result, not with one particular order of float32 additions.
    """

    def widen(a: Any) -> Any:
        if isinstance(a, Tensor):
            return a.double() if a.dtype is torch.float32 else a.clone()
        return [widen(b) for b in a] if isinstance(a, list) else a

    def narrow(want: Any, exact: Any) -> Any:
        if isinstance(want, (tuple, list)):
            return type(want)(narrow(w, e) for w, e in zip(want, exact, strict=True))
        return exact.to(want.dtype) if isinstance(want, Tensor) else want

    copies = [a.clone() if isinstance(a, Tensor) else a for a in args]
    want = case.overload(*copies, **case.kwargs)
    kwargs = {k: widen(v) for k, v in case.kwargs.items()}
    wide = [torch.float64 if a is torch.float32 else widen(a) for a in args]
    return narrow(want, case.overload(*wide, **kwargs))
