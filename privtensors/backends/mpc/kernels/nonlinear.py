"""Kernels for comparisons, activations and the fused blocks: softmax, attention, normalisation."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from privtensors.backends.mpc.costs import CUT_FRAC, RANGE_BITS
from privtensors.backends.mpc.kernels.arithmetic import Operand, add, mul, root, sub
from privtensors.backends.mpc.kernels.deferred import Deferred
from privtensors.backends.mpc.kernels.shape import constant
from privtensors.backends.mpc.protocols.activation import activate, exponential_series
from privtensors.backends.mpc.protocols.argmax import argmax
from privtensors.backends.mpc.protocols.arithmetic import lift, normal, open_wire, rescale, square_wire
from privtensors.backends.mpc.protocols.compare import at_least, clamp, select
from privtensors.backends.mpc.protocols.fourier import pieces
from privtensors.backends.mpc.protocols.gradients import statistics
from privtensors.backends.mpc.protocols.normalise import layer_norm
from privtensors.backends.mpc.protocols.softmax import attention, public_mask, softmax
from privtensors.backends.mpc.runtime import Host, Protocol, Runtime
from privtensors.backends.mpc.shares import Shares, Wire
from privtensors.errors import InvalidInput, OutOfRange, UnsupportedOp


def _sign(rt: Runtime, x: Shares, threshold: float, frac: int, wire: Wire | None = None) -> Protocol[Tensor]:
    """Boolean shares of x ≥ threshold, decided to ``2^-frac``; ``wire`` is x opened before."""
    base = x if x.ring - x.frac + frac >= frac + RANGE_BITS + 1 else (yield from normal(rt, x))
    bits = yield from at_least(rt, base, [round(threshold * 2.0**frac)], frac=frac, range_bits=RANGE_BITS, wire=wire)
    return bits[:, 0]


def compare(backend: Host, x: Operand, y: Operand, *, strict: bool, less: bool) -> Shares:
    """A bool SafeTensor; exact on the fixed-point values."""
    difference = sub(backend, x, y)
    difference = backend.run(normal(backend.runtime, difference)) if difference.frac > backend.frac else difference

    def protocol(rt: Runtime) -> Protocol[Shares]:
        # x > 0 is x ≥ one unit; x < y and x ≤ y are the complements of ≥ and >.
        step = 2.0**-difference.frac if strict != less else 0.0
        bit = yield from _sign(rt, difference, step, difference.frac)
        if less:
            bit = rt.flip_public(bit.clone())
        return (yield from select(rt, [(bit, 1)], Shares(difference.data, 0, 64, torch.bool)))

    return backend.run(protocol(backend.runtime))


def comparison_kernel(strict: bool, less: bool) -> Callable[..., Shares]:
    """gt, ge, lt or le."""
    return lambda backend, x, y: compare(backend, x, y, strict=strict, less=less)


def relu_protocol(rt: Runtime, x: Shares) -> Protocol[Shares]:
    """max(x, 0), decided to 2^-12."""
    ready = x if x.ring == 64 else (yield from normal(rt, x))
    if ready.frac < CUT_FRAC:
        ready = rescale(ready, rt.frac)
    wire = yield from open_wire(rt, ready)
    bit = yield from _sign(rt, ready, 0.0, CUT_FRAC, wire)
    return (yield from select(rt, [(bit, wire)], ready))


def relu(backend: Host, x: Shares) -> Shares:
    """max(x, 0)."""
    return backend.run(relu_protocol(backend.runtime, x))


def abs_(backend: Host, x: Shares) -> Shares:
    """2 · max(x, 0) - x."""
    positive = relu(backend, x)
    return sub(backend, positive.like(positive.data << 1), x)


def maximum(backend: Host, x: Operand, y: Operand) -> Shares:
    """y + max(x - y, 0)."""
    return add(backend, relu(backend, sub(backend, x, y)), y)


def minimum(backend: Host, x: Operand, y: Operand) -> Shares:
    """x - max(x - y, 0)."""
    return sub(backend, x, relu(backend, sub(backend, x, y)))


def clamp_(backend: Host, x: Shares, low: float | None = None, high: float | None = None) -> Shares:
    """Limit to public bounds, decided to 2^-12. An infinite bound is none."""
    bounds = [None if v is None or v == none else float(v) for v, none in ((low, -math.inf), (high, math.inf))]
    if any(v is not None and not abs(v) < 2.0 ** (RANGE_BITS - 1) for v in bounds):
        raise OutOfRange(f"bounds {low} and {high}", where="mpc clamp", fix=f"use bounds within ±2^{RANGE_BITS - 1}, or none")
    if bounds == [None, None]:
        return x

    def protocol(rt: Runtime) -> Protocol[Shares]:
        ready = x if x.ring == 64 else (yield from normal(rt, x))
        limits = [None if v is None else round(v * 2.0**CUT_FRAC) for v in bounds]
        return (yield from clamp(rt, ready, limits[0], limits[1], frac=CUT_FRAC, range_bits=RANGE_BITS))

    return backend.run(protocol(backend.runtime))


def tournament(backend: Host, x: Shares) -> Shares:
    """Maximum over the last axis, pairwise."""
    while (n := x.shape[-1]) > 1:
        half = n // 2
        top = maximum(backend, x.like(x.data[..., :half]), x.like(x.data[..., half : 2 * half]))
        if n % 2:
            rest = backend.run(normal(backend.runtime, x.like(x.data[..., -1:])))
            top = backend.run(normal(backend.runtime, top))
            top = top.like(torch.cat([top.data, rest.data], -1))
        x = top
    return x.like(x.data[..., 0])


def amax(backend: Host, x: Shares, dim: Sequence[int] = (), keepdim: bool = False) -> Shares:
    """Maximum over dimensions."""
    n = len(x.shape)
    dims = sorted(d % n for d in dim) if dim else list(range(n))
    kept = [d for d in range(n) if d not in dims]
    count = math.prod(x.shape[d] for d in dims)
    rows = x.data.permute(0, *(d + 1 for d in kept), *(d + 1 for d in dims)).reshape(len(x.data), *(x.shape[d] for d in kept), count)
    out = tournament(backend, x.like(rows))
    return out.like(out.data.reshape(len(out.data), *(1 if d in dims else x.shape[d] for d in range(n)))) if keepdim else out


def argmax_(backend: Host, x: Shares, dim: int | None = None, keepdim: bool = False) -> Shares:
    """Index of the largest element, the lowest of equal ones; exact on the fixed-point values.

    Raises:
        InvalidInput: There is no element to choose, or no such dimension.
    """
    n = len(x.shape)
    if dim is not None and not -max(n, 1) <= dim < max(n, 1):
        raise InvalidInput(f"dimension {dim} of a tensor with {n}", where="mpc argmax", fix=f"use one from {-max(n, 1)} to {max(n, 1) - 1}")
    rows = x.data.flatten(1).unsqueeze(1) if dim is None or n == 0 else x.data.movedim(dim % n + 1, -1)
    if rows.shape[-1] == 0:
        raise InvalidInput("no element to choose from", where="mpc argmax", fix="give a dimension that has elements")
    out = backend.run(argmax(backend.runtime, x.like(rows)))
    if dim is None or n == 0:
        data = out.data.reshape(len(out.data), *([1] * n if keepdim else []))
    else:
        data = out.data.unsqueeze(dim % n + 1) if keepdim else out.data
    return out.like(data)


def activation_kernel(name: str) -> Callable[..., Shares]:
    """A kernel for one of :func:`activation`'s names."""
    return lambda backend, x: backend.run(activate(backend.runtime, x, name))


