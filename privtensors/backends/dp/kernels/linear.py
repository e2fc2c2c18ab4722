"""Matrix products: rows times a public matrix stay rows; a product over the rows is an aggregate.

The last two axes are the matrices'; a first axis, where there are three, runs over independent products. A unit has entries in
one or in all of them: its L1 and L2 norms are over all, so the largest norm of any of the public matrices bounds their growth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from privtensors.backends.dp.contributions import contributions, rounding
from privtensors.backends.dp.kernels import aggregates, entrywise
from privtensors.backends.dp.kernels.guard import Held, kernel, like
from privtensors.backends.dp.payload import Aggregate, Interval, Rows, both_alive, join_units, multiplicity, squash
from privtensors.core.kernel import Kernel
from privtensors.errors import InvalidInput, UnsupportedOp

_UP = 1 + 1e-9


def _operator_norm(weight: Tensor) -> float:
    """Largest singular value of public matrices, rounded up; the Frobenius norm bounds it where that is cheaper."""
    if weight.numel() == 0:
        return 0.0
    if min(weight.shape[-2:]) > 512:
        return float(torch.linalg.matrix_norm(weight).max()) * _UP
    return float(torch.linalg.matrix_norm(weight, 2).max()) * _UP


def _widest(weight: Tensor) -> float:
    """Largest L1 norm of a row of public matrices."""
    return float(weight.abs().sum(-1).max()) if weight.numel() else 0.0


def _public(weight: Tensor, where: str) -> Tensor:
    wide = weight.to(torch.float64)
    if not bool(torch.isfinite(wide).all()):
        raise InvalidInput("the public matrix has NaN or infinite entries", where=where, fix="clean it first")
    return wide


def product(a: Any, b: Any, *, op: str = "mm") -> Held:
    """``a @ b`` of two matrices, or of as many pairs as the first axis is long (``op="bmm"``); at least one operand is protected.

    Raises:
        UnsupportedOp: Entries of different units would be combined other than by summing over all rows.
        UnboundedSensitivity: A product over rows without finite ranges.
    """
    dtype = like(getattr(torch, op), a, b).dtype
    if isinstance(a, Tensor):
        return _transposed(_times_public(_transposed(b), _public(a, op).mT, dtype))
    if isinstance(b, Tensor):
        return _times_public(a, _public(b, op), dtype)
    if isinstance(a, Rows) and isinstance(b, Rows):
        return _within_rows(a, b, dtype) if op == "bmm" and a.axis == b.axis == 0 else _outer_sum(a, b, dtype)
    raise UnsupportedOp("the product of two aggregates has no sensitivity that holds for all data", where=op, fix=_RELEASE)


_RELEASE = "reveal each of them, then multiply the released values: that costs nothing more"


def _transposed(x: Held) -> Held:
    if isinstance(x, Aggregate):
        return Aggregate(x.value.mT, x.each.mT, x.peak.mT, x.dtype, l1=x.l1, l2=x.l2)
    bounds, first, last = Interval(x.range.low.mT, x.range.high.mT), len(x.shape) - 2, len(x.shape) - 1
    axis = last if x.axis == first else first if x.axis == last else x.axis
    return Rows(x.value.mT, axis, x.units, x.alive, bounds, x.dtype, l1=x.l1, l2=x.l2, integral=x.integral)


def _times_public(a: Any, weight: Tensor, dtype: torch.dtype) -> Held:
    if isinstance(a, Aggregate):
        return times_public(a, weight, dtype)
    return _weighted_sum(a, weight, dtype) if a.axis == len(a.shape) - 1 else _rows_times(a, weight, dtype)


def times_public(a: Aggregate, weight: Tensor, dtype: torch.dtype) -> Aggregate:
    """Aggregate matrices times public ones: changes go through the same map, plus rounding at both neighbours."""
    size = weight.abs()
    each, peak = a.each @ size, a.peak @ size
    slack = 2 * rounding(weight.shape[-2]) * (peak + each)
    return Aggregate(a.value @ weight, each, peak, dtype, l1=a.l1 * _widest(weight) * _UP, l2=a.l2 * _operator_norm(weight), slack=slack)


def _rows_times(a: Rows, weight: Tensor, dtype: torch.dtype) -> Rows:
    """Every row through a public linear map."""
    value = a.value @ weight
    if a.bounded:
        plus, minus = weight.clamp(min=0), weight.clamp(max=0)
        low, high = a.range.low @ plus + a.range.high @ minus, a.range.high @ plus + a.range.low @ minus
    else:
        high = torch.full((1, weight.shape[-1]), math.inf, dtype=torch.float64)
        low = -high
    bounds = squash(Interval(low, high), tuple(value.shape), a.axis)
    widest = _widest(weight)
    l1 = a.l1 * widest * _UP if widest else 0.0
    l2 = a.l2 * _operator_norm(weight) if widest else 0.0
    return Rows(value, a.axis, a.units, a.alive, bounds, dtype, l1=l1, l2=l2)


def _weighted_sum(a: Rows, weight: Tensor, dtype: torch.dtype) -> Aggregate:
    """Σ over rows r of a_r ⊗ w_r with public w: a unit with m rows changes it by at most m times its largest product."""
    rows = a.shape[-1]
    whole = bool((weight == weight.round()).all())
    most = weight.abs().amax(-2, keepdim=True) if rows else weight.new_zeros(*weight.shape[:-2], 1, weight.shape[-1])
    peak_weight = float(most.max()) if most.numel() else 0.0
    exact = whole and peak_weight <= 2**20
    added = contributions(a, "mm", terms=rows, factor=max(peak_weight, 1.0), exact=exact)
    times, each = multiplicity(a.units), a.range.magnitude
    peak = each @ weight.abs().sum(-2, keepdim=True)
    l1_weight = _widest(weight)
    l2_weight = float(torch.linalg.vector_norm(weight, dim=-1).max()) if weight.numel() else 0.0
    slack = None if exact else 2 * rounding(rows) * peak
    l2 = math.sqrt(max(times, 1)) * a.l2 * l2_weight * _UP
    return Aggregate(added @ weight, times * (each @ most), peak, dtype, l1=a.l1 * l1_weight * _UP, l2=l2, slack=slack)


def _outer_sum(a: Rows, b: Rows, dtype: torch.dtype) -> Aggregate:
    """Σ over rows r of a_r ⊗ b_r, both protected: group sums by one-hot rows, second moments."""
    if a.axis != len(a.shape) - 1 or b.axis != len(b.shape) - 2 or not torch.equal(a.units, b.units):
        raise UnsupportedOp(
            "rows of different units would be multiplied",
            where="mm",
            fix="multiply over the rows: x.T @ y, both with the same rows in the same order",
        )
    alive = both_alive(a.alive, b.alive)
    a = Rows(a.value, a.axis, a.units, alive, a.range, a.dtype, l1=a.l1, l2=a.l2, integral=a.integral)
    b = Rows(b.value, b.axis, b.units, alive, b.range, b.dtype, l1=b.l1, l2=b.l2, integral=b.integral)
    rows, times = len(a.units), multiplicity(a.units)
    most_a, most_b = (float(r.range.magnitude.max()) if r.value.numel() else 0.0 for r in (a, b))
    # Exact where one side is whole numbers: then the other is rounded so that all sums of products are.
    exact = (a.integral and most_a <= 2**20) or (b.integral and most_b <= 2**20)
    left = contributions(a, "mm", terms=rows, factor=max(most_b, 1.0) if b.integral else 1.0, exact=exact)
    right = contributions(b, "mm", terms=rows, factor=max(most_a, 1.0) if a.integral else 1.0, exact=exact)
    each = a.range.magnitude @ b.range.magnitude
    peak = rows * each
    slack = None if exact else 2 * rounding(rows) * peak
    return Aggregate(left @ right, times * each, peak, dtype, l1=a.l1 * b.l1 * _UP, l2=a.l2 * b.l2 * _UP, slack=slack)


def _within_rows(a: Rows, b: Rows, dtype: torch.dtype) -> Rows:
    """A matrix of each row times another of the same row: both norms of a product are at most the product of the norms."""
    axis, units, alive = join_units([a, b], tuple(like(torch.bmm, a, b).shape), "bmm")
    value, most = a.value @ b.value, a.range.magnitude @ b.range.magnitude
    most = torch.where(torch.isnan(most), math.inf, most)  # an unknown range times 0
    bounds = squash(Interval(-most, most), tuple(value.shape), axis)
    return Rows(value, axis, units, alive, bounds, dtype, l1=a.l1 * b.l1 * _UP, l2=a.l2 * b.l2 * _UP)


def _bmm(a: Any, b: Any) -> Held:
    return product(a, b, op="bmm")


def _mv(a: Any, b: Any) -> Held:
    like(torch.mv, a, b)
    return _dropped(product(a, _column(b)))


def _dot(a: Any, b: Any) -> Held:
    like(torch.dot, a, b)
    return _dropped(_dropped(product(_transposed(_column(a)) if not isinstance(a, Tensor) else a.view(1, -1), _column(b))))


def _column(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.view(-1, 1)
    if isinstance(x, Aggregate):
        return Aggregate(x.value.view(-1, 1), x.each.view(-1, 1), x.peak.view(-1, 1), x.dtype, l1=x.l1, l2=x.l2)
    bounds = Interval(x.range.low.reshape(-1, 1), x.range.high.reshape(-1, 1))
    return Rows(x.value.reshape(-1, 1), x.axis, x.units, x.alive, bounds, x.dtype, l1=x.l1, l2=x.l2, integral=x.integral)


def _dropped(x: Held) -> Held:
    """Without its last axis, which has length 1."""
    if isinstance(x, Aggregate):
        return Aggregate(x.value.squeeze(-1), x.each.squeeze(-1), x.peak.squeeze(-1), x.dtype, l1=x.l1, l2=x.l2)
    axis = None if x.axis == len(x.shape) - 1 else x.axis
    bounds = Interval(x.range.low.squeeze(-1), x.range.high.squeeze(-1))
    return Rows(x.value.squeeze(-1), axis, x.units, x.alive, bounds, x.dtype, l1=x.l1, l2=x.l2, integral=x.integral)


def _addmm(bias: Tensor, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    """beta · bias + alpha · a @ b, with a public bias."""
    like(torch.addmm, bias, a, b, beta=beta, alpha=alpha)
    held = product(a, b)
    plus, times = (entrywise.add, entrywise.mul) if isinstance(held, Rows) else (aggregates.add, aggregates.mul)
    return plus(held if alpha == 1 else times(held, alpha), bias if beta == 1 else bias * beta)


def kernels() -> Iterator[Kernel]:
    """Every kernel of this module."""
    for kinds in ("RP", "PR", "RR", "AP", "PA"):
        yield kernel("mm", kinds, product)
        yield kernel("bmm", kinds, _bmm)
        yield kernel("mv", kinds, _mv)
        yield kernel("dot", kinds, _dot)
    for kinds in ("PRP", "PPR", "PAP", "PPA", "PRR"):
        yield kernel("addmm", kinds, _addmm)
