"""Entry-wise kernels on rows: any function of a row's own entries keeps rows apart; its range follows by interval arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from privtensors.backends.dp import ranges
from privtensors.backends.dp.kernels.guard import kernel, like, opened
from privtensors.backends.dp.payload import Interval, Rows, join_units, multiplicity, squash
from privtensors.core.kernel import Kernel

Rule = Callable[..., Interval]
Norms = Callable[..., tuple[float, float]]


def entrywise(
    op: str, compute: Callable[..., Tensor], rule: Rule, norms: Norms | None = None, *, whole: bool = False
) -> Callable[..., Rows]:
    """A kernel from a torch function, the rule of its range, and what it does to a unit's norms.

    Args:
        op: Name of the row of the op table, for messages.
        compute: Runs on float64 values, and on meta tensors of the real dtypes for shape and dtype.
        rule: From one interval per operand (numbers are points), and the other arguments, to the result's interval.
        norms: From the operands to upper bounds of the result's L1 and L2 norms; None where only the range bounds them.
        whole: Whether whole numbers stay whole.
    """

    def run(*args: Any, **kwargs: Any) -> Rows:
        rows = [a for a in args if isinstance(a, Rows)]
        target = like(compute, *args, **kwargs)
        shape = tuple(target.shape)
        axis, units, alive = join_units(rows, shape, op)
        bounds = rule(*(_interval(a) for a in args), **kwargs)
        l1, l2 = (math.inf, math.inf) if norms is None or any(r.shape != shape for r in rows) else norms(*args, **kwargs)
        value = compute(*(opened(a) for a in args), **kwargs).to(torch.float64)
        integral = not target.is_floating_point() or (whole and all(_is_whole(a) for a in args))
        if not target.is_floating_point() and target.dtype is not torch.bool and not whole:
            value, bounds = value.trunc(), Interval(bounds.low.trunc(), bounds.high.trunc())
        return Rows(value, axis, units, alive, squash(bounds, shape, axis), target.dtype, l1=l1, l2=l2, integral=integral)

    return run


def _interval(a: Any) -> Any:
    if isinstance(a, Rows):
        return a.range
    if isinstance(a, Tensor):
        wide = a.to(torch.float64)
        return Interval(wide, wide)
    if isinstance(a, bool) or a is None or isinstance(a, torch.dtype):
        return a
    return ranges.point(a) if isinstance(a, (int, float)) else a


def _is_whole(a: Any) -> bool:
    if isinstance(a, Rows):
        return a.integral
    if isinstance(a, Tensor):
        return not a.is_floating_point() or bool((a == a.round()).all())
    return not isinstance(a, float) or a.is_integer()


# --- what happens to norms --------------------------------------------------------------------------------------------------


def _kept(x: Rows, *_args: Any, **_kwargs: Any) -> tuple[float, float]:
    return x.l1, x.l2


def _times(factor: float) -> Norms:
    return lambda x, *_args, **_kwargs: (x.l1 * factor, x.l2 * factor)


def _added(a: Any, b: Any, alpha: float = 1, **_kwargs: Any) -> tuple[float, float]:
    if not (isinstance(a, Rows) and isinstance(b, Rows)):
        return math.inf, math.inf
    return a.l1 + abs(alpha) * b.l1, a.l2 + abs(alpha) * b.l2


def _factor(a: Any) -> float:
    return float(a.abs().max()) if isinstance(a, Tensor) and a.numel() else 0.0 if isinstance(a, Tensor) else abs(float(a))


def _scaled(a: Any, b: Any) -> tuple[float, float]:
    if isinstance(a, Rows) and isinstance(b, Rows):
        return math.inf, math.inf
    x, other = (a, b) if isinstance(a, Rows) else (b, a)
    factor = _factor(other)
    return (0.0, 0.0) if factor == 0 else (x.l1 * factor, x.l2 * factor)


def _divided(a: Any, b: Any, **_kwargs: Any) -> tuple[float, float]:
    if isinstance(b, Rows):
        return math.inf, math.inf
    least = float(b.abs().min()) if isinstance(b, Tensor) and b.numel() else 1.0 if isinstance(b, Tensor) else abs(float(b))
    return (a.l1 / least, a.l2 / least) if least > 0 else (math.inf, math.inf)


def _clamped(x: Rows, low: Any = None, high: Any = None) -> tuple[float, float]:
    # Towards a range that has 0 in it no entry grows.
    shrinks = (low is None or float(low) <= 0) and (high is None or float(high) >= 0)
    return (x.l1, x.l2) if shrinks else (math.inf, math.inf)


# --- the rules --------------------------------------------------------------------------------------------------------------


def _clamp_rule(x: Interval, low: Any = None, high: Any = None) -> Interval:
    down = None if low is None else float(low.low)
    up = None if high is None else float(high.low)
    return Interval(torch.clamp(x.low, down, up), torch.clamp(x.high, down, up))


def _add_rule(a: Interval, b: Interval, alpha: Any = 1) -> Interval:
    return ranges.add(a, ranges.scale(b, _number(alpha)))


def _number(alpha: Any) -> float:
    return float(alpha.low) if isinstance(alpha, Interval) else float(alpha)


def _sub_rule(a: Interval, b: Interval, alpha: Any = 1) -> Interval:
    return ranges.add(a, ranges.scale(b, -_number(alpha)))


def _div_rule(a: Interval, b: Interval) -> Interval:
    return ranges.multiply(a, ranges.reciprocal(b, "div"))


def _pow_rule(a: Interval, exponent: Any) -> Interval:
    return ranges.power(a, _number(exponent), "pow")


def _filled(x: Any, mask: Any, value: Any) -> Tensor:
    return torch.masked_fill(x, mask != 0 if mask.dtype is torch.float64 else mask, value)


def _chosen(mask: Any, x: Any, y: Any) -> Tensor:
    return torch.where(mask != 0 if mask.dtype is torch.float64 else mask, x, y)


def _cast(x: Tensor, *, dtype: torch.dtype | None = None, **_layout: Any) -> Tensor:
    if x.is_meta:
        return x.to(dtype or x.dtype)
    if dtype is torch.bool:
        return (x != 0).to(torch.float64)
    return x if dtype is None or dtype.is_floating_point else x.trunc()


def _cast_rule(x: Interval, *, dtype: torch.dtype | None = None, **_layout: Any) -> Interval:
    if dtype is torch.bool:
        return ranges.zero_one()
    return x if dtype is None or dtype.is_floating_point else Interval(x.low.trunc(), x.high.trunc())


def _cast_norms(x: Rows, *, dtype: torch.dtype | None = None, **_layout: Any) -> tuple[float, float]:
    return (math.inf, math.inf) if dtype is torch.bool else (x.l1, x.l2)


def _copied(x: Any, source: Any, _non_blocking: bool = False) -> Tensor:
    out: Tensor = source.expand(x.shape)
    return out.to(x.dtype) if x.is_meta else out.clone()


def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


_FUNCTIONS: Final[dict[str, tuple[Callable[..., Tensor], Rule, Norms | None]]] = {
    "neg": (torch.neg, ranges.negate, _kept),
    "abs": (torch.abs, ranges.absolute, _kept),
    "relu": (torch.relu, ranges.growing(torch.relu), _kept),
    "clamp": (torch.clamp, _clamp_rule, _clamped),
    "exp": (torch.exp, lambda a: ranges.exponential(a, "exp"), None),
    "tanh": (torch.tanh, ranges.growing(torch.tanh), _kept),
    "sigmoid": (torch.sigmoid, ranges.growing(torch.sigmoid), None),
    "erf": (torch.erf, ranges.growing(torch.erf), _times(2 / math.sqrt(math.pi))),
    "gelu": (_gelu, lambda a, **_how: ranges.dipping(F.gelu, ranges.GELU_LEAST - 1e-3)(a), _kept),
    "silu": (F.silu, ranges.dipping(F.silu, ranges.SILU_LEAST), _kept),
    "sqrt": (torch.sqrt, ranges.root, None),
    "rsqrt": (torch.rsqrt, lambda a: ranges.reciprocal(ranges.power(_positive(a, "rsqrt"), 0.5, "rsqrt"), "rsqrt"), None),
    "reciprocal": (torch.reciprocal, lambda a: ranges.reciprocal(a, "reciprocal"), None),
    "log": (torch.log, lambda a: ranges.logarithm(a, "log"), None),
    "softplus": (F.softplus, lambda a, *how: Interval(torch.zeros_like(a.low), _softplus(a.high, *how)), None),
    "pow": (torch.pow, _pow_rule, None),
    "to_copy": (_cast, _cast_rule, _cast_norms),
}


def _softplus(x: Tensor, *how: Any) -> Tensor:
    return F.softplus(x, *(_number(h) for h in how))


def _positive(a: Interval, where: str) -> Interval:
    ranges.logarithm(a, where)  # the same condition, and the same error
    return a


_PAIRS: Final[dict[str, tuple[Callable[..., Tensor], Rule, Norms | None]]] = {
    "add": (torch.add, _add_rule, _added),
    "sub": (torch.sub, _sub_rule, _added),
    "rsub": (torch.rsub, lambda a, b, alpha=1: _sub_rule(b, a, alpha), None),
    "mul": (torch.mul, lambda a, b: ranges.multiply(a, b), _scaled),
    "div": (torch.div, _div_rule, _divided),
    "maximum": (torch.maximum, ranges.largest, None),
    "minimum": (torch.minimum, ranges.least, None),
    **{name: (getattr(torch, name), ranges.zero_one, None) for name in ("gt", "ge", "lt", "le", "eq")},
}
add: Final = entrywise("add", *_PAIRS["add"])
mul: Final = entrywise("mul", *_PAIRS["mul"])
_equal: Final = entrywise("eq", *_PAIRS["eq"])


def _eq(a: Any, b: Any) -> Rows:
    """a = b. Against a public vector of different numbers, as in one-hot rows, each entry is equal to one of them at most."""
    out = _equal(a, b)
    rows, public = (a, b) if isinstance(a, Rows) else (b, a)
    if isinstance(public, Tensor) and isinstance(rows, Rows) and public.numel() > 1 and public.dim() and rows.shape:
        along = public.shape[-1] == public.numel() == len(torch.unique(public)) and rows.shape[-1] == 1
        if along and len(rows.shape) == len(out.shape) and rows.axis != len(rows.shape) - 1:
            entries = multiplicity(rows.units) * (math.prod(rows.shape) // max(len(rows.units), 1))
            bounds, l2 = out.range, math.sqrt(entries) * (1 + 1e-12)
            return Rows(out.value, out.axis, out.units, out.alive, bounds, out.dtype, l1=float(entries), l2=l2, integral=True)
    return out


_WHOLE: Final = frozenset({"neg", "abs", "relu", "clamp", "add", "sub", "rsub", "mul", "maximum", "minimum", "to_copy"})


def _addcmul(x: Any, a: Any, b: Any, *, value: float = 1) -> Rows:
    """x + value · a · b."""
    target = like(torch.addcmul, x, a, b, value=value)
    if isinstance(a, Rows) or isinstance(b, Rows):
        scaled = mul(a, b)
    else:  # as exact as what is protected
        scaled = a.to(torch.float64) * b.to(torch.float64) if target.is_floating_point() else a * b
    out = add(x, scaled, alpha=value)
    out.dtype = target.dtype
    return out


def kernels() -> Iterator[Kernel]:
    """Every kernel of this module."""
    for kinds in map("".join, product("RP", repeat=3)):
        if "R" in kinds:
            yield kernel("addcmul", kinds, _addcmul)
    for op, (compute, rule, norms) in _FUNCTIONS.items():
        yield kernel(op, "R", entrywise(op, compute, rule, norms, whole=op in _WHOLE))
    for op, (compute, rule, norms) in _PAIRS.items():
        run = _eq if op == "eq" else entrywise(op, compute, rule, norms, whole=op in _WHOLE)
        scalar = () if op in ("maximum", "minimum") else ("R",)
        for kinds in (*scalar, "RR", "RP", "PR"):
            yield kernel(op, kinds, run)
    copy = entrywise("copy", _copied, lambda _x, source, *_rest: source, None, whole=True)
    for kinds in ("RR", "RP"):
        yield kernel("copy", kinds, copy)
    fill = entrywise("masked_fill", _filled, lambda x, _mask, value: ranges.hull(x, value))
    for kinds in ("RR", "RP", "PR"):
        yield kernel("masked_fill", kinds, fill)
    where = entrywise("where", _chosen, lambda _mask, x, y: ranges.hull(x, y), whole=True)
    for mask, x, y in product("RP", repeat=3):
        if "R" in mask + x + y:
            yield kernel("where", mask + x + y, where)
    for mask, x in ("PR", "RP", "RR"):
        yield kernel("where", mask + x, where)
