"""Kernels of the backward rows of the fused operations: layer normalisation, attention, convolution.

What the forward pass opened is reused: the masked forms of queries, keys, images, weights and of a layer's input stay with
their payloads, which autograd saves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from privtensors.backends.mpc import costs_backward as costs
from privtensors.backends.mpc.kernels.arithmetic import absolute, operand, ulps
from privtensors.backends.mpc.kernels.backward import TRIPLES, Operand, shared
from privtensors.backends.mpc.kernels.linear import product, windows
from privtensors.backends.mpc.kernels.shape import constant
from privtensors.backends.mpc.protocols.arithmetic import lift, matmul_wires, multiply_wires, open_lifted, open_wire
from privtensors.backends.mpc.protocols.softmax import attention, public_mask
from privtensors.backends.mpc.runtime import Host, Protocol, Runtime, parallel
from privtensors.backends.mpc.shares import Shares, Wire
from privtensors.core.kernel import Kernel
from privtensors.errors import UnsupportedOp

_FACTOR_BITS: Final = 12  # of attention's public scale
_Gradients = tuple[Shares | None, Shares | None, Shares | None]


def layer_norm_backward(
    backend: Host,
    grad: Operand,
    x: Operand,
    shape: Sequence[int],
    mean: Operand,
    rstd: Operand,
    weight: Operand | None,
    bias: Operand | None,
    wanted: Sequence[bool],
) -> _Gradients:
    """Gradients of input, gain and bias: ``rstd · (g - mean(g) - y · mean(g · y))`` with ``g = grad · gain``; 4 rounds."""
    size, lead = math.prod(shape), tuple(x.shape[: len(x.shape) - len(shape)])

    def rows(t: Operand, *tail: int) -> Shares:
        whole = shared(backend, t)
        return whole.like(whole.data.reshape(len(whole.data), *tail))

    given, values = rows(grad, *lead, size), rows(x, *lead, size)
    middle, inverse = rows(mean, *lead, 1), rows(rstd, *lead, 1)
    gain = None if weight is None else rows(weight, size)
    dx, dw = backend.run(_layer_norm_backward(backend.runtime, given, values, middle, inverse, gain))
    trailing = tuple(range(1, len(lead) + 1))

    def total(t: Shares) -> Shares:
        data = t.data.sum(trailing) if trailing else t.data
        return t.like(data.reshape(len(data), *shape))

    found = dx.like(dx.data.reshape(len(dx.data), *x.shape))
    return (
        found if wanted[0] else None,
        total(dw) if wanted[1] and weight is not None else None,
        total(given) if wanted[2] and bias is not None else None,
    )


def _layer_norm_backward(
    rt: Runtime, grad: Shares, x: Shares, mean: Shares, rstd: Shares, gain: Shares | None
) -> Protocol[tuple[Shares, Shares]]:
    n = x.shape[-1]
    fine = max(x.frac, mean.frac, rt.frac)
    centred = x.like((x.data << (fine - x.frac)) - (mean.data << (fine - mean.frac)), fine, min(x.ring, mean.ring))
    share = rstd.like(rstd.data * round(2.0**16 / n), rstd.frac + 16)  # rstd / n

    def opened_gain() -> Protocol[Wire | None]:
        return None if gain is None else (yield from open_lifted(rt, gain, rt.frac))

    wire_c, wire_r, wire_n, wire_g, wire_w = yield from parallel(
        open_lifted(rt, centred, rt.frac),
        open_lifted(rt, rstd, min(rstd.frac, 24)),
        open_lifted(rt, share, 26),
        open_lifted(rt, grad, rt.frac),
        opened_gain(),
    )
    y = multiply_wires(rt, wire_c, wire_r)

    def gained() -> Protocol[tuple[Wire, Shares]]:
        if wire_w is None:
            return wire_g, grad
        weighted = multiply_wires(rt, wire_g, wire_w)
        return (yield from open_lifted(rt, weighted, rt.frac)), weighted

    wire_y, (wire_gw, gw) = yield from parallel(open_lifted(rt, y, rt.frac), gained())
    dot = multiply_wires(rt, wire_gw, wire_y)
    dw = dot if wire_w is None else multiply_wires(rt, wire_g, wire_y)
    total = yield from open_lifted(rt, dot.like(dot.data.sum(-1, keepdim=True)), rt.frac)
    spread = multiply_wires(rt, wire_y, total)
    up = spread.frac - gw.frac
    even = (gw.data << up) if up >= 0 else (gw.data >> -up)
    inner = spread.like(even * n - even.sum(-1, keepdim=True) - spread.data, ring=min(spread.ring, gw.ring))
    out = multiply_wires(rt, (yield from open_lifted(rt, inner, rt.frac)), wire_n)
    out.dtype = dw.dtype = x.dtype
    return out, dw


def _turned(t: Tensor, lead: int) -> Tensor:
    return t.transpose(-1, -2)


def attention_backward(
    backend: Host,
    grad: Operand,
    q: Operand,
    k: Operand,
    v: Operand,
    out: Operand,
    logsumexp: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Shares, Shares, Shares]:
    """Gradients of queries, keys and values. The weights are computed again from what the forward pass opened.

    Raises:
        UnsupportedOp: Dropout.
    """
    if dropout_p:
        raise UnsupportedOp("attention with dropout", where="backend 'mpc'", fix="call model.eval(): gradients flow there too")
    keep, bias = public_mask(q.shape[-2], k.shape[-2], is_causal, attn_mask)
    factor = scale if scale is not None else 1.0 / math.sqrt(q.shape[-1])
    length = k.shape[-2]
    identity = constant(backend, torch.eye(length).expand(*k.shape[:-1], length))
    given, sq, sk, sv, so = (shared(backend, t) for t in (grad, q, k, v, out))

    def protocol(rt: Runtime) -> Protocol[tuple[Shares, Shares, Shares]]:
        weights, wires = yield from parallel(
            attention(rt, sq, sk, identity, keep, bias, factor), parallel(*(operand(rt, t) for t in (given, sq, sk, sv, so)))
        )
        wire_g, wire_q, wire_k, wire_v, wire_o = wires
        wire_p = yield from open_wire(rt, weights)
        slope = matmul_wires(rt, wire_g, wire_v.map(_turned))
        mean = multiply_wires(rt, wire_g, wire_o).data.sum(-1, keepdim=True)
        inner = slope.like((slope.data - mean) * round(factor * 2.0**_FACTOR_BITS), slope.frac + _FACTOR_BITS)
        scores = multiply_wires(rt, wire_p, (yield from open_lifted(rt, inner, rt.frac)))
        if keep is not None:
            scores = scores.like(scores.data * keep)
        wire_s = yield from open_wire(rt, (yield from lift(rt, scores, rt.frac)))
        return (
            matmul_wires(rt, wire_s, wire_k),
            matmul_wires(rt, wire_s.map(_turned), wire_q),
            matmul_wires(rt, wire_p.map(_turned), wire_g),
        )

    return backend.run(protocol(backend.runtime))


def convolution_backward(
    backend: Host,
    grad: Operand,
    x: Operand,
    weight: Operand,
    bias_sizes: Sequence[int] | None,
    *options: Any,
) -> _Gradients:
    """Gradients of image, filters and bias: two matrix products over the windows of the forward pass; 1 or 2 rounds.

    Args:
        options: Those of :func:`~privtensors.backends.mpc.kernels.linear.windows`, and which of the three are wanted.
    """
    *geometry, wanted = options
    at = windows(tuple(x.shape), tuple(weight.shape), *geometry)
    groups = at.groups

    def flat(t: Tensor, lead: int) -> Tensor:
        """(n, out, H', W') → (n, groups, out/groups, H'·W')."""
        return t.reshape(*t.shape[:lead], t.shape[lead], groups, t.shape[lead + 1] // groups, math.prod(t.shape[lead + 2 :]))

    def filters(t: Tensor, lead: int) -> Tensor:
        return t.reshape(*t.shape[:lead], groups, t.shape[lead] // groups, math.prod(t.shape[lead + 1 :]))

    dx = dw = db = None
    if wanted[1]:
        found = _product(backend, grad, x, flat, at.spread)
        dw = found.like(found.data.sum(1).reshape(len(found.data), *weight.shape))
    if wanted[0]:
        found = _product(backend, grad, weight, lambda t, lead: flat(t, lead).transpose(-1, -2), filters)
        dx = found.like(at.fold(found.data, tuple(x.shape)))
    if wanted[2]:
        whole = shared(backend, grad)
        db = whole.like(whole.data.sum([1, *range(3, whole.data.dim())]))
    return dx, dw, db


def _product(backend: Host, x: Operand, y: Operand, map_x: Any, map_y: Any) -> Shares:
    if isinstance(x, Shares) or isinstance(y, Shares):
        return product(backend, x, y, map_x, map_y)
    return constant(backend, torch.matmul(map_x(x, 0), map_y(y, 0)))


KERNELS: Final = (
    *(
        Kernel("layer_norm_backward", kinds, layer_norm_backward, costs.layer_norm_backward, absolute(2e-2))
        for kinds in ("AAAA", "AAAAA", "AAAAAA", "AAAAP", "AAAAPP", "APAAA", "APAAAA", "APAA")
    ),
    *(Kernel("attention_backward", kinds, attention_backward, costs.attention_backward, absolute(2e-2)) for kinds in ("AAAAAA", "AAAAA")),
    *(Kernel("convolution_backward", kinds, convolution_backward, costs.convolution_backward, ulps(16)) for kinds in TRIPLES),
)
