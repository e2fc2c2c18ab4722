"""Entry-wise kernels on aggregates: maps under which a change cannot grow by more than a public factor.

Everything else is for after the release, where any function of the released value costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from privtensors.backends.dp.contributions import UNIT
from privtensors.backends.dp.kernels.guard import Run, kernel, like
from privtensors.backends.dp.kernels.reductions import divided
from privtensors.backends.dp.payload import Aggregate
from privtensors.core.kernel import Kernel
from privtensors.errors import InvalidInput

_UP: Final = 1 + 1e-9


def _wide(a: Any, shape: tuple[int, ...]) -> Tensor:
    """A public operand as float64, broadcast; refused where it is not finite."""
    wide = torch.as_tensor(a, dtype=torch.float64)
    if not bool(torch.isfinite(wide).all()):
        raise InvalidInput("a public operand has NaN or infinite entries", where="aggregate", fix="clean it first")
    return wide.expand(shape)


def constant(value: Tensor) -> Aggregate:
    """Public numbers, as an aggregate that no unit changes."""
    return Aggregate(value, torch.zeros_like(value), value.abs(), value.dtype)


def _spread(x: Aggregate, shape: tuple[int, ...]) -> Aggregate:
    """``x`` broadcast to ``shape``: an entry that is repeated changes as often."""
    if x.shape == shape:
        return x
    times = math.prod(shape) / max(math.prod(x.shape), 1)
    value, each, peak = (t.expand(shape) for t in (x.value, x.each, x.peak))
    return Aggregate(value, each, peak, x.dtype, l1=x.l1 * times, l2=x.l2 * math.sqrt(times) * _UP)


def _sum(a: Any, b: Any, sign: float, target: Tensor) -> Aggregate:
    """a + sign · b, each an aggregate or public."""
    shape = tuple(target.shape)
    value, each, peak = (torch.zeros(shape, dtype=torch.float64) for _ in range(3))
    l1 = l2 = 0.0
    for operand, factor in ((a, 1.0), (b, float(sign))):
        if isinstance(operand, Aggregate):
            x = _spread(operand, shape)
            value, each, peak = value + factor * x.value, each + abs(factor) * x.each, peak + abs(factor) * x.peak
            l1, l2 = l1 + abs(factor) * x.l1 * _UP, l2 + abs(factor) * x.l2 * _UP
        else:
            wide = _wide(operand, shape)
            value, peak = value + factor * wide, peak + abs(factor) * wide.abs()
    return Aggregate(value, each, peak, target.dtype, l1=l1, l2=l2, slack=8 * UNIT * peak)


def add(a: Any, b: Any, alpha: float = 1) -> Aggregate:
    """a + alpha · b, at least one of them an aggregate."""
    return _sum(a, b, alpha, like(torch.add, a, b, alpha=alpha))


def _sub(a: Any, b: Any, alpha: float = 1) -> Aggregate:
    return _sum(a, b, -alpha, like(torch.sub, a, b, alpha=alpha))


def _rsub(a: Any, b: Any, alpha: float = 1) -> Aggregate:
    return _sum(b, a, -alpha, like(torch.rsub, a, b, alpha=alpha))


def mul(a: Any, b: Any) -> Aggregate:
    """An aggregate times a public factor."""
    target = like(torch.mul, a, b)
    x, factor = (a, b) if isinstance(a, Aggregate) else (b, a)
    shape = tuple(target.shape)
    x, wide = _spread(x, shape), _wide(factor, shape)
    most = float(wide.abs().max()) if wide.numel() else 0.0
    peak = x.peak * wide.abs()
    return Aggregate(
        x.value * wide, x.each * wide.abs() * _UP, peak, target.dtype, l1=x.l1 * most * _UP, l2=x.l2 * most * _UP, slack=4 * UNIT * peak
    )


def _addcmul(x: Any, a: Any, b: Any, *, value: float = 1) -> Aggregate:
    """x + value · a · b, of which a or b is public."""
    target = like(torch.addcmul, x, a, b, value=value)
    scaled = mul(a, b) if isinstance(a, Aggregate) or isinstance(b, Aggregate) else a.to(torch.float64) * b.to(torch.float64)
    out = add(x, scaled, alpha=value)
    out.dtype = target.dtype
    return out


def _div(a: Aggregate, b: Any) -> Aggregate:
    target = like(torch.div, a, b)
    if isinstance(b, (int, float)) and b > 0:
        return divided(a, float(b), target.dtype)
    wide = torch.as_tensor(b, dtype=torch.float64)
    if bool((wide == 0).any()):
        raise InvalidInput("division by a public zero", where="div", fix="divide by numbers other than 0")
    out = mul(a, 1 / wide)
    return Aggregate(out.value, out.each, out.peak, target.dtype, l1=out.l1, l2=out.l2)


def _neg(a: Aggregate) -> Aggregate:
    return Aggregate(-a.value, a.each, a.peak, a.dtype, l1=a.l1, l2=a.l2)


def _contraction(f: Callable[..., Tensor], factor: float, keeps: Callable[..., float]) -> Run:
    """A function of one entry whose slope is at most ``factor``; ``keeps`` bounds the result where the peak does not."""

    def run(a: Aggregate, *args: Any, **kwargs: Any) -> Aggregate:
        target = like(f, a, *args, **kwargs)
        value = f(a.value, *args, **kwargs)
        peak = a.peak * factor + keeps(*args, **kwargs)
        slack = 16 * UNIT * peak if factor != 1 or f not in _EXACT else None
        return Aggregate(value, a.each * factor, peak, target.dtype, l1=a.l1 * factor, l2=a.l2 * factor, slack=slack)

    return run


_EXACT: Final = (torch.abs, torch.relu, torch.clamp)


def _nothing(*_args: Any, **_kwargs: Any) -> float:
    return 0.0


def _ends(low: Any = None, high: Any = None) -> float:
    return max(abs(float(end)) for end in (low, high, 0.0) if end is not None)


def _extreme(f: Callable[..., Tensor]) -> Run:
    """The larger or smaller of two: the result changes by at most what the one or the other changes by."""

    def run(a: Any, b: Any) -> Aggregate:
        target = like(f, a, b)
        shape = tuple(target.shape)
        x, y = (_spread(p, shape) if isinstance(p, Aggregate) else constant(_wide(p, shape)) for p in (a, b))
        each, peak = torch.maximum(x.each, y.each), torch.maximum(x.peak, y.peak)
        return Aggregate(f(x.value, y.value), each, peak, target.dtype, l1=x.l1 + y.l1, l2=x.l2 + y.l2)

    return run


def _where(mask: Tensor, a: Any, b: Any) -> Aggregate:
    target = like(torch.where, mask, a, b)
    shape = tuple(target.shape)
    x, y = (_spread(p, shape) if isinstance(p, Aggregate) else constant(_wide(p, shape)) for p in (a, b))
    value, each, peak = (torch.where(mask, p, q) for p, q in ((x.value, y.value), (x.each, y.each), (x.peak, y.peak)))
    return Aggregate(value, each, peak, target.dtype, l1=x.l1 + y.l1, l2=x.l2 + y.l2)


def _masked_fill(a: Aggregate, mask: Tensor, value: float) -> Aggregate:
    out = _where(mask, torch.tensor(float(value), dtype=torch.float64), a)
    return Aggregate(out.value, out.each, out.peak, a.dtype, l1=out.l1, l2=out.l2)


def _to_copy(a: Aggregate, *, dtype: torch.dtype | None = None, **_layout: Any) -> Aggregate:
    chosen = dtype or a.dtype
    if chosen is torch.bool or (a.dtype.is_floating_point and not chosen.is_floating_point):
        raise InvalidInput(
            "rounding an aggregate to whole numbers can double its sensitivity", where="to_copy", fix="reveal it first, then round"
        )
    return Aggregate(a.value, a.each, a.peak, chosen, l1=a.l1, l2=a.l2)


def _copy(a: Aggregate, source: Any, _non_blocking: bool = False) -> Aggregate:
    if isinstance(source, Aggregate):
        x = _spread(source, a.shape)
        return Aggregate(x.value, x.each, x.peak, a.dtype, l1=x.l1, l2=x.l2)
    x = constant(_wide(source, a.shape))
    return Aggregate(x.value, x.each, x.peak, a.dtype)


_MAPS: Final[tuple[tuple[str, Run], ...]] = (
    ("neg", _neg),
    ("abs", _contraction(torch.abs, 1, _nothing)),
    ("relu", _contraction(torch.relu, 1, _nothing)),
    ("clamp", _contraction(torch.clamp, 1, _ends)),
    ("tanh", _contraction(torch.tanh, 1, _nothing)),
    ("sigmoid", _contraction(torch.sigmoid, 0.25, lambda: 1.0)),
    ("erf", _contraction(torch.erf, 2 / math.sqrt(math.pi) * _UP, _nothing)),
    ("silu", _contraction(F.silu, 1.1, _nothing)),
    ("gelu", _contraction(F.gelu, 1.13, _nothing)),
    ("to_copy", _to_copy),
)


def kernels() -> Iterator[Kernel]:
    """Every kernel of this module."""
    for op, run in _MAPS:
        yield kernel(op, "A", run)
    for op, run in (("add", add), ("sub", _sub), ("rsub", _rsub)):
        for kinds in ("A", "AA", "AP", "PA"):
            yield kernel(op, kinds, run)
    for kinds in ("A", "AP", "PA"):
        yield kernel("mul", kinds, mul)
    for kinds in ("A", "AP"):
        yield kernel("div", kinds, _div)
    for kinds in ("APP", "PAP", "PPA", "AAP", "APA"):
        yield kernel("addcmul", kinds, _addcmul)
    for op, extreme in (("maximum", _extreme(torch.maximum)), ("minimum", _extreme(torch.minimum))):
        for kinds in ("AA", "AP", "PA"):
            yield kernel(op, kinds, extreme)
    for kinds in ("PAA", "PAP", "PPA", "PA"):
        yield kernel("where", kinds, _where)
    yield kernel("masked_fill", "AP", _masked_fill)
    for kinds in ("AA", "AP"):
        yield kernel("copy", kinds, _copy)
