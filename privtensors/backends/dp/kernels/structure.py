"""Kernels that move entries and compute nothing: views, selections, copies. They keep every entry's unit and bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch import Tensor

from privtensors.backends.dp.kernels.aggregates import constant
from privtensors.backends.dp.kernels.guard import kernel
from privtensors.backends.dp.payload import Aggregate, Interval, Rows, axis_of, both_alive, shape_of_range, squash
from privtensors.core.kernel import Kernel

_a: Final = torch.ops.aten

Move = Callable[..., Any]


def _split(x: Tensor, size: Any, dim: int = 0) -> Any:
    return torch.split(x, size, dim)


# Each runs on values, on unit ids and on bounds alike. ``reshape``: what is moved may be an expanded view.
_MOVES: Final[dict[str, Move]] = {
    "view": lambda x, size: x.reshape(size),
    "t": lambda x: x.t(),
    "transpose": lambda x, a, b: x.transpose(a, b),
    "permute": lambda x, dims: x.permute(dims),
    "unsqueeze": lambda x, dim: x.unsqueeze(dim),
    "squeeze": lambda x, *dim: x.squeeze(*dim),
    "select": lambda x, dim, index: x.select(dim, index),
    "slice": lambda x, *where: _a.slice.Tensor(x, *where),
    "split": _split,
    "unbind": lambda x, dim=0: x.unbind(dim),
    "flip": lambda x, dims: x.flip(dims),
    "roll": lambda x, shifts, dims=(): x.roll(shifts, dims),
    "clone": lambda x, **_layout: x.clone(),
}

# These may repeat an entry, which multiplies what a unit has.
_COPIES: Final[dict[str, Move]] = {
    "expand": lambda x, size, **_implicit: x.expand(size),
    "repeat": lambda x, times: x.repeat(times),
    "index": lambda x, where: _a.index.Tensor(x, where),
    "index_select": lambda x, dim, index: x.index_select(dim, index),
    "embedding": lambda x, ids, *_training: x[ids],
    "gather": lambda x, dim, index, **_sparse: x.gather(dim, index),
}

_JOINS: Final[dict[str, Move]] = {"cat": lambda xs, dim=0: torch.cat(xs, dim), "stack": lambda xs, dim=0: torch.stack(xs, dim)}
_NOBODY: Final = -1


def _each(out: Any, *more: Any) -> Iterator[tuple[Any, ...]]:
    return zip(out, *more, strict=True)


def _repeats(move: Move, shape: tuple[int, ...], args: tuple[Any, ...], kwargs: Any) -> list[int]:
    """How often one entry occurs in each result."""
    count = math.prod(shape)
    out = move(torch.arange(count).view(shape), *args, **kwargs)
    parts = out if isinstance(out, (tuple, list)) else (out,)
    return [int(torch.bincount(part.flatten()).max()) if part.numel() else 0 for part in parts]


def _full(bounds: Tensor, rows: Rows) -> Tensor:
    return bounds.expand(rows.shape)


def _moved_rows(op: str, move: Move, copies: bool) -> Callable[..., Any]:
    def run(x: Rows, *args: Any, **kwargs: Any) -> Any:
        ids, low, high = (move(t, *args, **kwargs) for t in (x.ids(), _full(x.range.low, x), _full(x.range.high, x)))
        times = _repeats(move, x.shape, args, kwargs) if copies else None
        several = isinstance(ids, (tuple, list))
        found = [axis_of(part, op) for part in (ids if several else (ids,))]
        moved = move(x.value, *args, **kwargs)
        results = []
        for i, (value, down, up) in enumerate(_each(*((t if several else (t,)) for t in (moved, low, high)))):
            axis, units = found[i]
            bounds, often = squash(Interval(down, up), tuple(value.shape), axis), 1 if times is None else times[i]
            l1, l2 = _scaled(x.l1, often), _scaled(x.l2, math.sqrt(often))
            results.append(Rows(value, axis, units, x.alive, bounds, x.dtype, l1=l1, l2=l2, integral=x.integral))
        return tuple(results) if several else results[0]

    return run


def _moved_aggregate(move: Move, copies: bool) -> Callable[..., Any]:
    def run(x: Aggregate, *args: Any, **kwargs: Any) -> Any:
        moved = [move(t, *args, **kwargs) for t in (x.value, x.each, x.peak)]
        times = _repeats(move, x.shape, args, kwargs) if copies else None
        several = isinstance(moved[0], (tuple, list))
        results = []
        for i, (value, each, peak) in enumerate(_each(*((t if several else (t,)) for t in moved))):
            often = 1 if times is None else times[i]
            results.append(Aggregate(value, each, peak, x.dtype, l1=_scaled(x.l1, often), l2=_scaled(x.l2, math.sqrt(often))))
        return tuple(results) if several else results[0]

    return run


def _scaled(norm: float, factor: float) -> float:
    return 0.0 if factor == 0 else norm * factor * (1 + 1e-12)


def _joined_rows(op: str, join: Move) -> Callable[..., Rows]:
    def run(parts: list[Any], *args: Any) -> Rows:
        rows = [p for p in parts if isinstance(p, Rows)]
        dtype = join([torch.empty(p.shape, dtype=p.dtype, device="meta") for p in parts], *args).dtype
        ids = join([p.ids() if isinstance(p, Rows) else torch.full(p.shape, _NOBODY) for p in parts], *args)
        axis, units = axis_of(ids, op)
        low, high = (join([_full(p.range[i], p) if isinstance(p, Rows) else p.to(torch.float64) for p in parts], *args) for i in range(2))
        alive = rows[0].alive
        for other in rows[1:]:
            alive = both_alive(alive, other.alive)
        integral = all(p.integral if isinstance(p, Rows) else not p.is_floating_point() for p in parts)
        # A constant beside a unit's entries vanishes with them, so it counts to the unit: then only the ranges say how much that is.
        own = len(rows) == len(parts)
        return Rows(
            join([p.value if isinstance(p, Rows) else p.to(torch.float64) for p in parts], *args),
            axis,
            units,
            alive,
            squash(Interval(low, high), tuple(ids.shape), axis),
            dtype,
            l1=sum(p.l1 for p in rows) if own else math.inf,
            l2=_hypot(p.l2 for p in rows) if own else math.inf,
            integral=integral,
        )

    return run


def _joined_aggregates(join: Move) -> Callable[..., Aggregate]:
    def run(parts: list[Any], *args: Any) -> Aggregate:
        dtype = join([torch.empty(p.shape, dtype=p.dtype, device="meta") for p in parts], *args).dtype
        every = [p if isinstance(p, Aggregate) else constant(p.to(torch.float64)) for p in parts]
        value, each, peak = (join([getattr(p, name) for p in every], *args) for name in ("value", "each", "peak"))
        return Aggregate(value, each, peak, dtype, l1=sum(p.l1 for p in every), l2=_hypot(p.l2 for p in every))

    return run


def _hypot(norms: Any) -> float:
    return math.sqrt(sum(n * n for n in norms)) * (1 + 1e-12)


def _pad_rows(x: Rows, pad: list[int], value: float = 0) -> Rows:
    def filled(t: Tensor, fill: float) -> Tensor:
        out: Tensor = _a.constant_pad_nd.default(t, pad, fill)
        return out

    ids = filled(x.ids(), _NOBODY)
    axis, units = axis_of(ids, "constant_pad_nd")
    low, high = (filled(_full(b, x), value) for b in x.range)
    bounds = squash(Interval(low, high), tuple(ids.shape), axis)
    # Padding inside a unit's rows is that unit's: its constants vanish with it.
    inside = units.numel() and value and bool((units >= 0).any())
    integral = x.integral and float(value).is_integer()
    norms = {} if inside else {"l1": x.l1, "l2": x.l2}
    return Rows(filled(x.value, value), axis, units, x.alive, bounds, x.dtype, integral=integral, **norms)


def _pad_aggregate(x: Aggregate, pad: list[int], value: float = 0) -> Aggregate:
    filled = [_a.constant_pad_nd.default(t, pad, fill) for t, fill in ((x.value, value), (x.each, 0), (x.peak, abs(value)))]
    return Aggregate(filled[0], filled[1], filled[2], x.dtype, l1=x.l1, l2=x.l2)


def _triangle_rows(cut: Move) -> Callable[..., Rows]:
    def run(x: Rows, diagonal: int = 0) -> Rows:
        low, high = (cut(_full(b, x).contiguous(), diagonal) for b in x.range)
        bounds = squash(Interval(low, high), x.shape, x.axis)
        return Rows(cut(x.value, diagonal), x.axis, x.units, x.alive, bounds, x.dtype, l1=x.l1, l2=x.l2, integral=x.integral)

    return run


def _triangle_aggregate(cut: Move) -> Callable[..., Aggregate]:
    def run(x: Aggregate, diagonal: int = 0) -> Aggregate:
        value, each, peak = (cut(t, diagonal) for t in (x.value, x.each, x.peak))
        return Aggregate(value, each, peak, x.dtype, l1=x.l1, l2=x.l2)

    return run


def _blank(fill: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(x: Any, *, dtype: torch.dtype | None = None, **_layout: Any) -> Tensor:
        return fill(x.shape, dtype=dtype or x.dtype)

    return run


def _zero_rows(x: Rows) -> Rows:
    nothing = torch.zeros(shape_of_range(x.shape, x.axis), dtype=torch.float64)
    return Rows(torch.zeros_like(x.value), x.axis, x.units, x.alive, Interval(nothing, nothing), x.dtype, integral=True)


def _zero_aggregate(x: Aggregate) -> Aggregate:
    nothing = torch.zeros_like(x.value)
    return Aggregate(nothing, nothing, nothing, x.dtype)


def kernels() -> Iterator[Kernel]:
    """Every kernel of this module."""
    for moves, copies in ((_MOVES, False), (_COPIES, True)):
        for op, move in moves.items():
            suffix = "P" if op in ("index", "index_select", "gather", "embedding") else ""
            yield kernel(op, "R" + suffix, _moved_rows(op, move, copies))
            yield kernel(op, "A" + suffix, _moved_aggregate(move, copies))
    for op, join in _JOINS.items():
        for kinds in ("R", "PR"):
            yield kernel(op, kinds, _joined_rows(op, join))
        for kinds in ("A", "AP"):
            yield kernel(op, kinds, _joined_aggregates(join))
    yield kernel("constant_pad_nd", "R", _pad_rows)
    yield kernel("constant_pad_nd", "A", _pad_aggregate)
    for op, cut in (("tril", torch.tril), ("triu", torch.triu)):
        yield kernel(op, "R", _triangle_rows(cut))
        yield kernel(op, "A", _triangle_aggregate(cut))
    for op, fill in (("zeros_like", torch.zeros), ("ones_like", torch.ones)):
        for kinds in "RA":
            yield kernel(op, kinds, _blank(fill))
    yield kernel("zero", "R", _zero_rows)
    yield kernel("zero", "A", _zero_aggregate)
