"""Declared cost of the loss kernels. See :mod:`privtensors.backends.mpc.costs`."""

from __future__ import annotations

import math
from typing import Any

from privtensors.backends.mpc import costs
from privtensors.backends.mpc.costs import beside, comparison, opened, selection, then
from privtensors.backends.mpc.costs_backward import both, logarithm, scaled, size
from privtensors.backends.mpc.protocols.octaves import span
from privtensors.backends.mpc.shares import WORD, Shares
from privtensors.core.kernel import FREE, Cost


def _mean(backend: Any, n: int, frac: int, reduction: int) -> Cost:
    """A mean lifts its sum where that is not at the normal scale; a power of two divides for nothing."""
    if reduction != 1 or n <= 1 or n & (n - 1) == 0 or frac == backend.frac:
        return FREE
    return opened(1, WORD)


def _whole(x: Any) -> bool:
    wide = x.double()
    return bool((wide == wide.round()).all() and wide.abs().max() <= 256) if x.numel() else True


def log(backend: Any, x: Any) -> Cost:
    """log: of normal values."""
    return logarithm(size(x), span(x.frac, -16, 18))


def softplus(backend: Any, x: Any, *_options: Any) -> Cost:
    """softplus, log_sigmoid: an activation with a line."""
    return costs.activation(True, 0)(backend, x)


def sloped(backend: Any, grad: Any, x: Any, *_options: Any) -> Cost:
    """Their backward: a sigmoid, then a product."""
    return then(costs.activation(False, 1)(backend, x), both(size(x))) if isinstance(x, Shares) else FREE


def bce_with_logits(backend: Any, x: Any, target: Any, weight: Any = None, positive: Any = None, reduction: int = 1) -> Cost:
    """softplus, the product with the label, the mean."""
    n, frac = size(x), backend.frac
    if not isinstance(x, Shares):
        return _mean(backend, n, 2 * frac, reduction)
    total = softplus(backend, x)
    shared = isinstance(target, Shares)
    if positive is not None:
        # x · (1 - y) beside its own opening, softplus times its factor.
        total = then(both(n), total, both(n)) if shared else total
        wide = 2 * frac
    else:
        total = then(total, opened(n, WORD)) if shared else total  # the logits are open already
        wide = 2 * frac if shared or not _whole(target) else frac
    if weight is not None:
        total, wide = then(total, opened(n, WORD) if wide > frac and not _whole(weight) else FREE), 2 * frac
    return then(total, _mean(backend, n, wide, reduction))


def mse_loss(backend: Any, x: Any, y: Any, reduction: int = 1) -> Cost:
    """One opening of the difference, and the mean."""
    n = size(x)
    return then(opened(n, WORD), _mean(backend, n, 2 * backend.frac, reduction))


def mse_loss_backward(backend: Any, grad: Any, x: Any, y: Any, reduction: int) -> Cost:
    """The difference times the gradient, scaled."""
    n, frac = size(x), backend.frac
    factor = 2 / n if reduction == 1 else 2.0
    if not isinstance(grad, Shares):  # a public gradient only scales
        if grad.dim() == 0:
            _, frac = scaled(backend, n, frac, float(grad))
        else:
            frac += 0 if _whole(grad) else backend.frac
        return scaled(backend, n, frac, factor)[0]
    if not (isinstance(x, Shares) or isinstance(y, Shares)):
        return scaled(backend, n, frac + (0 if _whole(x - y) else backend.frac), factor)[0]
    return then(both(n, size(grad)), scaled(backend, n, 2 * frac, factor)[0])


def log_softmax(backend: Any, x: Any, dim: int, *_rest: Any) -> Cost:
    """Maximum, exp, sum, logarithm."""
    length = x.shape[dim] if x.shape else 1
    rows = size(x) // length if length else 0
    where = span(backend.frac, 0, 2 * math.ceil(math.log2(length + 1) / 2) + 2)
    return then(costs.row_maximum(backend, x, [dim], True), costs.exponential(backend, x), opened(rows, WORD), logarithm(rows, where))


def log_softmax_backward(backend: Any, grad: Any, out: Any, dim: int, dtype: Any) -> Cost:
    """exp, then its product with the row sums."""
    if not isinstance(out, Shares):
        return FREE
    n, length = size(out), out.shape[dim] if out.shape else 1
    return then(costs.exponential(backend, out), beside(opened(n, WORD), opened(n // max(length, 1), WORD)))


def _one_hot(n: int, classes: int) -> Cost:
    return comparison(n, classes - 1, 0, (classes - 1).bit_length() + 1) if classes > 1 else FREE


def _classes(x: Any) -> int:
    return int(x.shape[0 if len(x.shape) == 1 else 1])


def nll_loss(backend: Any, x: Any, target: Any, *rest: Any) -> Cost:
    """Local for public labels, but for the division by a sum of weights; shared ones are compared with every class."""
    if isinstance(target, Shares):
        return then(_one_hot(size(target), _classes(x)), selection(size(x), 1, 0))
    weight, reduction = rest[0] if rest else None, rest[1] if len(rest) > 1 else 1
    ignored = target != (rest[2] if len(rest) > 2 else -100)
    if (weight is None and bool(ignored.all())) or reduction != 1:
        return FREE
    total = float(ignored.sum()) if weight is None else float((weight.double()[target.clamp(min=0)] * ignored).sum())
    frac = backend.frac + (0 if weight is None or _whole(weight) else backend.frac)
    return scaled(backend, 1, frac, 1 / max(total, 1e-12))[0]


def nll_loss_backward(backend: Any, grad: Any, x: Any, target: Any, *rest: Any) -> Cost:
    """Local for public labels; shared ones are compared with every class."""
    return then(_one_hot(size(target), _classes(x)), selection(size(x), 1, 0)) if isinstance(target, Shares) else FREE
