"""Kernels for matrix products, convolutions and average pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from privtensors.backends.mpc import costs
from privtensors.backends.mpc.kernels.arithmetic import add, scale, ulps
from privtensors.backends.mpc.kernels.shape import by_row
from privtensors.backends.mpc.protocols.arithmetic import matmul_wires, normal, open_wire, with_headroom
from privtensors.backends.mpc.runtime import Host, Protocol, Runtime, parallel
from privtensors.backends.mpc.shares import Shares, ViewMap, Wire
from privtensors.core.kernel import Cost, Kernel
from privtensors.errors import UnsupportedOp

Operand = Shares | Tensor


def _ready(rt: Runtime, x: Shares) -> Protocol[Wire]:
    """x opened at the backend's fractional bits, lifted first when it carries more.

    A view of a whole tensor lifts that tensor, so that a trained weight and its transpose are lifted and opened once.
    """
    if x.opened(rt.frac, 64) is None and (x.frac != rt.frac or x.ring != 64):
        if x.origin is not None and x.origin[2]:
            x = (yield from normal(rt, x.origin[0])).view(x.origin[1], whole=True)
        else:
            x = yield from normal(rt, x)
    return (yield from open_wire(rt, x))


def _same(t: Tensor, lead: int) -> Tensor:
    return t


def product(backend: Host, x: Operand, y: Operand, map_x: ViewMap = _same, map_y: ViewMap = _same) -> Shares:
    """matmul(map_x(x), map_y(y)); each shared operand is opened once, before its map."""
    rt: Runtime = backend.runtime
    if isinstance(x, Shares) and isinstance(y, Shares):
        dtype = x.dtype
        wire_x, wire_y = backend.run(parallel(_ready(rt, x), _ready(rt, y)))
        out = matmul_wires(rt, wire_x.map(map_x), wire_y.map(map_y))
        out.dtype = dtype
        return out
    if isinstance(x, Shares):
        assert isinstance(y, Tensor)
        ready = backend.run(with_headroom(rt, x, rt.frac))
        weight = backend.encode(map_y(y, 0), rt.frac)
        return ready.like(by_row(lambda row: torch.matmul(row, weight), map_x(ready.data, 1)), ready.frac + rt.frac)
    assert isinstance(y, Shares)
    ready = backend.run(with_headroom(rt, y, rt.frac))
    weight = backend.encode(map_x(x, 0), rt.frac)
    return ready.like(by_row(lambda row: torch.matmul(weight, row), map_y(ready.data, 1)), ready.frac + rt.frac)


def mm(backend: Host, x: Operand, y: Operand) -> Shares:
    """Matrix product of two matrices or batches of matrices."""
    return product(backend, x, y)


def mv(backend: Host, x: Operand, y: Operand) -> Shares:
    """Matrix times vector."""
    out = product(backend, x, y, map_y=lambda t, lead: t.unsqueeze(-1))
    return out.like(out.data.squeeze(-1))


def dot(backend: Host, x: Operand, y: Operand) -> Shares:
    """Inner product of two vectors."""
    out = product(backend, x, y, lambda t, lead: t.unsqueeze(-2), lambda t, lead: t.unsqueeze(-1))
    return out.like(out.data.squeeze(-1).squeeze(-1))


def addmm(backend: Host, bias: Operand, x: Operand, y: Operand, *, beta: float = 1, alpha: float = 1) -> Shares:
    """beta · bias + alpha · x @ y."""
    out: Operand = product(backend, x, y) if isinstance(x, Shares) or isinstance(y, Shares) else x @ y
    if alpha != 1:
        out = scale(backend, out, alpha) if isinstance(out, Shares) else out * alpha
    if beta == 0:
        assert isinstance(out, Shares)
        return out
    if beta != 1:
        bias = scale(backend, bias, beta) if isinstance(bias, Shares) else bias * beta
    return add(backend, out, bias)


def addmm_cost(backend: Host, bias: Any, x: Any, y: Any, *, beta: float = 1, alpha: float = 1) -> Cost:
    """The product's openings; the bias is local."""
    return mm_cost(backend, x, y)


def mm_cost(backend: Host, x: Any, y: Any) -> Cost:
    """One opening of each operand when both are shared, nothing when one is public."""
    return costs.product(backend, x, y)


def pair(value: Sequence[int] | int) -> list[int]:
    """One or two numbers as two: height and width."""
    both = [value] if isinstance(value, int) else list(value)
    return both * 2 if len(both) == 1 else both


