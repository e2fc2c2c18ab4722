"""Kernels of the backward rows, elementwise and by rows: what autograd asks for when a model trains on shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from privtensors.backends.mpc import costs_backward as costs
from privtensors.backends.mpc.costs import CUT_FRAC, RANGE_BITS
from privtensors.backends.mpc.kernels.arithmetic import absolute, mul, mul_public, ulps
from privtensors.backends.mpc.kernels.shape import constant, represented
from privtensors.backends.mpc.protocols.arithmetic import multiply_wires, open_lifted, square_wire
from privtensors.backends.mpc.protocols.compare import select
from privtensors.backends.mpc.protocols.gradients import between, evaluate
from privtensors.backends.mpc.runtime import Host, Protocol, Runtime, parallel
from privtensors.backends.mpc.shares import Shares
from privtensors.core.kernel import Kernel
from privtensors.errors import OutOfRange

Operand = Shares | Tensor


def shared(backend: Host, x: Operand) -> Shares:
    """``x`` as shares: a public tensor becomes party 0's share."""
    return x if isinstance(x, Shares) else constant(backend, x)


def times(rt: Runtime, x: Shares, y: Shares) -> Protocol[Shares]:
    """Elementwise product in 1 round, whatever the operands' scale."""
    a, b = yield from parallel(open_lifted(rt, x, min(x.frac, rt.frac)), open_lifted(rt, y, min(y.frac, rt.frac)))
    out = multiply_wires(rt, a, b)
    out.dtype = x.dtype
    return out


def _chosen(backend: Host, grad: Operand, x: Operand, low: float, high: float | None, closed: bool) -> Shares:
    """grad where x lies between the limits, which are decided to 2^-12; 0 elsewhere."""
    if isinstance(x, Tensor):
        inside = (x > low) if high is None else (x > low) & (x < high)
        return mul_public(backend, shared(backend, grad), inside)
    limits = [round(low * 2.0**CUT_FRAC) + (0 if closed else 1)]
    if high is not None:
        limits.append(round(high * 2.0**CUT_FRAC))
    if any(abs(v) >= 1 << (RANGE_BITS - 1 + CUT_FRAC) for v in limits):
        raise OutOfRange(f"bounds {low} and {high}", where="mpc backward of a clamp", fix=f"use bounds within ±2^{RANGE_BITS - 1}")
    given = shared(backend, grad)

    def protocol(rt: Runtime) -> Protocol[Shares]:
        bit = yield from between(rt, x, limits, CUT_FRAC, RANGE_BITS)
        return (yield from select(rt, [(bit, given)], given))

    return backend.run(protocol(backend.runtime))


def relu_backward(backend: Host, grad: Operand, x: Operand, threshold: float) -> Shares:
    """grad where x > threshold. The gradient keeps its scale: no bit of it is rounded off."""
    return _chosen(backend, grad, x, float(threshold), None, closed=False)


def clamp_backward(backend: Host, grad: Operand, x: Operand, low: float, high: float) -> Shares:
    """grad where low < x < high."""
    return _chosen(backend, grad, x, float(low), float(high), closed=False)


def smooth_backward(name: str) -> Callable[..., Shares]:
    """grad · f'(x) for an activation that needs its input: 4 rounds."""

    def run(backend: Host, grad: Operand, x: Operand, *, approximate: str = "none") -> Shares:
        kind = "gelu_tanh" if name == "gelu" and approximate == "tanh" else name

        def protocol(rt: Runtime, given: Shares, at: Shares) -> Protocol[Shares]:
            return (yield from times(rt, given, (yield from evaluate(rt, at, kind))))

        if isinstance(x, Tensor):
            return mul(backend, shared(backend, grad), _plain_slope(x, kind))
        return backend.run(protocol(backend.runtime, shared(backend, grad), x))

    return run


def _plain_slope(x: Tensor, kind: str) -> Tensor:
    one = torch.ones_like(x)
    slope: Tensor = (
        torch.ops.aten.silu_backward.default(one, x)
        if kind == "silu"
        else torch.ops.aten.gelu_backward.default(one, x, approximate="tanh" if kind == "gelu_tanh" else "none")
    )
    return slope


