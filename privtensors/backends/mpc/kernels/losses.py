"""Kernels of the stock losses: logits and labels both shared, or the labels public."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from privtensors.backends.mpc import costs_losses as costs
from privtensors.backends.mpc.kernels.arithmetic import absolute, add, mean, mul, mul_public, neg, scale, sub, sum_, ulps
from privtensors.backends.mpc.kernels.backward import PAIRS, TRIPLES, Operand, shared, times
from privtensors.backends.mpc.kernels.deferred import Deferred
from privtensors.backends.mpc.kernels.nonlinear import abs_, amax, exp
from privtensors.backends.mpc.kernels.shape import constant, expand
from privtensors.backends.mpc.protocols.activation import activate
from privtensors.backends.mpc.protocols.arithmetic import normal, open_lifted, square_wire
from privtensors.backends.mpc.protocols.compare import select
from privtensors.backends.mpc.protocols.gradients import evaluate, one_hot
from privtensors.backends.mpc.protocols.octaves import logarithm, span
from privtensors.backends.mpc.runtime import Host, Protocol, Runtime
from privtensors.backends.mpc.shares import Shares
from privtensors.core.kernel import Kernel
from privtensors.errors import InvalidInput, UnsupportedOp

LOG_LOW: Final = -16
LOG_HIGH: Final = 18
_NONE, _MEAN = 0, 1  # ATen's numbers for reduction="none" and "mean"; 2 is "sum"


def _reduced(backend: Host, x: Shares, reduction: int) -> Shares:
    return x if reduction == _NONE else mean(backend, x) if reduction == _MEAN else sum_(backend, x)


def log(backend: Host, x: Shares) -> Shares:
    """Natural logarithm on [2^-14, 2^18]; values outside, zero and negative ones included, read as its ends."""
    where = span(x.frac, LOG_LOW, LOG_HIGH)
    return backend.run(logarithm(backend.runtime, x, where))


def softplus(backend: Host, x: Shares, beta: float = 1, threshold: float = 20) -> Shares:
    """log(1 + exp(beta · x)) / beta; the threshold beyond which ATen takes x itself makes no difference here."""
    if beta <= 0:
        raise UnsupportedOp(f"softplus with beta {beta}", where="backend 'mpc'", fix="use a positive beta")
    found = backend.run(evaluate(backend.runtime, x if beta == 1 else scale(backend, x, beta), "softplus"))
    return found if beta == 1 else scale(backend, found, 1 / beta)


def _sloped(backend: Host, grad: Operand, x: Operand, sign: float) -> Shares:
    """grad · sigmoid(sign · x)."""
    if isinstance(x, Tensor):
        return mul(backend, shared(backend, grad), torch.sigmoid(sign * x))
    given, at = shared(backend, grad), x if sign == 1 else scale(backend, x, sign)

    def protocol(rt: Runtime) -> Protocol[Shares]:
        return (yield from times(rt, given, (yield from activate(rt, at, "sigmoid"))))

    return backend.run(protocol(backend.runtime))


def softplus_backward(backend: Host, grad: Operand, x: Operand, beta: float, threshold: float) -> Shares:
    """grad · sigmoid(beta · x)."""
    return _sloped(backend, grad, x, float(beta))


def log_sigmoid(backend: Host, x: Shares) -> tuple[Shares, Shares]:
    """-softplus(-x). ATen's buffer exp(-abs(x)) is computed only if somebody uses it; the backward pass does not."""
    buffer = Deferred(lambda: exp(backend, neg(backend, abs_(backend, x))), x.shape, x.dtype)
    return neg(backend, softplus(backend, neg(backend, x))), buffer


def log_sigmoid_backward(backend: Host, grad: Operand, x: Operand, buffer: Any = None) -> Shares:
    """grad · sigmoid(-x)."""
    return _sloped(backend, grad, x, -1.0)


def bce_with_logits(backend: Host, x: Operand, target: Operand, weight: Any = None, positive: Any = None, reduction: int = _MEAN) -> Shares:
    """Binary cross entropy of logits: ``softplus(x) - x · y``, with public weights.

    Raises:
        UnsupportedOp: Shared weights.
    """
    if isinstance(weight, Shares) or isinstance(positive, Shares):
        raise UnsupportedOp("a loss with shared weights", where="backend 'mpc'", fix="give weight= and pos_weight= as plain tensors")
    if isinstance(x, Tensor):  # shared targets of public logits
        y, falls, rises = shared(backend, target), torch.nn.functional.softplus(x), torch.nn.functional.softplus(-x)
        rises = rises if positive is None else rises * positive
        out = add(backend, mul_public(backend, y, rises - falls), falls)
    elif positive is None:
        out = sub(backend, softplus(backend, x), mul(backend, x, target))
    else:  # (1 - y) x + (1 + (p - 1) y) softplus(-x)
        factor = add(backend, mul(backend, target, positive - 1), 1.0) if isinstance(target, Shares) else 1 + (positive - 1) * target
        other = add(backend, neg(backend, target), 1.0) if isinstance(target, Shares) else 1 - target
        out = add(backend, mul(backend, x, other), mul(backend, softplus(backend, neg(backend, x)), factor))
    if weight is not None:
        out = mul(backend, out, weight)
    return _reduced(backend, out, reduction)


