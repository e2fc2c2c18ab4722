"""Torch's type promotion for shares: integers and bools become float32 before they meet a float."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor

from privtensors.backends.mpc.kernels.shape import to_copy
from privtensors.backends.mpc.shares import Shares
from privtensors.core.kernel import Kernel
from privtensors.errors import UnsupportedOp

# What torch makes floating point of integers: always, or when another operand is.
_ALWAYS_FLOAT: Final = frozenset({"tanh", "sigmoid", "silu", "gelu", "erf", "exp", "rsqrt", "sqrt", "reciprocal", "div"})
_MIXED: Final = frozenset(
    {"add", "sub", "rsub", "mul", "addcmul", "clamp", "maximum", "minimum", "where", "masked_fill", "cat", "stack", "pow"}
    | {"gt", "ge", "lt", "le"}
)


def _flat(args: Iterable[Any]) -> Iterator[Any]:
    for a in args:
        if isinstance(a, list | tuple):
            yield from a
        else:
            yield a


def _floating(x: Any) -> bool:
    return isinstance(x, float) or (isinstance(x, Shares | Tensor) and x.dtype.is_floating_point)


def _boolean(x: Any) -> bool:
    return isinstance(x, bool) or (isinstance(x, Shares | Tensor) and x.dtype == torch.bool)


def promoting(kernel: Kernel) -> Kernel:
    """``kernel`` with torch's type promotion: integer and bool shares become float32 before they meet a float."""
    if kernel.op not in _ALWAYS_FLOAT and kernel.op not in _MIXED:
        return kernel
    run, always = kernel.run, kernel.op in _ALWAYS_FLOAT

    def promote(backend: Any, x: Any) -> Any:
        if isinstance(x, list | tuple):
            return type(x)(promote(backend, v) for v in x)
        return to_copy(backend, x, torch.float32) if isinstance(x, Shares) and not x.dtype.is_floating_point else x

    def promoted(backend: Any, *args: Any, **kwargs: Any) -> Any:
        operands = list(_flat(args))
        if kernel.op in ("add", "sub", "rsub") and all(_boolean(a) for a in operands):
            raise UnsupportedOp(f"{kernel.op} of bools", where="backend 'mpc'", fix="use torch.where, or x.float() first")
        if any(isinstance(a, Shares) and not a.dtype.is_floating_point for a in operands) and (always or any(map(_floating, operands))):
            # The condition of a choice stays what it is.
            kept = {"where": 0, "masked_fill": 1}.get(kernel.op)
            args = tuple(a if i == kept else promote(backend, a) for i, a in enumerate(args))
        return run(backend, *args, **kwargs)

    return replace(kernel, run=promoted)