def gelu(backend: Host, x: Shares, *, approximate: str = "none") -> Shares:
    """GELU, by the error function or by tanh."""
    return backend.run(activate(backend.runtime, x, "gelu" if approximate == "none" else "gelu_tanh"))


def exp(backend: Host, x: Shares) -> Shares:
    """exp on [-24, 8], saturating outside: exp(x/2) by one opening, then its square."""

    def protocol(rt: Runtime) -> Protocol[Shares]:
        ready = x if x.ring == 64 else (yield from normal(rt, x))
        low, high = (round(v * 2.0**CUT_FRAC) for v in (-24, 8))
        limited = yield from clamp(rt, ready, low, high, frac=CUT_FRAC, range_bits=RANGE_BITS, ends=True)
        words = yield from pieces(rt, limited, (exponential_series(),), (6 + limited.frac,), 50)
        half = yield from lift(rt, x.like(words[:, 0], 50, 64), 24)
        out = square_wire(rt, (yield from open_wire(rt, half)))
        out.dtype = x.dtype
        return out

    return backend.run(protocol(backend.runtime))


def softmax_(backend: Host, x: Shares, dim: int, half_to_float: Any = False) -> Shares:
    """Softmax along one dimension."""
    n = len(x.shape)
    data = x.data.movedim(dim % n + 1, -1)
    ready = backend.run(lift(backend.runtime, x.like(data), min(x.frac, 16)))
    out = backend.run(softmax(backend.runtime, ready))
    return out.like(out.data.movedim(-1, dim % n + 1))


