"""Sums, means and what else reduces axes: within rows they stay rows; over rows they become aggregates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from privtensors.backends.dp.contributions import UNIT, contributions, rounding, summed
from privtensors.backends.dp.kernels.guard import kernel, like
from privtensors.backends.dp.payload import Aggregate, Interval, Rows, multiplicity, squash
from privtensors.core.kernel import Kernel
from privtensors.errors import UnsupportedOp


def _dims(shape: tuple[int, ...], dim: Any) -> list[int]:
    given = [dim] if isinstance(dim, int) else list(dim or ())
    return sorted({d % len(shape) for d in given}) if given and shape else list(range(len(shape)))


def _kept_axis(x: Rows, dims: list[int], keepdim: bool) -> tuple[int | None, Tensor]:
    """Where the units' axis is after the reduction of other axes."""
    if x.axis is None:
        return None, x.units
    return (x.axis, x.units) if keepdim else (x.axis - sum(d < x.axis for d in dims), x.units)


def _sum_rows(x: Rows, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Any:
    target = like(torch.sum, x, dim, keepdim, dtype=dtype) if dim is not None else like(torch.sum, x, dtype=dtype)
    dims = _dims(x.shape, dim)
    if x.axis is not None and x.axis in dims:
        return summed(x, dims, keepdim, target.dtype, "sum")
    if not dims:
        return Rows(x.value, x.axis, x.units, x.alive, x.range, target.dtype, l1=x.l1, l2=x.l2, integral=x.integral)
    axis, units = _kept_axis(x, dims, keepdim)
    low, high = (b.sum(dims, keepdim=keepdim) for b in x.range)
    terms = math.prod(x.shape[d] for d in dims)
    l2 = math.sqrt(terms) * x.l2 if terms else 0.0
    value = x.value.sum(dims, keepdim=keepdim)
    bounds = squash(Interval(low, high), tuple(value.shape), axis)
    return Rows(value, axis, units, x.alive, bounds, target.dtype, l1=x.l1, l2=l2, integral=x.integral)


def _mean_rows(x: Rows, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Any:
    target = like(torch.mean, x, dim, keepdim, dtype=dtype) if dim is not None else like(torch.mean, x, dtype=dtype)
    count = math.prod(x.shape[d] for d in _dims(x.shape, dim))
    total = _sum_rows(x, dim, keepdim, dtype=dtype)
    if isinstance(total, Aggregate):
        return divided(total, float(max(count, 1)), target.dtype)
    factor = 1.0 / max(count, 1)
    bounds = Interval(total.range.low * factor, total.range.high * factor)
    return Rows(total.value * factor, total.axis, total.units, x.alive, bounds, target.dtype, l1=total.l1 * factor, l2=total.l2 * factor)


def divided(x: Aggregate, count: float, dtype: torch.dtype) -> Aggregate:
    """An aggregate over a public number above 0. The quotient is rounded, at both neighbours."""
    peak = x.peak / count
    return Aggregate(x.value / count, x.each / count, peak, dtype, l1=x.l1 / count, l2=x.l2 / count, slack=2 * UNIT * peak)


def _sum_aggregate(x: Aggregate, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Aggregate:
    target = like(torch.sum, x, dim, keepdim, dtype=dtype) if dim is not None else like(torch.sum, x, dtype=dtype)
    dims = _dims(x.shape, dim)
    if not dims:
        return Aggregate(x.value, x.each, x.peak, target.dtype, l1=x.l1, l2=x.l2)
    terms = math.prod(x.shape[d] for d in dims)
    each, peak = x.each.sum(dims, keepdim=keepdim), x.peak.sum(dims, keepdim=keepdim)
    slack = 2 * rounding(terms) * peak
    value = x.value.sum(dims, keepdim=keepdim)
    return Aggregate(value, each, peak, target.dtype, l1=x.l1, l2=math.sqrt(terms) * x.l2 if terms else 0.0, slack=slack)


def _mean_aggregate(x: Aggregate, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Aggregate:
    target = like(torch.mean, x, dim, keepdim, dtype=dtype) if dim is not None else like(torch.mean, x, dtype=dtype)
    count = math.prod(x.shape[d] for d in _dims(x.shape, dim))
    return divided(_sum_aggregate(x, dim, keepdim, dtype=dtype), float(max(count, 1)), target.dtype)


def _within(x: Rows, dim: int, where: str) -> int:
    """``dim`` as a non-negative axis that lies within rows."""
    axis = dim % max(len(x.shape), 1)
    if x.axis is not None and axis == x.axis:
        raise UnsupportedOp(
            "it would combine the rows of different units", where=where, fix="use it along another axis, or sum over rows instead"
        )
    return axis


def _cumsum_rows(x: Rows, dim: int, *, dtype: torch.dtype | None = None) -> Any:
    target = like(torch.cumsum, x, dim, dtype=dtype)
    axis = dim % max(len(x.shape), 1)
    if x.axis is not None and axis == x.axis:
        return _running_sums(x, axis, target.dtype)
    bounds = Interval(x.range.low.cumsum(dim), x.range.high.cumsum(dim)) if x.shape else x.range
    return Rows(x.value.cumsum(dim) if x.shape else x.value, x.axis, x.units, x.alive, bounds, target.dtype, integral=x.integral)


def _running_sums(x: Rows, axis: int, dtype: torch.dtype) -> Aggregate:
    """Sums of the first k rows for every k: a unit changes its own position and all later ones."""
    length = x.shape[axis]
    value = contributions(x, "cumsum", terms=length).cumsum(axis)
    each = x.range.magnitude.expand(x.shape)
    position = torch.arange(1, length + 1, dtype=torch.float64).view([-1 if i == axis else 1 for i in range(len(x.shape))])
    times = torch.minimum(position, torch.tensor(float(multiplicity(x.units)), dtype=torch.float64))
    return Aggregate(
        value,
        each * times,
        each * position,
        dtype,
        l1=length * x.l1,
        l2=math.sqrt(length * max(multiplicity(x.units), 1)) * x.l2,
    )


def _cumsum_aggregate(x: Aggregate, dim: int, *, dtype: torch.dtype | None = None) -> Aggregate:
    target = like(torch.cumsum, x, dim, dtype=dtype)
    length = x.shape[dim] if x.shape else 1
    each, peak = x.each.cumsum(dim), x.peak.cumsum(dim)
    slack = 2 * rounding(length) * peak
    return Aggregate(x.value.cumsum(dim), each, peak, target.dtype, l1=length * x.l1, l2=length * x.l2, slack=slack)


def _amax_rows(x: Rows, dim: Any = (), keepdim: bool = False) -> Rows:
    target = like(torch.amax, x, dim, keepdim)
    dims = _dims(x.shape, dim)
    for d in dims:
        _within(x, d, "amax")
    axis, units = _kept_axis(x, dims, keepdim)
    value = x.value.amax(dims, keepdim=keepdim)
    low, high = (b.amax(dims, keepdim=keepdim) for b in x.range)
    bounds = squash(Interval(low, high), tuple(value.shape), axis)
    return Rows(value, axis, units, x.alive, bounds, target.dtype, l1=x.l1, l2=x.l2, integral=x.integral)


def _argmax_rows(x: Rows, dim: int | None = None, keepdim: bool = False) -> Rows:
    target = like(torch.argmax, x, dim, keepdim)
    if dim is None:
        for d in range(len(x.shape)):
            _within(x, d, "argmax")
    axis = 0 if dim is None else _within(x, dim, "argmax")
    kept, units = _kept_axis(x, [axis], keepdim)
    value = x.value.argmax(dim, keepdim=keepdim).to(torch.float64)
    last = torch.tensor(float((x.shape or (1,))[axis] - 1), dtype=torch.float64)
    bounds = squash(Interval(torch.zeros_like(last), last), tuple(value.shape), kept)
    return Rows(value, kept, units, x.alive, bounds, target.dtype, integral=True)


def _softmax_rows(x: Rows, dim: int, *_how: Any, dtype: torch.dtype | None = None) -> Rows:
    axis = _within(x, dim, "softmax")
    size = (x.shape or (1,))[axis]
    value = torch.softmax(x.value, dim)
    one = torch.ones((), dtype=torch.float64)
    bounds = squash(Interval(torch.zeros_like(one), one), x.shape, x.axis)
    entries = math.prod(x.shape) // max(len(x.units), 1) * multiplicity(x.units)
    total = entries / max(size, 1)  # each of a unit's distributions adds up to one
    return Rows(value, x.axis, x.units, x.alive, bounds, dtype or x.dtype, l1=total * (1 + 1e-9), l2=math.sqrt(total) * (1 + 1e-9))


def _renorm_rows(x: Rows, p: float, dim: int, maxnorm: float) -> Rows:
    """Every row scaled down to norm ``maxnorm``: how ordinary torch clips per row."""
    like(torch.renorm, x, p, dim, maxnorm)
    if dim % len(x.shape) != x.axis:
        fix = f"torch.renorm(x, p, {x.axis}, maxnorm)"
        raise UnsupportedOp("norms are clipped along the axis of the rows only", where="renorm", fix=fix)
    limit, times = float(maxnorm), multiplicity(x.units)
    # A factor from 0 to 1 moves an entry towards 0, and no entry exceeds the norm.
    low, high = x.range.low.clamp(max=0).clamp(min=-limit), x.range.high.clamp(min=0).clamp(max=limit)
    l1 = min(x.l1, times * limit) if p <= 1 else x.l1
    l2 = min(x.l2, math.sqrt(times) * limit) if p <= 2 else x.l2
    return Rows(torch.renorm(x.value, p, dim, maxnorm), x.axis, x.units, x.alive, Interval(low, high), x.dtype, l1=l1, l2=l2)


def kernels() -> Iterator[Kernel]:
    """Every kernel of this module."""
    both: tuple[tuple[str, Callable[..., Any], Callable[..., Any]], ...] = (
        ("sum", _sum_rows, _sum_aggregate),
        ("mean", _mean_rows, _mean_aggregate),
        ("cumsum", _cumsum_rows, _cumsum_aggregate),
    )
    for op, rows, aggregate in both:
        yield kernel(op, "R", rows)
        yield kernel(op, "A", aggregate)
    for op, run in (("amax", _amax_rows), ("argmax", _argmax_rows), ("softmax", _softmax_rows), ("renorm", _renorm_rows)):
        yield kernel(op, "R", run)