def mse_loss(backend: Host, x: Operand, y: Operand, reduction: int = _MEAN) -> Shares:
    """Squared difference; 1 round."""
    difference = sub(backend, x, y)

    def protocol(rt: Runtime) -> Protocol[Shares]:
        out = square_wire(rt, (yield from open_lifted(rt, difference, min(difference.frac, rt.frac))))
        out.dtype = difference.dtype
        return out

    return _reduced(backend, backend.run(protocol(backend.runtime)), reduction)


def mse_loss_backward(backend: Host, grad: Operand, x: Operand, y: Operand, reduction: int) -> Shares:
    """2 (x - y) · grad, over the number of elements for a mean."""
    if isinstance(x, Shares) or isinstance(y, Shares):
        difference = sub(backend, x, y)
        out = _by(backend, difference, grad)
        count = math.prod(difference.shape)
    else:
        out = mul(backend, grad, x - y)
        count = x.numel()
    return scale(backend, out, 2 / count if reduction == _MEAN else 2.0)


def _by(backend: Host, x: Shares, grad: Operand) -> Shares:
    if isinstance(grad, Tensor):
        return mul(backend, x, grad)
    return backend.run(times(backend.runtime, x, grad))


def log_softmax(backend: Host, x: Shares, dim: int, half_to_float: Any = False) -> Shares:
    """x - max - log Σ exp(x - max): exact for scores of any size, at 4 rounds per halving of the row for its maximum."""
    axis = dim % max(len(x.shape), 1)
    ready = backend.run(normal(backend.runtime, x))
    centred = sub(backend, ready, expand(backend, amax(backend, ready, [axis], True), x.shape))
    total = sum_(backend, exp(backend, centred), [axis], True)
    rows = x.shape[axis]
    # The largest entry contributes 1: no row's sum leaves [1, rows].
    where = span(backend.frac, 0, 2 * math.ceil(math.log2(rows + 1) / 2) + 2)
    lse = backend.run(logarithm(backend.runtime, total, where))
    return sub(backend, centred, lse)


def log_softmax_backward(backend: Host, grad: Operand, out: Operand, dim: int, dtype: Any) -> Shares:
    """grad - exp(out) · Σ grad."""
    if isinstance(out, Tensor):
        weights: Operand = out.exp()
    else:
        weights = exp(backend, out)
    given = shared(backend, grad)
    total = sum_(backend, given, [dim], True)
    if isinstance(weights, Tensor):
        return sub(backend, given, mul(backend, total, weights))
    return sub(backend, given, backend.run(times(backend.runtime, weights, total)))


def _class_weights(target: Tensor, weight: Tensor | None, ignore: int, classes: int) -> Tensor:
    """Per example its public weight, 0 where it is ignored; float64, shape of ``target``."""
    kept = target != ignore
    if bool(((target < 0) | (target >= classes))[kept].any()):
        raise InvalidInput(f"a class index outside 0..{classes - 1}", where="mpc nll_loss", fix="check the labels, or ignore_index")
    safe = target.clamp(0, classes - 1)
    values = torch.ones(classes, dtype=torch.float64) if weight is None else weight.to(torch.float64)
    return values[safe] * kept


def _no_weight(weight: Any) -> None:
    if weight is not None:
        fix = "drop weight=, or give one-hot float targets times the weights"
        raise UnsupportedOp("a weighted nll_loss of shared labels", where="backend 'mpc'", fix=fix)


def _class_axis(shape: tuple[int, ...]) -> int:
    return 0 if len(shape) == 1 else 1


def nll_loss(
    backend: Host, x: Operand, target: Operand, weight: Any = None, reduction: int = _MEAN, ignore: int = -100
) -> tuple[Shares, Shares]:
    """Minus the log-probability of the right class. Labels: public class indices, or shared ones in 0 … classes - 1.

    Shared labels are compared with every class, so they cost rounds and nobody learns them; ``ignore_index`` does not
    apply to them.
    """
    axis = _class_axis(tuple(x.shape))
    classes = x.shape[axis]
    if isinstance(target, Shares):
        _no_weight(weight)
        values = shared(backend, x)
        chosen = backend.run(_pick(backend.runtime, values, target, axis))
        count = 0.0 if reduction == _NONE else float(math.prod(target.shape))
        return _reduced(backend, neg(backend, chosen), reduction), constant(backend, torch.tensor(count))
    assert isinstance(x, Shares)
    weights = _class_weights(target, weight, ignore, classes)
    index = target.clamp(0, classes - 1).unsqueeze(axis)
    picked = x.like(x.data.gather(axis + 1, index.expand(len(x.data), *index.shape)).squeeze(axis + 1))
    plain = bool((weights == 1).all())
    total = constant(backend, weights.sum().float() if reduction != _NONE else torch.tensor(0.0))
    losses = neg(backend, picked if plain else mul_public(backend, picked, weights))
    if reduction != _MEAN or plain:
        return _reduced(backend, losses, reduction), total
    return scale(backend, sum_(backend, losses), 1 / max(float(weights.sum()), 1e-12)), total


