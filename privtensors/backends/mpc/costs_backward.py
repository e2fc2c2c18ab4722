"""Declared cost of the backward kernels and of what optimizers need. See :mod:`privtensors.backends.mpc.costs`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from privtensors.backends.mpc import costs
from privtensors.backends.mpc.costs import CUT_FRAC, RANGE_BITS, beside, comparison, opened, selection, then
from privtensors.backends.mpc.protocols.normalise import ROW_DIGIT
from privtensors.backends.mpc.protocols.octaves import GROUP, Span, span
from privtensors.backends.mpc.shares import WORD, Shares
from privtensors.core.kernel import FREE, Cost


def size(x: Any) -> int:
    """Elements of a tensor or payload."""
    return math.prod(x.shape)


def both(n: int, other: int | None = None) -> Cost:
    """One product in one round: two openings."""
    return beside(opened(n, WORD), opened(n if other is None else other, WORD))


def chosen(limits: int) -> Callable[..., Cost]:
    """relu_backward, clamp_backward: a comparison and a selection; local where the other operand is public."""

    def cost(backend: Any, grad: Any, x: Any, *_rest: Any) -> Cost:
        n = size(x)
        return then(comparison(n, limits, CUT_FRAC, RANGE_BITS), selection(n, 1, 0)) if isinstance(x, Shares) else FREE

    return cost


def slope(backend: Any, grad: Any, x: Any, **_options: Any) -> Cost:
    """gelu_backward, silu_backward: the derivative as an activation, then a product."""
    return then(costs.activation(False, 1)(backend, x), both(size(x))) if isinstance(x, Shares) else FREE


def from_output(backend: Any, grad: Any, out: Any) -> Cost:
    """tanh_backward, sigmoid_backward: a square, then a product."""
    return then(opened(size(out), WORD), both(size(out))) if isinstance(out, Shares) else FREE


def softmax_backward(backend: Any, grad: Any, out: Any, dim: int, dtype: Any) -> Cost:
    """Both operands, then the row sums."""
    n = size(out)
    return then(both(n), opened(n // max(out.shape[dim], 1), WORD))


def layer_norm_backward(backend: Any, grad: Any, x: Any, shape: Any, mean: Any, rstd: Any, weight: Any, *_rest: Any) -> Cost:
    """Operands; the normalised values (and the gradient times the gain); a sum per row; what is left."""
    n, width = size(x), math.prod(shape)
    rows = n // width if width else 0
    first = [opened(n, WORD), opened(rows, WORD), opened(rows, WORD), opened(n, WORD)]
    if weight is not None:
        first.append(opened(width, WORD))
    second = opened(n, WORD) if weight is None else both(n)
    return then(beside(*first), second, opened(rows, WORD), opened(n, WORD))


def attention_backward(backend: Any, grad: Any, q: Any, k: Any, v: Any, out: Any, logsumexp: Any = None, *rest: Any, **masks: Any) -> Cost:
    """The weights as an attention to the identity beside all openings; then weights, slopes and the scores' gradient."""
    length = k.shape[-2]
    identity = torch.empty(*k.shape[:-1], length, device="meta")
    scores = math.prod(q.shape[:-1]) * length
    first = beside(
        costs.attention(backend, q, k, identity, *rest, **masks),
        *(opened(size(t), WORD) for t in (grad, q, k, v, out)),
    )
    return then(first, *[opened(scores, WORD)] * 4)


def convolution_backward(backend: Any, grad: Any, x: Any, weight: Any, *options: Any) -> Cost:
    """Gradient and image, then the filters; nothing where one operand of a product is public."""
    wanted = options[-1]
    if not isinstance(grad, Shares):
        return FREE
    first = both(size(grad), size(x)) if wanted[1] and isinstance(x, Shares) else FREE
    if not (wanted[0] and isinstance(weight, Shares)):
        return first
    left = opened(size(weight), WORD)
    return then(first, left) if first != FREE else beside(opened(size(grad), WORD), left)


def max_pool_backward(
    backend: Any, grad: Any, x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool, indices: Any
) -> Cost:
    """The places compared with the taps' offsets, and one selection per offset but the first; local for public places."""
    if not isinstance(indices, Shares):
        return FREE
    (high, wide), (down, across) = (costs.pair(value) for value in (kernel, dilation))
    offsets = {i * down * x.shape[-1] + j * across for i in range(high) for j in range(wide)}
    n, others = size(indices), len(offsets) - 1
    if not others:
        return FREE
    chosen = beside(opened(n * others, 1), opened(n, WORD))
    return then(comparison(n, others, 0, max(offsets).bit_length()), chosen)


def located(n: int, where: Span) -> Cost:
    """The value's opening beside the comparison with every second octave."""
    frac, whole = where.window
    return beside(opened(n, WORD), comparison(n, where.count + 1, frac, whole, ROW_DIGIT, GROUP))


def logarithm(n: int, where: Span) -> Cost:
    """Octave, power of two and logarithm of the octave; moved; fitted; lifted."""
    bits = selection(n, 0, 2 * where.count + 4)
    return then(located(n, where), bits, *[opened(n, WORD)] * 3)


def quotient(n: int, where: Span) -> Cost:
    """Both operands beside the octave; powers of two; numerator and fit; inverse."""
    bits = selection(n, 0, 2 * where.count + 4)
    return then(beside(opened(n, WORD), located(n, where)), bits, both(n), both(n), opened(n, WORD))


def scaled(backend: Any, n: int, frac: int, factor: float) -> tuple[Cost, int]:
    """``scale`` of ``n`` full-ring values with ``frac`` fractional bits: its cost and the result's fractional bits."""
    mantissa, exponent = math.frexp(factor)
    for bits in range(1, 7):
        if mantissa * 2**bits == int(mantissa * 2**bits):
            shift = exponent - bits
            if shift >= 0:
                return FREE, frac
            if WORD - 2 - frac + shift >= 4:
                return FREE, frac - shift
            break
    digits = backend.frac - min(exponent, 0)
    headroom = WORD - 2 - frac
    room = min(backend.runtime.headroom, headroom + max(exponent, 0))
    if headroom - backend.frac >= room:
        return FREE, frac + digits
    return opened(n, WORD), WORD - 2 - backend.frac - room + digits


def addcdiv(backend: Any, x: Any, numerator: Any, divisor: Any, *, value: float = 1) -> Cost:
    """The quotient, its product with the step, and one truncation before the sum."""
    from privtensors.backends.mpc.kernels.optimizers import QUOTIENT_HIGH, QUOTIENT_LOW

    n = size(divisor)
    if not isinstance(divisor, Shares):
        return scaled(backend, n, 2 * backend.frac, value)[0] if isinstance(numerator, Shares) and value != 1 else FREE
    found = quotient(n, span(divisor.frac, QUOTIENT_LOW, QUOTIENT_HIGH))
    extra, frac = scaled(backend, n, 52, value) if value != 1 else (FREE, 52)
    if isinstance(x, Shares) or (x.numel() > 0 and float(x.abs().max()) >= 2.0 ** (WORD - 6 - frac)):
        extra = then(extra, opened(n, WORD))
    return then(found, extra)