def from_output(slope: Callable[[Runtime, Shares], Protocol[Shares]], plain: Callable[[Tensor], Tensor]) -> Callable[..., Shares]:
    """grad times a function of the activation's output."""

    def run(backend: Host, grad: Operand, out: Operand) -> Shares:
        def protocol(rt: Runtime, given: Shares, found: Shares) -> Protocol[Shares]:
            return (yield from times(rt, given, (yield from slope(rt, found))))

        if isinstance(out, Tensor):
            return mul(backend, shared(backend, grad), plain(out))
        return backend.run(protocol(backend.runtime, shared(backend, grad), out))

    return run


def _tanh_slope(rt: Runtime, out: Shares) -> Protocol[Shares]:
    """1 - out²."""
    square = square_wire(rt, (yield from open_lifted(rt, out, rt.frac)))
    return square.like(rt.add_public(-square.data, 1 << square.frac))


def _sigmoid_slope(rt: Runtime, out: Shares) -> Protocol[Shares]:
    """out - out²."""
    square = square_wire(rt, (yield from open_lifted(rt, out, rt.frac)))
    return square.like((out.data << (square.frac - out.frac)) - square.data)


def softmax_backward(backend: Host, grad: Operand, out: Operand, dim: int, dtype: Any) -> Shares:
    """out · (grad - Σ grad · out); 2 rounds."""
    given, weights = shared(backend, grad), shared(backend, out)
    axis = dim % len(weights.shape) + 1

    def protocol(rt: Runtime) -> Protocol[Shares]:
        wire_g, wire_w = yield from parallel(open_lifted(rt, given, rt.frac), open_lifted(rt, weights, rt.frac))
        product = multiply_wires(rt, wire_g, wire_w)
        total = yield from open_lifted(rt, product.like(product.data.sum(axis, keepdim=True)), rt.frac)
        return product.like(product.data - multiply_wires(rt, wire_w, total).data)

    found = backend.run(protocol(backend.runtime))
    found.dtype = weights.dtype
    return found


def _placed(backend: Host, grad: Shares, sizes: Sequence[int], index: tuple[Any, ...]) -> Shares:
    data = torch.zeros(len(grad.data), *sizes, dtype=torch.int64)
    data[index] = grad.data
    return grad.like(data)


def select_backward(backend: Host, grad: Shares, sizes: Sequence[int], dim: int, index: int) -> Shares:
    """Zeros, but for one slice."""
    return _placed(backend, grad, sizes, (*[slice(None)] * (dim % len(sizes) + 1), index))


def slice_backward(backend: Host, grad: Shares, sizes: Sequence[int], dim: int, start: int, end: int, step: int) -> Shares:
    """Zeros, but for a range of slices."""
    return _placed(backend, grad, sizes, (*[slice(None)] * (dim % len(sizes) + 1), slice(start, end, step)))


PAIRS: Final = ("AA", "AP", "PA")
TRIPLES: Final = ("AAA", "AAP", "APA", "PAA", "APP", "PAP", "PPA")

KERNELS: Final = (
    *(Kernel("relu_backward", kinds, relu_backward, costs.chosen(1), absolute(2**-9)) for kinds in PAIRS),
    *(Kernel("clamp_backward", kinds, clamp_backward, costs.chosen(2), absolute(2**-9)) for kinds in PAIRS),
    *(Kernel("gelu_backward", kinds, smooth_backward("gelu"), costs.slope, absolute(4e-3)) for kinds in PAIRS),
    *(Kernel("silu_backward", kinds, smooth_backward("silu"), costs.slope, absolute(4e-3)) for kinds in PAIRS),
    *(Kernel("tanh_backward", kinds, from_output(_tanh_slope, lambda out: 1 - out * out), costs.from_output, ulps(2)) for kinds in PAIRS),
    *(
        Kernel("sigmoid_backward", kinds, from_output(_sigmoid_slope, lambda out: out - out * out), costs.from_output, ulps(2))
        for kinds in PAIRS
    ),
    *(Kernel("softmax_backward", kinds, softmax_backward, costs.softmax_backward, ulps(4)) for kinds in PAIRS),
    Kernel("select_backward", "A", select_backward, error=represented),
    Kernel("slice_backward", "A", slice_backward, error=represented),
)
