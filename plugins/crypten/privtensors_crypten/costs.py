"""What CrypTen 0.4.1 spends, by shape: exchanges and words that one of two parties sends. Read off its protocols, and measured.

Everything is made of three of them, per element: a product opens both factors at once, a square opens its operand, and a sign
takes a 64-bit adder on binary shares (Catrina and de Hoogh, 2010, in CrypTen's form: one AND and six levels of the tree, then
one bit back to additive shares): 8 exchanges, 27 words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch

from privtensors.core.kernel import FREE, Cost
from privtensors_crypten.payload import Held

CostOf = Callable[..., Cost]
_SIGN: Final = (8, 27)
_PRODUCT: Final = (1, 2)
_EXP: Final = (8, 8)
_PLAIN_RECIPROCAL: Final = (28, 38)  # of a positive operand
_RECIPROCAL: Final = (8 + 1 + 28 + 1, 27 + 2 + 38 + 2)
_SIGMOID: Final = (8 + 1 + 8 + 4 + 2, 27 + 2 + 8 + 6 + 4)
_RSQRT: Final = (8 + 9, 8 + 15)


def shape_of(x: Any) -> tuple[int, ...]:
    """Shape of an operand; a number has shape ()."""
    return tuple(x.shape) if hasattr(x, "shape") else ()


def together(*operands: Any) -> tuple[int, ...]:
    """Shape to which the operands broadcast."""
    return tuple(torch.broadcast_shapes(*map(shape_of, operands)))  # type: ignore[no-untyped-call]


def _times(each: tuple[int, int], count: int) -> Cost:
    return Cost(each[0], 8 * each[1] * count) if count else FREE


def _words(rounds: int, words: int) -> Cost:
    return Cost(rounds, 8 * words)


def product(x: Any, y: Any) -> Cost:
    """Elementwise: free unless both are private."""
    if not (isinstance(x, Held) and isinstance(y, Held)) or not math.prod(together(x, y)):
        return FREE
    return _words(1, math.prod(x.shape) + math.prod(y.shape))


def each(rounds: int, words: int) -> CostOf:
    """A row that spends so much per element of its first operand."""
    return lambda _backend, x, *_args, **_kwargs: _times((rounds, words), math.prod(x.shape))


def mul(_backend: Any, x: Any, y: Any) -> Cost:
    return product(x, y)


def div(_backend: Any, x: Any, y: Any) -> Cost:
    if not isinstance(y, Held) or not math.prod(y.shape):
        return product(x, y)
    return _times(_RECIPROCAL, math.prod(y.shape)) + product(x, y)


def addcmul(_backend: Any, _x: Any, a: Any, b: Any, **_value: Any) -> Cost:
    return product(a, b)


def power(_backend: Any, x: Held, exponent: float) -> Cost:
    count = math.prod(x.shape)
    return _times((1, 1), count) + (FREE if exponent == 2 else _times(_PRODUCT, count))


def matmul(_backend: Any, x: Any, y: Any) -> Cost:
    count = math.prod(shape_of(x)), math.prod(shape_of(y))
    if not (isinstance(x, Held) and isinstance(y, Held)) or not all(count):
        return FREE
    return _words(1, sum(count))


def addmm(backend: Any, _x: Any, a: Any, b: Any, **_factors: Any) -> Cost:
    return matmul(backend, a, b)


def convolution(backend: Any, x: Any, weight: Any, *_rest: Any) -> Cost:
    return matmul(backend, x, weight)


def compare(_backend: Any, x: Any, y: Any) -> Cost:
    return _times(_SIGN, math.prod(together(x, y)))


def relu_of(count: int) -> Cost:
    """A sign and a product."""
    return _times((_SIGN[0] + 1, _SIGN[1] + 2), count)


def maximum(_backend: Any, x: Any, y: Any) -> Cost:
    return relu_of(math.prod(together(x, y)))


def clamp(_backend: Any, x: Held, low: float | None = None, high: float | None = None) -> Cost:
    one, none = relu_of(math.prod(x.shape)), FREE
    return (none if low is None else one) + (none if high is None else one)


def tree(length: int, rows: int) -> Cost:
    """Maximum over an axis of ``length`` in ``rows`` rows."""
    total = FREE
    while length > 1:
        total += relu_of(rows * (length // 2))
        length -= length // 2
    return total


def amax(_backend: Any, x: Held, dims: Sequence[int] = (), _keep: bool = False) -> Cost:
    shape, total = list(x.shape), FREE
    for dim in sorted({d % len(shape) for d in dims} or range(len(shape)), reverse=True):
        length, shape[dim] = shape[dim], 1
        total += tree(length, math.prod(shape))
    return total


def max_pool2d(_backend: Any, x: Held, kernel: Sequence[int], stride: Sequence[int] = (), padding: Sequence[int] = (0, 0), *_: Any) -> Cost:
    out = torch.nn.functional.max_pool2d(torch.empty(x.shape, device="meta"), list(kernel), list(stride) or None, list(padding))
    return tree(kernel[0] * kernel[-1], out.numel())


def where(_backend: Any, mask: Any, x: Any, y: Any) -> Cost:
    if not isinstance(mask, Held) or not (isinstance(x, Held) or isinstance(y, Held)):
        return FREE
    count, other = math.prod(shape_of(mask)), math.prod(together(x, y))
    return _words(1, count + other) if math.prod(together(mask, x, y)) else FREE


def masked_fill(backend: Any, x: Any, mask: Any, value: float) -> Cost:
    return where(backend, mask, value, x)


def softmax(_backend: Any, x: Held, dim: int, *_: Any, **_kwargs: Any) -> Cost:
    count = math.prod(x.shape)
    if not count:
        return FREE
    length = x.shape[dim] if x.shape else 1
    rows = count // length
    return tree(length, rows) + _times(_EXP, count) + _times(_PLAIN_RECIPROCAL, rows) + _words(1, count + rows)


EXP, SIGMOID, RECIPROCAL, RSQRT = each(*_EXP), each(*_SIGMOID), each(*_RECIPROCAL), each(*_RSQRT)
SILU, SQRT = each(_SIGMOID[0] + 1, _SIGMOID[1] + 2), each(_RSQRT[0] + 1, _RSQRT[1] + 2)
RELU, ABS = each(_SIGN[0] + 1, _SIGN[1] + 2), each(_SIGN[0] + 1, _SIGN[1] + 2)