def convolution(
    backend: Host,
    x: Operand,
    weight: Operand,
    bias: Operand | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Shares:
    """1-d or 2-d convolution with groups, as a matrix product over windows; x is opened once, not once per window."""
    shape_x, shape_w = tuple(x.shape), tuple(weight.shape)
    flat = len(shape_x) == 3
    if transposed or len(shape_x) not in (3, 4):
        raise UnsupportedOp("transposed or 3-d convolution", where="backend 'mpc'", fix="use conv1d or conv2d")
    kernel = [1, shape_w[2]] if flat else list(shape_w[2:])
    stride, dilation = ([1, *stride], [1, *dilation]) if flat else (pair(stride), pair(dilation))
    pad = [0, *padding] if flat else pair(padding)
    out_c, in_g = shape_w[0], shape_w[1]

    def spread(t: Tensor, lead: int) -> Tensor:
        """(n, c, H, W) → (n, groups, H'·W', c/groups·kh·kw), after ``lead`` axes."""
        t = torch.nn.functional.pad(t.unsqueeze(-2) if flat else t, [pad[1], pad[1], pad[0], pad[0]])
        for axis in (0, 1):
            t = t.unfold(lead + 2 + axis, dilation[axis] * (kernel[axis] - 1) + 1, stride[axis])[..., :: dilation[axis]]
        n, high, wide = t.shape[lead], t.shape[lead + 2], t.shape[lead + 3]
        t = t.reshape(*t.shape[:lead], n, groups, in_g, high, wide, kernel[0], kernel[1])
        t = t.movedim(lead + 2, lead + 4)
        return t.reshape(*t.shape[:lead], n, groups, high * wide, in_g * kernel[0] * kernel[1])

    def columns(t: Tensor, lead: int) -> Tensor:
        return t.reshape(*t.shape[:lead], groups, out_c // groups, math.prod(t.shape[lead + 1 :])).transpose(-1, -2)

    out = product(backend, x, weight, spread, columns)
    sizes = [(shape_x[-2 + i] if not flat or i else 1) + 2 * pad[i] - dilation[i] * (kernel[i] - 1) - 1 for i in (0, 1)]
    high, wide = (size // step + 1 for size, step in zip(sizes, stride, strict=True))
    data = out.data.transpose(-1, -2).reshape(len(out.data), shape_x[0], out_c, *((wide,) if flat else (high, wide)))
    result = out.like(data)
    if bias is None:
        return result
    column = [1] * (1 if flat else 2)
    column_bias = (
        bias.view(lambda t, lead: t.reshape(*t.shape, *column), whole=True) if isinstance(bias, Shares) else bias.view(-1, *column)
    )
    return add(backend, result, column_bias)


def convolution_cost(backend: Host, x: Any, weight: Any, *_rest: Any) -> Cost:
    """As the matrix product: the image and the filters are opened once."""
    return mm_cost(backend, x, weight)


def avg_pool2d(
    backend: Host,
    x: Shares,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] | int = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> Shares:
    """Average over windows, padding counted."""
    size, pad = pair(kernel), pair(padding)
    step = pair(stride) if stride else size
    if ceil_mode or (any(pad) and not count_include_pad):
        raise UnsupportedOp("avg_pool2d with ceil_mode or excluded padding", where="backend 'mpc'", fix="use the default options")
    data = torch.nn.functional.pad(x.data, [pad[1], pad[1], pad[0], pad[0]])
    summed = data.unfold(-2, size[0], step[0]).sum(-1).unfold(-1, size[1], step[1]).sum(-1)
    return _divide(backend, x.like(summed), divisor or size[0] * size[1])


def _divide(backend: Host, x: Shares, count: int) -> Shares:
    if count & (count - 1) == 0 and x.headroom > 20:
        return x.like(x.data, x.frac + count.bit_length() - 1)
    ready = backend.run(normal(backend.runtime, x))
    frac = backend.frac + math.ceil(math.log2(count))
    return ready.like(ready.data * round(2.0**frac / count), ready.frac + frac)


def adaptive_avg_pool2d(backend: Host, x: Shares, size: Sequence[int]) -> Shares:
    """Average to a fixed output size that divides the input's."""
    high, wide = x.shape[-2:]
    if high % size[0] or wide % size[1]:
        raise UnsupportedOp(f"adaptive pooling of {high}x{wide} to {size[0]}x{size[1]}", where="backend 'mpc'", fix="use sizes that divide")
    return avg_pool2d(backend, x, [high // size[0], wide // size[1]])


KERNELS: Final = (
    *(Kernel(op, kinds, mm, mm_cost, ulps(16)) for op in ("mm", "bmm") for kinds in ("AA", "AP", "PA")),
    *(Kernel("mv", kinds, mv, mm_cost, ulps(16)) for kinds in ("AA", "AP", "PA")),
    *(Kernel("dot", kinds, dot, mm_cost, ulps(16)) for kinds in ("AA", "AP", "PA")),
    *(
        Kernel(op, kinds, addmm, addmm_cost, ulps(16))
        for op in ("addmm", "baddbmm")
        for kinds in ("AAA", "AAP", "APA", "PAA", "PAP", "PPA", "APP")
    ),
    *(
        Kernel("convolution", kinds, convolution, convolution_cost, ulps(16))
        for kinds in ("AAA", "AA", "AP", "APP", "PA", "AAP", "PAA", "PAP")
    ),
    Kernel("avg_pool2d", "A", avg_pool2d, error=ulps(2)),
    Kernel("adaptive_avg_pool2d", "A", adaptive_avg_pool2d, error=ulps(2)),
)
