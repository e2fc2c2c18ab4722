"""Rows of the op table in CrypTen's operations; every function is run by both parties at once.

``x``, ``y`` and the like are MPCTensors, or plain float64 tensors or numbers where public. What is written here beside calls of
CrypTen: public values are added to party 0's share only; a maximum is ``y + relu(x - y)``, one product where CrypTen's ``where``
takes two; the maximum over an axis is a tree of those without CrypTen's one-hot of the argmax and its random choice among ties.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import crypten
import torch
from crypten.config import cfg
from crypten.mpc import MPCTensor
from local import LOCAL
from torch import Tensor

SCALE: Final = 1 << 16
LOWEST: Final = -(2.0**14)  # stands for minus infinity in padding; differences of two such values still compare


def held(share: Tensor, scale: int = SCALE) -> Any:
    """An MPCTensor of this party's share."""
    return MPCTensor.from_shares(share, precision=scale.bit_length() - 1)


def full(x: Any) -> Any:
    """``x`` at the common scale: truth values are held as integers 0 and 1."""
    return x if x.encoder.scale == SCALE else held(x.share * (SCALE // x.encoder.scale))


def words(x: Any) -> Tensor:
    """The fixed-point integers of a public tensor or number."""
    return (torch.as_tensor(x, dtype=torch.float64) * SCALE).round().long()


def constant(x: Any, like: Tensor | None = None) -> Any:
    """A public value as an MPCTensor: party 0 holds it, the other party zero."""
    share = words(x) if like is None else words(x).expand(like.shape).clone()
    return held(share if crypten.communicator.get().get_rank() == 0 else torch.zeros_like(share))


def private(x: Any) -> bool:
    return isinstance(x, MPCTensor)


def lifted(x: Any) -> Any:
    return full(x) if private(x) else constant(x)


def times(x: Any, y: Any) -> Any:
    """A product with at least one private factor; exact where a factor is a truth value or a whole number."""
    if not private(x):
        x, y = y, x
    if private(y):
        shape = torch.broadcast_shapes(x.share.shape, y.share.shape)
        return x.mul(y) if 0 not in shape else held(torch.zeros(shape, dtype=torch.int64))
    if isinstance(y, (int, float)) and float(y).is_integer():
        return held(x.share * int(y), x.encoder.scale)
    product = x.share * words(y)
    return held(product if x.encoder.scale == 1 else product.div(SCALE, rounding_mode="trunc"))


def plus(x: Any, y: Any, alpha: float = 1) -> Any:
    second = y if alpha == 1 else times(y, alpha) if private(y) else y * alpha
    a, b = lifted(x), lifted(second)
    return held(a.share + b.share)


def minus(x: Any, y: Any, alpha: float = 1) -> Any:
    return plus(x, y, -alpha)


def quotient(x: Any, y: Any) -> Any:
    if private(y):
        return times(x, nonempty(y, lambda: y.reciprocal()))
    if isinstance(y, (int, float)) and float(y).is_integer():
        return x.div(int(y))
    return times(x, 1.0 / torch.as_tensor(y, dtype=torch.float64))


def power(x: Any, exponent: float) -> Any:
    square = nonempty(x, x.square)
    return square if exponent == 2 else times(square, x)


def addcmul(x: Any, a: Any, b: Any, *, value: float = 1) -> Any:
    product = a * b * value if not (private(a) or private(b)) else times(a, b)
    return plus(x, product, value if private(product) else 1)


def mean(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    total = x.share.sum() if dim is None else x.share.sum(dim, keepdim)
    return held(total).div(max(1, x.share.numel() // max(1, total.numel())))


# --- products ----------------------------------------------------------------------------------------------------------------


def matmul(x: Any, y: Any) -> Any:
    """Matrix product of operands of which at least one is private."""
    if private(x) and private(y):
        if 0 in x.share.shape or 0 in y.share.shape:
            return held(torch.matmul(x.share, y.share))
        return x.matmul(y)
    product = torch.matmul(x.share, words(y)) if private(x) else torch.matmul(words(x), y.share)
    return held(product.div(SCALE, rounding_mode="trunc"))


def addmm(x: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    if not (private(a) or private(b)):
        return plus(x if beta == 1 else times(x, beta), torch.matmul(a, b) * alpha)
    product = matmul(a, b)
    first = x if beta == 1 else times(x, beta) if private(x) else x * beta
    return plus(first, product if alpha == 1 else times(product, alpha))


def convolution(x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, *rest: Any) -> Any:
    options = {"stride": tuple(stride), "padding": tuple(padding), "dilation": tuple(dilation), "groups": rest[-1]}
    if private(x) and private(weight):
        out = x.conv2d(weight, **options)
    else:
        a, b = (x.share, words(weight)) if private(x) else (words(x), weight.share)
        out = held(torch.conv2d(a, b, **options).div(SCALE, rounding_mode="trunc"))
    return out if bias is None else plus(out, bias.view(-1, 1, 1))


def avg_pool2d(x: Any, kernel: Any, stride: Any = (), padding: Any = 0) -> Any:
    return x.avg_pool2d(tuple(kernel), stride=tuple(stride) or None, padding=padding if isinstance(padding, int) else tuple(padding))


# --- comparisons -------------------------------------------------------------------------------------------------------------


def below(x: Any, y: Any, flip: bool = False) -> Any:
    """Truth of ``x < y``, or of ``x >= y`` with ``flip``, as 0 and 1 at scale 1."""
    difference = minus(x, y)
    if not difference.share.numel():
        return held(difference.share, 1)
    bit = difference._ltz()
    share = -bit.share if flip else bit.share.clone()
    if flip and crypten.communicator.get().get_rank() == 0:
        share += 1
    return held(share, 1)


def nonempty(x: Any, make: Callable[[], Any]) -> Any:
    return make() if x.share.numel() else x


def relu(x: Any) -> Any:
    return nonempty(x, x.relu)


def maximum(x: Any, y: Any) -> Any:
    return plus(y, relu(minus(x, y)))


def absolute(x: Any) -> Any:
    return nonempty(x, x.abs)


def clamp(x: Any, low: float | None = None, high: float | None = None) -> Any:
    out = x if low is None else plus(relu(minus(x, low)), low)
    return out if high is None else minus(high, relu(minus(high, out)))


def tree_max(x: Any, dim: int) -> Any:
    """Maximum over ``dim``, which stays with length one: log2 rounds of comparisons of halves."""
    share = x.share
    while share.size(dim) > 1:
        half = share.size(dim) // 2
        a, b, rest = share.split([half, half, share.size(dim) % 2], dim)
        share = torch.cat([maximum(held(a), held(b)).share, rest], dim)
    return held(share)


def amax(x: Any, dims: Any = (), keepdim: bool = False) -> Any:
    axes = sorted({d % x.share.dim() for d in dims} or range(x.share.dim()), reverse=True)
    for dim in axes:
        x = tree_max(x, dim)
    return x if keepdim else held(x.share.squeeze(tuple(axes)))


def max_pool2d(x: Any, kernel: Any, stride: Any = (), padding: Any = (0, 0)) -> Any:
    high, wide = (kernel[0], kernel[-1])
    (down, right), (top, left) = (stride[0], stride[-1]) if stride else (high, wide), (padding[0], padding[-1])
    outside = int(LOWEST * SCALE) if crypten.communicator.get().get_rank() == 0 else 0
    share = torch.nn.functional.pad(x.share, (left, left, top, top), value=outside)
    windows = share.unfold(-2, high, down).unfold(-2, wide, right).flatten(-2)
    return held(tree_max(held(windows), -1 % windows.dim()).share.squeeze(-1))


def where(mask: Any, x: Any, y: Any) -> Any:
    if not private(mask):
        return held(torch.where(mask.bool(), lifted(x).share, lifted(y).share))
    if private(x) or private(y):
        return plus(y, times(mask, minus(x, y)))
    return plus(times(mask, torch.as_tensor(x) - torch.as_tensor(y)), y)


def constant_pad_nd(x: Any, pad: Any, value: float = 0) -> Any:
    outside = int(words(value)) if crypten.communicator.get().get_rank() == 0 else 0
    return held(torch.nn.functional.pad(x.share, tuple(pad), value=outside))


# --- functions ---------------------------------------------------------------------------------------------------------------


def softmax(x: Any, dim: int) -> Any:
    if not x.share.numel():
        return x
    axis = dim % max(1, x.share.dim())
    numerator = minus(x, tree_max(x, axis)).exp() if x.share.dim() else x.mul(0).exp()
    with cfg.temp_override({"functions.reciprocal_all_pos": True}):
        inverse = held(numerator.share.sum(axis, True) if x.share.dim() else numerator.share).reciprocal()
    return times(numerator, inverse)


def _unary(name: str) -> Callable[[Any], Any]:
    return lambda x: nonempty(x, getattr(x, name))


def silu(x: Any) -> Any:
    return nonempty(x, lambda: times(x, x.sigmoid()))


INTERACTIVE: Final[Mapping[str, Callable[..., Any]]] = MappingProxyType(
    {
        "add": plus,
        "sub": minus,
        "rsub": lambda x, y, alpha=1: minus(y, x, alpha),
        "mul": times,
        "div": quotient,
        "pow": power,
        "addcmul": addcmul,
        "mean": mean,
        "mm": matmul,
        "bmm": matmul,
        "mv": matmul,
        "dot": matmul,
        "addmm": addmm,
        "baddbmm": addmm,
        "convolution": convolution,
        "avg_pool2d": avg_pool2d,
        "adaptive_avg_pool2d": lambda x, _size: mean(x, [-2, -1], True),
        "gt": lambda x, y: below(y, x),
        "ge": lambda x, y: below(x, y, flip=True),
        "lt": below,
        "le": lambda x, y: below(y, x, flip=True),
        "maximum": maximum,
        "minimum": lambda x, y: minus(y, relu(minus(y, x))),
        "amax": amax,
        "max_pool2d": max_pool2d,
        "abs": absolute,
        "relu": relu,
        "clamp": clamp,
        "where": where,
        "masked_fill": lambda x, mask, value: where(mask, value, x),
        "constant_pad_nd": constant_pad_nd,
        "constant": lambda x: constant(x),
        "exp": _unary("exp"),
        "tanh": _unary("tanh"),
        "sigmoid": _unary("sigmoid"),
        "silu": silu,
        "sqrt": _unary("sqrt"),
        "rsqrt": _unary("inv_sqrt"),
        "reciprocal": _unary("reciprocal"),
        "softmax": softmax,
    }
)


def run(row: str, args: list[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """The results of ``row``, each an MPCTensor.

    Raises:
        KeyError: No such row.
    """
    if row in LOCAL:
        return _local(row, args, kwargs)
    widened = [a if i == _MASK.get(row) or not private(a) or row == "mul" else full(a) for i, a in enumerate(args)]
    out = INTERACTIVE[row](*widened, **kwargs)
    return [out]


_MASK: Final[Mapping[str, int]] = MappingProxyType({"where": 0, "masked_fill": 1})


def _local(row: str, args: list[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    first = args[0]
    if isinstance(first, list):
        scales = {x.encoder.scale if private(x) else SCALE for x in first}
        first = first if len(scales) == 1 and all(map(private, first)) else [lifted(x) for x in first]
        scale, opened = first[0].encoder.scale, [x.share for x in first]
    else:
        scale, opened = first.encoder.scale, first.share
    out = LOCAL[row](opened, *args[1:], **kwargs)
    return [held(share, scale) for share in (out if isinstance(out, (tuple, list)) else (out,))]