def _pick(rt: Runtime, x: Shares, target: Shares, axis: int) -> Protocol[Shares]:
    """Σ_c [target = c] · x_c."""
    ready = x if x.ring == 64 else (yield from normal(rt, x))
    bits = yield from one_hot(rt, target, x.shape[axis])
    out = yield from select(rt, [(bits.movedim(1, axis + 1).contiguous(), ready)], ready)
    return out.like(out.data.sum(axis + 1))


def nll_loss_backward(backend: Host, grad: Operand, x: Operand, target: Operand, *rest: Any) -> Shares:
    """-grad at the right class, zero elsewhere."""
    weight, reduction, ignore = rest[:3]
    axis = _class_axis(tuple(x.shape))
    given = shared(backend, grad)
    if isinstance(target, Shares):
        _no_weight(weight)
        count = max(math.prod(target.shape), 1)
        given = scale(backend, given, -1 / count if reduction == _MEAN else -1.0)
        wide = expand(backend, given, target.shape) if given.shape != target.shape else given
        lead = wide.like(wide.data.unsqueeze(axis + 1).expand(len(wide.data), *x.shape).contiguous())
        return backend.run(_spread(backend.runtime, lead, target, axis))
    weights = _class_weights(target, weight, ignore, x.shape[axis])
    total = float(weights.sum()) if reduction == _MEAN else 1.0
    given = scale(backend, given, -1 / max(total, 1e-12))
    wide = expand(backend, given, tuple(target.shape)) if given.shape != tuple(target.shape) else given
    if not bool((weights == 1).all()):
        wide = mul_public(backend, wide, weights)
    index = target.clamp(0, x.shape[axis] - 1).unsqueeze(axis).expand(len(wide.data), *target.unsqueeze(axis).shape)
    data = torch.zeros(len(wide.data), *x.shape, dtype=torch.int64)
    return wide.like(data.scatter_(axis + 1, index, wide.data.unsqueeze(axis + 1)))


def _spread(rt: Runtime, grad: Shares, target: Shares, axis: int) -> Protocol[Shares]:
    bits = yield from one_hot(rt, target, grad.shape[axis])
    return (yield from select(rt, [(bits.movedim(1, axis + 1).contiguous(), grad)], grad))


def _declared(op: str, run: Callable[..., Any], cost: Callable[..., Any], error: float, *kinds: str) -> list[Kernel]:
    return [Kernel(op, kind, run, cost, absolute(error)) for kind in kinds]


def _summed(error: float) -> Callable[..., float]:
    """Declared error of a loss: of one element, or of the sum of all."""

    def total(backend: Host, x: Operand, target: Operand, *rest: Any) -> float:
        return error * (math.prod(x.shape) if rest and rest[-1] not in (_NONE, _MEAN) else 1)

    return total


_LABELS: Final = ("AA", "AP", "PA", "AAP", "APP", "PAP")

KERNELS: Final = (
    *_declared("log", log, costs.log, 1e-3, "A"),
    *_declared("softplus", softplus, costs.softplus, 1e-3, "A"),
    *_declared("softplus_backward", softplus_backward, costs.sloped, 2e-3, *PAIRS),
    *_declared("log_sigmoid", log_sigmoid, costs.softplus, 1e-3, "A"),
    *_declared("log_sigmoid_backward", log_sigmoid_backward, costs.sloped, 2e-3, *PAIRS, "AAA", "AAP", "APP", "APA", "PAP", "PAA"),
    *(
        Kernel("bce_with_logits", kinds, bce_with_logits, costs.bce_with_logits, _summed(2e-3))
        for kinds in (*PAIRS, "AAP", "APP", "PAP", "AAPP", "APPP", "PAPP")
    ),
    *(Kernel("mse_loss", kinds, mse_loss, costs.mse_loss, ulps(2)) for kinds in PAIRS),
    *(Kernel("mse_loss_backward", kinds, mse_loss_backward, costs.mse_loss_backward, ulps(2)) for kinds in TRIPLES),
    *_declared("log_softmax", log_softmax, costs.log_softmax, 2e-3, "A"),
    *_declared("log_softmax_backward", log_softmax_backward, costs.log_softmax_backward, 4e-3, *PAIRS),
    *_declared("nll_loss", nll_loss, costs.nll_loss, 1e-3, *_LABELS),
    *_declared(
        "nll_loss_backward",
        nll_loss_backward,
        costs.nll_loss_backward,
        1e-3,
        *("AAA", "AAP", "APA", "PAA", "APP", "PAP", "AAAA", "APAA", "AAPP", "APPP", "AAPA", "AAAP", "PAAP", "PAPP", "APAP"),
    ),
)
