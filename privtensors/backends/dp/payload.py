"""What the dp backend holds: rows that belong to units, or an aggregate over units with its sensitivity.

Neighbouring data sets differ in one unit: a row of every tensor that was protected from the data set, by its position. Under
zero-out, that unit's rows contribute zero to every aggregate; the number of rows is public. Both classes hold the value in
float64, whatever dtype they show, and have no text form that shows it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from privtensors.backends.dp.source import Source
from privtensors.errors import UnsupportedOp


class Interval(NamedTuple):
    """Smallest and largest value of each entry, float64, infinite where nothing is known."""

    low: Tensor
    high: Tensor

    @property
    def magnitude(self) -> Tensor:
        """Largest absolute value of each entry."""
        return torch.maximum(self.low.abs(), self.high.abs())


class Rows:
    """A tensor in which every entry belongs to one unit: entries at position i of ``axis`` belong to ``units[i]``.

    Attributes:
        value: float64, any shape. Entries that are not finite make their row contribute zero.
        axis: The axis along which units differ; None for a tensor without axes, which belongs to ``units[0]`` as a whole.
        units: int64, one id per position of ``axis``; -1 where a row belongs to nobody (public constants).
        alive: bool, one per id: False for a record that was not finite, which contributes zero whatever is computed of it.
        range: Of an entry, the same for all units: shaped like ``value`` with length 1 on ``axis``. It is enforced before anything is
            aggregated, never trusted.
        l1, l2: Largest norm of all entries of one unit together; enforced likewise.
        integral: Whether every entry is a whole number.
        dtype: The dtype that the SafeTensor shows.
        sources: The tables it was computed from; ``kernels.guard`` hands them on.
    """

    __slots__ = ("alive", "axis", "dtype", "integral", "l1", "l2", "range", "shape", "sources", "units", "value")
    kind = "R"

    def __init__(
        self,
        value: Tensor,
        axis: int | None,
        units: Tensor,
        alive: Tensor,
        range: Interval,
        dtype: torch.dtype,
        *,
        l1: float = math.inf,
        l2: float = math.inf,
        integral: bool = False,
    ) -> None:
        self.value, self.axis, self.units, self.alive, self.range, self.dtype = value, axis, units, alive, range, dtype
        self.shape: tuple[int, ...] = tuple(value.shape)
        self.integral, self.sources = integral, frozenset[Source]()
        each, times = range.magnitude, multiplicity(units)
        if times == 0 or self.value.numel() == 0:  # nothing of it belongs to anybody
            l1 = l2 = 0.0
        self.l1 = min(_upper(times * float(each.sum())), l1)
        self.l2 = min(_upper(math.sqrt(times) * float(torch.linalg.vector_norm(each))), l2, self.l1)

    def __repr__(self) -> str:
        return f"Rows(shape={self.shape}, dtype={self.dtype}, axis={self.axis}, l1={self.l1:.6g}, l2={self.l2:.6g})"

    @property
    def bounded(self) -> bool:
        """Whether every entry has a finite range."""
        return bool(torch.isfinite(self.range.low).all() and torch.isfinite(self.range.high).all())

    def ids(self) -> Tensor:
        """The unit of every entry, int64, in the shape of the value (a view, not a copy)."""
        if self.axis is None:
            return self.units.view(())
        shape = [1] * len(self.shape)
        shape[self.axis] = -1
        return self.units.view(shape).expand(self.shape)


class Aggregate:
    """A tensor computed over units, with how much one unit can change it between neighbouring data sets.

    Attributes:
        value: float64, any shape, always finite.
        each: Largest absolute change of each entry, float64, the shape of ``value``.
        peak: Largest absolute value that each entry can have for any data, float64, the shape of ``value``.
        l1, l2: Largest norm of the change of all entries together. All of these cover the rounding of floating-point arithmetic.
        dtype: The dtype that the SafeTensor shows.
        sources: As of :class:`Rows`.
    """

    __slots__ = ("dtype", "each", "l1", "l2", "peak", "shape", "sources", "value")
    kind = "A"

    def __init__(
        self,
        value: Tensor,
        each: Tensor,
        peak: Tensor,
        dtype: torch.dtype,
        *,
        l1: float = math.inf,
        l2: float = math.inf,
        slack: Tensor | None = None,
    ) -> None:
        """Args as the attributes; ``slack`` is what rounding adds to each entry's change, on top of ``each``, ``l1`` and ``l2``."""
        if slack is not None:
            each = each + slack
            l1, l2 = l1 + float(slack.sum()), l2 + float(torch.linalg.vector_norm(slack))
        self.value, self.each, self.peak, self.dtype, self.sources = value, each, peak, dtype, frozenset[Source]()
        self.shape: tuple[int, ...] = tuple(value.shape)
        # A comparison with NaN is false: what comes first stays.
        self.l1 = min(_upper(float(each.sum())), l1)
        self.l2 = min(_upper(float(torch.linalg.vector_norm(each))), l2, self.l1)

    def __repr__(self) -> str:
        return f"Aggregate(shape={self.shape}, dtype={self.dtype}, l1={self.l1:.6g}, l2={self.l2:.6g})"


