"""Kernels for matrix products, convolutions and average pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from privtensors.backends.mpc import costs
from privtensors.backends.mpc.costs import pair
from privtensors.backends.mpc.kernels.arithmetic import add, scale, ulps
from privtensors.backends.mpc.kernels.shape import by_row
from privtensors.backends.mpc.protocols.arithmetic import matmul_wires, normal, open_wire, with_headroom
from privtensors.backends.mpc.protocols.products import matmul
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
        return ready.like(by_row(lambda row: matmul(row, weight), map_x(ready.data, 1)), ready.frac + rt.frac)
    assert isinstance(y, Shares)
    ready = backend.run(with_headroom(rt, y, rt.frac))
    weight = backend.encode(map_x(x, 0), rt.frac)
    return ready.like(by_row(lambda row: matmul(weight, row), map_y(ready.data, 1)), ready.frac + rt.frac)


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


@dataclass(frozen=True, slots=True)
class Windows:
    """Where a 1-d (``flat``) or 2-d convolution looks: per axis the kernel's size, padding, stride, dilation and the output's size."""

    flat: bool
    groups: int
    kernel: tuple[int, int]
    padding: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    out: tuple[int, int]

    def spread(self, t: Tensor, lead: int) -> Tensor:
        """(n, c, H, W) → (n, groups, H'·W', c/groups·kh·kw), after ``lead`` axes."""
        (ph, pw), (kh, kw) = self.padding, self.kernel
        t = torch.nn.functional.pad(t.unsqueeze(-2) if self.flat else t, [pw, pw, ph, ph])
        for axis in (0, 1):
            gap = self.dilation[axis]
            t = t.unfold(lead + 2 + axis, gap * (self.kernel[axis] - 1) + 1, self.stride[axis])[..., ::gap]
        n, channels, high, wide = t.shape[lead : lead + 4]
        t = t.reshape(*t.shape[:lead], n, self.groups, channels // self.groups, high, wide, kh, kw)
        t = t.movedim(lead + 2, lead + 4)
        return t.reshape(*t.shape[:lead], n, self.groups, high * wide, channels // self.groups * kh * kw)

    def fold(self, columns: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Windows ``(parties, n, groups, H'·W', c/groups·kh·kw)`` added up where they lie in images ``(parties, *shape)``."""
        parties, n, groups = columns.shape[:3]
        (kh, kw), (ph, pw), (sh, sw), (dh, dw), (high, wide) = self.kernel, self.padding, self.stride, self.dilation, self.out
        rows, width = (1 if self.flat else shape[-2]), shape[-1]
        cut = columns.reshape(parties, n, groups, high, wide, shape[1] // groups, kh, kw).permute(0, 1, 2, 5, 6, 7, 3, 4)
        cut = cut.reshape(parties, n, shape[1], kh, kw, high, wide)
        total = torch.zeros(parties, n, shape[1], rows + 2 * ph, width + 2 * pw, dtype=torch.int64)
        for i in range(kh):
            for j in range(kw):
                top, left = i * dh, j * dw
                total[..., top : top + sh * (high - 1) + 1 : sh, left : left + sw * (wide - 1) + 1 : sw] += cut[:, :, :, i, j]
        inner = total[..., ph : ph + rows, pw : pw + width]
        return inner.squeeze(-2) if self.flat else inner


def windows(
    image: tuple[int, ...],
    filters: tuple[int, ...],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Windows:
    """The windows of a convolution of tensors of these shapes; the other arguments as ATen gives them.

    Raises:
        UnsupportedOp: It is transposed or 3-d.
    """
    flat = len(image) == 3
    if transposed or len(image) not in (3, 4):
        raise UnsupportedOp("transposed or 3-d convolution", where="backend 'mpc'", fix="use conv1d or conv2d")
    kernel = [1, filters[2]] if flat else list(filters[2:])
    steps, gaps = ([1, *stride], [1, *dilation]) if flat else (pair(stride), pair(dilation))
    pads = [0, *padding] if flat else pair(padding)
    sizes = [1, image[-1]] if flat else list(image[-2:])
    out = [(sizes[i] + 2 * pads[i] - gaps[i] * (kernel[i] - 1) - 1) // steps[i] + 1 for i in (0, 1)]
    ((kh, kw), (ph, pw), (sh, sw), (dh, dw), (high, wide)) = (tuple(v[:2]) for v in (kernel, pads, steps, gaps, out))
    return Windows(flat, groups, (kh, kw), (ph, pw), (sh, sw), (dh, dw), (high, wide))


def convolution(backend: Host, x: Operand, weight: Operand, bias: Operand | None, *options: Any) -> Shares:
    """1-d or 2-d convolution with groups, as a matrix product over windows; x is opened once, not once per window.

    Args:
        options: Those of :func:`windows`.
    """
    at = windows(tuple(x.shape), tuple(weight.shape), *options)
    count, out_c = x.shape[0], weight.shape[0]

    def columns(t: Tensor, lead: int) -> Tensor:
        size = math.prod(weight.shape[1:])  # spelt out: the dealer holds no row, and -1 would be ambiguous
        return t.reshape(*t.shape[:lead], at.groups, out_c // at.groups, size).transpose(-1, -2)

    out = product(backend, x, weight, at.spread, columns)
    data = out.data.transpose(-1, -2).reshape(len(out.data), count, out_c, *(at.out[1:] if at.flat else at.out))
    result = out.like(data)
    if bias is None:
        return result
    column = [1] * (1 if at.flat else 2)
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
