"""Kernels of maximum pooling: forward by a tournament in every window, backward to the place of each window's maximum."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from privtensors.backends.mpc import costs, costs_backward
from privtensors.backends.mpc.costs import RANGE_BITS, pair
from privtensors.backends.mpc.kernels.arithmetic import absolute
from privtensors.backends.mpc.kernels.backward import TRIPLES, Operand, shared
from privtensors.backends.mpc.kernels.deferred import Deferred
from privtensors.backends.mpc.kernels.linear import Windows, windows
from privtensors.backends.mpc.kernels.nonlinear import tournament
from privtensors.backends.mpc.kernels.shape import represented
from privtensors.backends.mpc.protocols.argmax import argmax
from privtensors.backends.mpc.protocols.arithmetic import normal
from privtensors.backends.mpc.protocols.compare import at_least, select
from privtensors.backends.mpc.runtime import Host, Protocol, Runtime
from privtensors.backends.mpc.shares import Shares
from privtensors.core.kernel import Kernel
from privtensors.errors import UnsupportedOp


def _windows(
    shape: tuple[int, ...],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int] | int,
    dilation: Sequence[int] | int,
    ceil_mode: bool,
) -> Windows:
    """One group per channel, as a depthwise convolution. ``shape`` is (n, c, H, W)."""
    if ceil_mode:
        raise UnsupportedOp("max_pool2d with ceil_mode", where="backend 'mpc'", fix="use ceil_mode=False")
    size, channels = pair(kernel), shape[1]
    step = pair(stride) if stride else size
    return windows(shape, (channels, 1, *size), step, pair(padding), pair(dilation), False, [0, 0], channels)


def _batched(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape if len(shape) == 4 else (1, *shape)


def _places(shape: tuple[int, ...], at: Windows) -> tuple[Tensor, Tensor]:
    """ATen's index of an element of a plane, as a window's corner ``(windows,)`` plus a tap's offset ``(taps,)``."""
    width = shape[-1]
    corner = [torch.arange(at.out[i]) * at.stride[i] - at.padding[i] for i in (0, 1)]
    tap = [torch.arange(at.kernel[i]) * at.dilation[i] for i in (0, 1)]
    first, second = ((rows[:, None] * width + columns).flatten() for rows, columns in (corner, tap))
    return first, second


def max_pool2d(
    backend: Host,
    x: Shares,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] | int = 0,
    dilation: Sequence[int] | int = 1,
    ceil_mode: bool = False,
) -> tuple[Shares, Shares]:
    """Maximum over windows, and where it lies in its plane, shared: computed when a backward pass or the caller uses it.

    Raises:
        UnsupportedOp: ``ceil_mode``.
    """
    shape = _batched(x.shape)
    at = _windows(shape, kernel, stride, padding, dilation, ceil_mode)
    ready = backend.run(normal(backend.runtime, x))

    def rows() -> Shares:
        data = at.spread(ready.data.reshape(len(ready.data), *shape), 1)
        if any(at.padding):  # padding must lose every comparison
            inside = at.spread(torch.ones(1, *shape[1:], dtype=torch.int64), 0)
            backend.runtime.add_public(data, (inside - 1) << (RANGE_BITS - 1 + ready.frac))
        return ready.like(data)

    out_shape = (*x.shape[:-2], *at.out)

    def chosen() -> Shares:
        return _indices(backend, rows(), shape, at, out_shape)

    top = tournament(backend, rows())
    return top.like(top.data.reshape(len(top.data), *out_shape)), Deferred(chosen, out_shape, torch.int64)


def _indices(backend: Host, rows: Shares, shape: tuple[int, ...], at: Windows, out_shape: tuple[int, ...]) -> Shares:
    corners, taps = _places(shape, at)
    width = at.kernel[1]

    def protocol(rt: Runtime) -> Protocol[Shares]:
        tap = yield from argmax(rt, rows)
        data = tap.data * at.dilation[1]
        if at.kernel[0] > 1 and (turn := int(taps[width] if len(taps) > width else 0) - width * at.dilation[1]):
            # Each new row of taps jumps ahead by as much as a row of the image is longer than a row of taps.
            starts = [i * width for i in range(1, at.kernel[0])]
            later = yield from at_least(rt, tap, starts, frac=0, range_bits=len(taps).bit_length())
            jumps = yield from select(rt, [(bit, turn) for bit in later.unbind(1)], tap)
            data = data + jumps.data
        rt.add_public(data, corners)
        return Shares(data.reshape(len(data), *out_shape), 0, dtype=torch.int64)

    return backend.run(protocol(backend.runtime))


def max_pool2d_backward(
    backend: Host,
    grad: Operand,
    x: Operand,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int] | int,
    dilation: Sequence[int] | int,
    ceil_mode: bool,
    indices: Operand,
) -> Shares:
    """Each window's gradient where its maximum lies, zeros elsewhere: a comparison with the window's taps and a selection.

    The gradient keeps its scale: no bit of it is rounded off.
    """
    shape = _batched(tuple(x.shape))
    at = _windows(shape, kernel, stride, padding, dilation, ceil_mode)
    n, channels, *plane = shape
    count = at.out[0] * at.out[1]
    given = shared(backend, grad)
    given = given.like(given.data.reshape(len(given.data), n, channels, count))
    if isinstance(indices, Tensor):
        zeros = torch.zeros(len(given.data), n, channels, plane[0] * plane[1], dtype=torch.int64)
        where = indices.reshape(1, n, channels, count).expand(given.data.shape)
        return given.like(zeros.scatter_add_(-1, where, given.data).reshape(len(given.data), *x.shape))
    corners, taps = _places(shape, at)
    # Of several taps of one offset at most one lies on the image; what goes to the others falls on the padding and is cut off.
    offsets, of_tap = torch.unique(taps, return_inverse=True)

    def protocol(rt: Runtime) -> Protocol[list[Tensor]]:
        """Per offset, ascending, the gradients of the windows whose maximum lies there."""
        if len(offsets) == 1:
            return [given.data]
        ready = indices if indices.frac == 0 else (yield from normal(rt, indices))
        data = ready.data.reshape(len(ready.data), n, channels, count).clone()
        place = ready.like(rt.add_public(data, -corners << ready.frac))
        limits = [int(v) << ready.frac for v in offsets[1:]]
        bits = yield from at_least(rt, place, limits, frac=ready.frac, range_bits=int(offsets[-1]).bit_length())
        beyond = (yield from select(rt, [(bits, given.like(given.data.unsqueeze(1)))], given)).data.unbind(1)
        return [given.data - beyond[0], *(a - b for a, b in itertools.pairwise(beyond)), beyond[-1]]

    found = torch.stack(backend.run(protocol(backend.runtime)), -1)
    out = given.like(at.fold(found[..., of_tap], shape))
    return out.like(out.data.reshape(len(out.data), *x.shape))


KERNELS: Final[tuple[Kernel, ...]] = (
    Kernel("max_pool2d", "A", max_pool2d, costs.max_pool, absolute(2**-9)),
    *(Kernel("max_pool2d_backward", kinds, max_pool2d_backward, costs_backward.max_pool_backward, represented) for kinds in TRIPLES),
)