def _upper(value: float) -> float:
    # Sums and roots of float64 are rounded; a bound may only be rounded up. No number is no bound.
    return math.inf if math.isnan(value) else value * (1 + 1e-9)


def multiplicity(units: Tensor) -> int:
    """Most positions that one unit has."""
    owned = units[units >= 0]
    return int(torch.bincount(owned).max()) if owned.numel() else 0


def shape_of_range(shape: tuple[int, ...], axis: int | None) -> tuple[int, ...]:
    """The shape of a range: 1 on the units' axis."""
    return tuple(1 if i == axis else n for i, n in enumerate(shape))


def squash(bounds: Interval, shape: tuple[int, ...], axis: int | None) -> Interval:
    """Bounds that broadcast to ``shape``, joined over the units' axis."""
    target = shape_of_range(shape, axis)
    low, high = (t.to(torch.float64).expand((1,) * (len(shape) - t.dim()) + tuple(t.shape)) for t in bounds)
    if axis is not None and low.shape[axis] == 0:
        return Interval(torch.zeros(target, dtype=torch.float64), torch.zeros(target, dtype=torch.float64))
    if axis is not None and low.shape[axis] != 1:
        low = low.amin(axis, keepdim=True)
    if axis is not None and high.shape[axis] != 1:
        high = high.amax(axis, keepdim=True)
    return Interval(low.expand(target), high.expand(target))


def axis_of(ids: Tensor, where: str) -> tuple[int | None, Tensor]:
    """The axis along which entries belong to different units, and the unit at each position of it.

    Raises:
        UnsupportedOp: Entries of different units stand at one position whichever axis is taken.
    """
    if ids.dim() == 0:
        return None, ids.view(1)
    if ids.numel() == 0:
        empty = next(i for i, n in enumerate(ids.shape) if n == 0)
        return empty, ids.new_zeros(0)
    nobody = torch.iinfo(torch.int64).max
    for axis in range(ids.dim()):
        others = [i for i in range(ids.dim()) if i != axis]
        # Constant axes of an expanded view have stride 0: one position of them stands for all.
        thin = ids[tuple(slice(0, 1) if ids.stride(i) == 0 else slice(None) for i in range(ids.dim()))]
        thin = thin.expand([ids.shape[i] if i == axis else thin.shape[i] for i in range(ids.dim())])
        last = thin.amax(others) if others else thin
        owned = torch.where(thin < 0, nobody, thin)
        first = owned.amin(others) if others else owned
        if bool(((first == last) | (first == nobody)).all()):
            return axis, last
    raise UnsupportedOp(
        "the result would mix entries of different units at one position", where=where, fix="keep one axis for the rows of the table"
    )


def join_units(operands: list[Rows], shape: tuple[int, ...], where: str) -> tuple[int | None, Tensor, Tensor]:
    """Axis, units and liveness of an entry-wise result of ``shape``.

    Raises:
        UnsupportedOp: Entries of different units meet.
    """
    first = operands[0]
    if all(len(r.shape) == len(shape) and r.axis == first.axis and _same(r.units, first.units) for r in operands):
        axis, units = first.axis, first.units
        if axis is not None and shape[axis] != len(units):
            axis, units = axis_of(first.ids().expand(shape), where)
    else:
        ids = first.ids().expand(shape)
        for other in operands[1:]:
            theirs = other.ids().expand(shape)
            if bool(((ids != theirs) & (ids >= 0) & (theirs >= 0)).any()):
                raise UnsupportedOp(
                    "entries of different units would be combined, entry by entry",
                    where=where,
                    fix="combine a row with the same row of another tensor; sum over rows first for anything else",
                )
            ids = torch.maximum(ids, theirs)
        axis, units = axis_of(ids, where)
    alive = first.alive
    for other in operands[1:]:
        alive = both_alive(alive, other.alive)
    return axis, units, alive


def both_alive(a: Tensor, b: Tensor) -> Tensor:
    """Which units are alive in both, ids that only one knows counting by that one."""
    if a is b:
        return a
    short, long = sorted((a, b), key=len)
    return torch.cat([long[: len(short)] & short, long[len(short) :]])


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or torch.equal(a, b)
