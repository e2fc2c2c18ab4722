"""From rows to aggregates: bounds enforced, records that are not finite dropped, sums exact.

**Why an aggregate's sensitivity is what it says.** Between neighbouring data sets one unit's rows are replaced by zeros in
:func:`contributions`, whose rows depend on one unit each; nothing else changes. What that unit adds is bounded there and not
where it was computed: every entry is clamped to its range, and each unit is scaled down to its L1 and L2 norms where these say
more than the range. So a wrong range upstream costs accuracy and never privacy.

**Floating point.** A sum of floats depends on all of its terms' rounding errors, so one unit can change more than its own term
(Casacuberta et al. 2022). Therefore terms are first rounded towards zero, which enlarges no norm, to a multiple of one power of
two so coarse that every partial sum of float64 is exact, in any order; n terms keep 52 - log2(n) bits. A product of two
tables of fractions cannot be made exact without losing too much; its error is bounded by n u / (1 - n u) times the sum of
absolute products (Higham 2002, section 3.1; any order, with or without fused operations), and twice that is added to the
sensitivity.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from privtensors.backends.dp.payload import Aggregate, Rows, multiplicity
from privtensors.errors import UnboundedSensitivity

UNIT: Final = 2.0**-53
"""Unit roundoff of float64."""

_BITS: Final = 52
_TIGHTER: Final = 1 - 1e-6


def rounding(terms: int) -> float:
    """The relative error of a float64 sum or product sum of ``terms`` terms; infinite for absurdly many."""
    error = (terms + 2) * UNIT
    return error / (1 - error) if error < 0.01 else math.inf


def check_bounded(rows: Rows, where: str) -> None:
    """Refuse rows without finite ranges.

    Raises:
        UnboundedSensitivity: An entry can be any number.
    """
    if rows.value.numel() and not rows.bounded:
        raise UnboundedSensitivity(
            "one row can change the result without bound",
            where=where,
            fix="bound the rows first: x.clamp(low, high), torch.renorm(x, 2, 0, norm), or DP(bounds=(low, high))",
        )


def contributions(rows: Rows, where: str, *, terms: int, factor: float = 1.0, exact: bool = True) -> Tensor:
    """What each row adds, float64, a fresh tensor in the shape of the rows.

    Args:
        rows: With finite ranges.
        where: The operation, for messages.
        terms: Largest number of entries that are summed into one.
        factor: Largest whole number that an entry is multiplied by before it is summed.
        exact: Round entries so that those sums are exact.

    Raises:
        UnboundedSensitivity: The ranges are not finite.
    """
    check_bounded(rows, where)
    out = torch.clamp(rows.value, rows.range.low, rows.range.high)
    out = torch.where(_counts(rows), out, 0.0)
    if rows.value.numel() == 0:
        return out
    _shrink(out, rows)
    peak = float(rows.range.magnitude.max()) * factor
    if exact and peak > 0:
        quantum = 2.0 ** (math.ceil(math.log2(peak * max(terms, 1))) - _BITS)
        # Whole numbers below 2^52 in sum are exact as they are.
        if not (rows.integral and quantum <= 1):
            out.div_(quantum).trunc_().mul_(quantum)
    return out


def _counts(rows: Rows) -> Tensor:
    """Which entries belong to rows that count: alive and finite. Shaped to broadcast."""
    finite = torch.isfinite(rows.value)
    if rows.axis is None:
        alive = rows.alive[rows.units.clamp(min=0)] | (rows.units < 0)
        return finite & alive.view(())
    others = [i for i in range(len(rows.shape)) if i != rows.axis]
    complete = finite if not others else torch.movedim(finite, rows.axis, 0).flatten(1).all(1)
    alive = complete & (rows.alive[rows.units.clamp(min=0)] | (rows.units < 0))
    shape = [1] * len(rows.shape)
    shape[rows.axis] = -1
    return alive.view(shape)


def _shrink(out: Tensor, rows: Rows) -> None:
    """Scale each unit's entries down to the norms, where the ranges alone do not keep to them."""
    each, times = rows.range.magnitude, multiplicity(rows.units)
    for order, limit, most in (
        (1.0, rows.l1, times * float(each.sum())),
        (2.0, rows.l2, math.sqrt(times) * float(torch.linalg.vector_norm(each))),
    ):
        if limit >= most * _TIGHTER:
            continue
        flat = out.reshape(1, -1) if rows.axis is None else torch.movedim(out, rows.axis, 0).reshape(len(rows.units), -1)
        norms = torch.linalg.vector_norm(flat, order, dim=1)
        if times > 1:
            ids = rows.units.clamp(min=0)
            total = torch.zeros(int(ids.max()) + 1, dtype=torch.float64).index_add_(0, ids, norms**order)
            norms = (total ** (1 / order))[ids]
        # Norms of k numbers are right to k rounding errors: aim below the limit by more than that.
        room = limit * (1 - (flat.shape[1] * times + 64) * 4 * UNIT)
        factor = torch.where(norms > room, room / norms, 1.0)
        factor = torch.where(rows.units < 0, 1.0, factor)
        if rows.axis is None:
            out.mul_(factor.view(()))
            continue
        shape = [1] * out.dim()
        shape[rows.axis] = -1
        out.mul_(factor.view(shape))


def whole(rows: Rows, where: str) -> Aggregate:
    """The rows themselves as something to release: a unit changes its own rows, from a bounded value to zero.

    Raises:
        UnboundedSensitivity: The ranges are not finite.
    """
    value = contributions(rows, where, terms=1, exact=False)  # nothing is summed
    owned = (rows.ids() >= 0).to(torch.float64)
    each = rows.range.magnitude.expand(rows.shape)
    return Aggregate(value, each * owned, each.clone(), rows.dtype, l1=rows.l1, l2=rows.l2)


def summed(rows: Rows, dims: list[int], keepdim: bool, dtype: torch.dtype, where: str) -> Aggregate:
    """Sum over ``dims``, the units' axis among them.

    A unit with m rows changes an entry by at most m times the summed ranges; all entries by L1 at most its own L1 norm, and
    by L2 at most √k times its own L2 norm, where at most k of its entries meet in one sum (Cauchy and Schwarz).

    Raises:
        UnboundedSensitivity: The ranges are not finite.
    """
    assert rows.axis is not None
    size = math.prod(rows.shape[i] for i in dims)
    value = contributions(rows, where, terms=size).sum(dims, keepdim=keepdim)
    times, each = multiplicity(rows.units), rows.range.magnitude.sum(dims, keepdim=keepdim)
    together = times * (size // max(rows.shape[rows.axis], 1))
    return Aggregate(value, each * times, each * rows.shape[rows.axis], dtype, l1=rows.l1, l2=_times(math.sqrt(max(together, 1)), rows.l2))


def _times(a: float, b: float) -> float:
    return a * b * (1 + 1e-12)
