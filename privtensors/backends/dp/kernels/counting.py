"""Counts per bin, and public tables looked up by protected ids. Everything outside its range counts nowhere, silently."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from privtensors.backends.dp.contributions import contributions
from privtensors.backends.dp.kernels.guard import kernel, like
from privtensors.backends.dp.payload import Aggregate, Interval, Rows, both_alive, multiplicity, squash
from privtensors.core.kernel import Kernel
from privtensors.errors import InvalidInput, UnsupportedOp


def _bincount(ids: Rows, weights: Any = None, minlength: int = 0) -> Aggregate:
    """How often each id from 0 to ``minlength`` - 1 occurs, or the sum of its weights.

    torch makes the result as long as the largest id, which only the data knows; here it is always ``minlength`` long, and ids
    outside count nowhere. A unit with m rows adds at most m, to one bin or to several.
    """
    if minlength < 1:
        raise UnsupportedOp(
            "the number of bins would be read from the data",
            where="bincount",
            fix="torch.bincount(x, minlength=K); ids from K on are dropped",
        )
    if ids.dtype.is_floating_point or ids.dtype is torch.bool or len(ids.shape) != 1:
        raise InvalidInput("expected a vector of whole numbers", where="bincount", fix="x.flatten().long()")
    times, rows = multiplicity(ids.units), len(ids.units)
    if weights is None:
        counted = Rows(*_ones(ids), l1=float(times), l2=float(times))
        dtype = torch.int64
    else:
        counted = _weights(ids, weights)
        dtype = torch.float32 if counted.dtype is torch.float32 else torch.float64
    added = contributions(counted, "bincount", terms=max(rows, 1))
    inside = (ids.value >= 0) & (ids.value < minlength)
    where = torch.where(inside, ids.value, 0.0).to(torch.int64)
    value = torch.zeros(minlength, dtype=torch.float64).index_add_(0, where, torch.where(inside, added, 0.0))
    most = float(counted.range.magnitude.max()) if rows else 0.0
    each = torch.full((minlength,), times * most, dtype=torch.float64)
    peak = torch.full((minlength,), rows * most, dtype=torch.float64)
    return Aggregate(value, each, peak, dtype, l1=counted.l1, l2=math.sqrt(max(times, 1)) * counted.l2)


def _ones(ids: Rows) -> tuple[Tensor, int | None, Tensor, Tensor, Interval, torch.dtype]:
    one = torch.ones(1, dtype=torch.float64)
    return torch.ones_like(ids.value), ids.axis, ids.units, ids.alive, Interval(torch.zeros(1, dtype=torch.float64), one), torch.int64


def _weights(ids: Rows, weights: Any) -> Rows:
    if tuple(weights.shape) != ids.shape:
        raise InvalidInput(f"weights of shape {tuple(weights.shape)} for ids of {ids.shape}", where="bincount", fix="one weight per id")
    if isinstance(weights, Rows):
        if weights.axis != ids.axis or not torch.equal(weights.units, ids.units):
            raise UnsupportedOp("ids and weights of different units", where="bincount", fix="keep both in the same order of rows")
        alive = both_alive(weights.alive, ids.alive)
        return Rows(weights.value, weights.axis, weights.units, alive, weights.range, weights.dtype, l1=weights.l1, l2=weights.l2)
    wide = weights.to(torch.float64)
    bounds = squash(Interval(wide.clamp(max=0), wide.clamp(min=0)), ids.shape, ids.axis)
    return Rows(wide, ids.axis, ids.units, ids.alive, bounds, weights.dtype)


def _histc(x: Rows, bins: int = 100, low: float = 0, high: float = 0) -> Aggregate:
    """How many entries lie in each of ``bins`` equal bins from ``low`` to ``high``; a unit adds at most the number of its entries."""
    dtype = like(torch.histc, x, bins, low, high).dtype
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UnsupportedOp(
            "the range of the bins would be read from the data", where="histc", fix="torch.histc(x, bins=10, min=0.0, max=1.0)"
        )
    entries = x.value.numel()
    own = float(multiplicity(x.units) * (entries // max(len(x.units), 1)))
    one = Interval(torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64))
    ones = Rows(torch.where(torch.isfinite(x.value), 1.0, math.nan), x.axis, x.units, x.alive, squash(one, x.shape, x.axis), torch.int64)
    added = contributions(ones, "histc", terms=max(entries, 1))
    counts = torch.histc(x.value[added > 0], bins, low, high)  # it ignores what lies outside
    each = torch.full((bins,), own, dtype=torch.float64)
    return Aggregate(counts, each, torch.full((bins,), float(entries), dtype=torch.float64), dtype, l1=own, l2=own)


def _embedding(table: Tensor, ids: Rows, *_training: Any) -> Rows:
    """The public row that each protected id selects. An id without a row makes its unit's row contribute zero."""
    target = like(torch.embedding, table, ids)
    wide = table.to(torch.float64)
    inside = (ids.value >= 0) & (ids.value < table.shape[0])
    value = wide[torch.where(inside, ids.value, 0.0).to(torch.int64)]
    value = torch.where(inside.unsqueeze(-1), value, math.nan)
    low, high = (wide.amin(0), wide.amax(0)) if len(table) else (wide.new_zeros(table.shape[1]), wide.new_zeros(table.shape[1]))
    shape = tuple(target.shape)
    per_row = multiplicity(ids.units) * (math.prod(ids.shape) // max(len(ids.units), 1))
    longest = float(torch.linalg.vector_norm(wide, dim=1).max()) if len(table) else 0.0
    axis, units = (0, ids.units.expand(shape[0])) if ids.axis is None else (ids.axis, ids.units)
    bounds = squash(Interval(low, high), shape, axis)
    return Rows(value, axis, units, ids.alive, bounds, target.dtype, l2=math.sqrt(per_row) * longest * (1 + 1e-9))


def kernels() -> Iterator[Kernel]:
    """Every kernel of this module."""
    for kinds in ("R", "RR", "RP"):
        yield kernel("bincount", kinds, _bincount)
    yield kernel("histc", "R", _histc)
    yield kernel("embedding", "PR", _embedding)