def sdpa(
    backend: Host,
    q: Shares | Tensor,
    k: Shares | Tensor,
    v: Shares | Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Shares, None]:
    """Scaled dot-product attention with a public mask. Additive masks of -1e4 and below mean "not attended"."""
    if dropout_p:
        raise UnsupportedOp("attention with dropout", where="backend 'mpc'", fix="call model.eval()")
    keep, bias = public_mask(q.shape[-2], k.shape[-2], is_causal, attn_mask)
    factor = scale if scale is not None else 1.0 / math.sqrt(q.shape[-1])
    q, k, v = (t if isinstance(t, Shares) else constant(backend, t) for t in (q, k, v))
    k, v = (_heads_of(t, q) for t in (k, v))
    return backend.run(attention(backend.runtime, q, k, v, keep, bias, factor)), None


def _heads_of(x: Shares, q: Shares) -> Shares:
    """Keys or values with one head for each of ``q``: grouped-query attention shares each among several."""
    groups = q.shape[-3] // max(x.shape[-3], 1)
    return x if groups == 1 else x.like(x.data.repeat_interleave(groups, dim=-3))


def layer_norm_(
    backend: Host, x: Shares | Tensor, shape: Sequence[int], weight: Shares | Tensor | None, bias: Shares | Tensor | None, eps: float
) -> tuple[Shares, Shares, Shares]:
    """Layer normalisation over the trailing dimensions. ATen's mean and 1/std are computed when a backward pass uses them."""
    lead = tuple(x.shape[: len(x.shape) - len(shape)])
    if isinstance(x, Tensor):  # public input, shared gain or bias
        flat = x.reshape(*lead, *[1] * (len(shape) - 1), -1)
        mean, variance = flat.mean(-1, keepdim=True), flat.var(-1, keepdim=True, unbiased=False)
        plain: Operand = torch.nn.functional.layer_norm(x, list(shape), None, None, eps)
        plain = plain if weight is None else mul(backend, plain, weight) if isinstance(weight, Shares) else plain * weight  # type: ignore[operator]
        return add(backend, plain, 0.0 if bias is None else bias), constant(backend, mean), constant(backend, (variance + eps).rsqrt())
    rows = x.like(x.data.reshape(len(x.data), *x.shape[: len(x.shape) - len(shape)], math.prod(shape)))
    gain = weight
    if isinstance(weight, Shares) and len(shape) > 1:
        gain = weight.like(weight.data.reshape(len(weight.data), math.prod(weight.shape)))
    out = backend.run(layer_norm(backend.runtime, rows, gain if isinstance(gain, Shares) else None, eps))
    out = out.like(out.data.reshape(len(out.data), *x.shape))
    out.dtype = x.dtype
    if isinstance(weight, Tensor):
        out = mul(backend, out, weight)
    if bias is not None:
        out = add(backend, out, bias)
    geometry = (*lead, *[1] * len(shape))
    both = functools.cache(lambda: backend.run(statistics(backend.runtime, rows, eps)))

    def one(index: int) -> Shares:
        found = both()[index]
        return found.like(found.data.reshape(len(found.data), *geometry))

    return out, *(Deferred(functools.partial(one, i), geometry, x.dtype) for i in (0, 1))  # type: ignore[return-value]


def batch_norm(
    backend: Host, x: Shares, weight: Operand | None, bias: Operand | None, mean: Operand, var: Operand, *options: Any
) -> tuple[Shares, None, None]:
    """Batch normalisation with stored statistics (evaluation mode)."""
    training, eps = (options[0], options[2]) if len(options) == 3 else (False, options[1])
    if training:
        raise UnsupportedOp("batch_norm in training mode", where="backend 'mpc'", fix="call model.eval()")
    column = [x.shape[1], *[1] * (len(x.shape) - 2)]

    def shaped(v: Operand) -> Operand:
        if isinstance(v, Shares):
            return v.view(lambda t, lead: t.reshape(*t.shape[:lead], *column), whole=True)
        return v.view(column) if isinstance(v, Tensor) else v

    inverse = root(backend, add(backend, var, eps), inverse=True) if isinstance(var, Shares) else (var + eps).rsqrt()
    factor: Operand = inverse
    if weight is not None:
        factor = mul(backend, weight, inverse) if isinstance(weight, Shares) or isinstance(inverse, Shares) else weight * inverse
    out = x if isinstance(mean, Tensor) and not bool(mean.any()) else sub(backend, x, shaped(mean))
    if not (isinstance(factor, Tensor) and bool((factor == 1).all())):
        out = mul(backend, out, shaped(factor))
    if bias is not None:
        out = add(backend, out, shaped(bias))
    return out, None, None
