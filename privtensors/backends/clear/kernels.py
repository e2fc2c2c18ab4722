"""Kernels of the reference backend: one per row of the op table and per mix of protected (C) and public (P) operands.

The reference of a row is its ATen overload, so the kernels are made from the table: the operands and their order are read
from the overload's schema, and every mix with at least one protected operand gets an entry. What differs is listed below:
rows whose overloads must be told apart, rows that need care, and operands that stay public.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor

from privtensors.backends.clear.payload import ClearPayload
from privtensors.core.kernel import Kernel, KernelTable, kernel_table
from privtensors.core.optable import OPS, Op
from privtensors.errors import InvalidInput, UnsupportedOp

_a: Final = torch.ops.aten

# A protected index would decide which memory is read (and a boolean one the result's shape): another protocol altogether.
PUBLIC_ONLY: Final[Mapping[str, frozenset[int]]] = MappingProxyType(
    {"index": frozenset({1}), "index_select": frozenset({1}), "gather": frozenset({1})}
)


def _copy(x: Tensor, src: Tensor, _non_blocking: bool = False) -> Tensor:
    return src.to(x.dtype).expand(x.shape).clone()


def _split(x: Tensor, size: int | Sequence[int], dim: int = 0) -> Any:
    return _a.split.Tensor(x, size, dim) if isinstance(size, int) else _a.split_with_sizes.default(x, size, dim)


def _clamp(x: Tensor, low: Any = None, high: Any = None) -> Any:
    return _a.clamp.default(x, low, high)


def _softmax(x: Tensor, dim: int, half_to_float: bool | None = None, *, dtype: torch.dtype | None = None) -> Any:
    if half_to_float is None:  # _safe_softmax: a row of -inf gives zeros
        return _a._safe_softmax.default(x, dim, dtype)
    return _a._softmax.default(x, dim, half_to_float)


def _batch_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, var: Tensor | None, *rest: Any) -> Any:
    if len(rest) == 2:
        return _a._native_batch_norm_legit_no_training.default(x, weight, bias, mean, var, *rest)
    if rest[0] and mean is not None:  # ATen would write statistics of protected values into the running ones
        raise UnsupportedOp(
            "batch normalisation in training mode", where="backend 'clear'", fix="call model.eval(), or use GroupNorm or LayerNorm"
        )
    return _a.native_batch_norm.default(x, weight, bias, mean, var, *rest)


def _to_copy(x: Tensor, *, dtype: torch.dtype | None = None, **_public: Any) -> Tensor:
    return x.to(dtype or x.dtype, copy=True)


def _bincount(x: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    if minlength < 1 or bool((x >= minlength).any()):  # the shape, which is public, would tell the largest id
        raise UnsupportedOp("more bins than asked for", where="bincount", fix="torch.bincount(x, minlength=K) with ids below K")
    return torch.bincount(x, weights, minlength)


# The wrapper shows contiguous strides, the value has its own: ``view`` must copy where they differ.
_SPECIAL: Final[Mapping[str, Callable[..., Any]]] = MappingProxyType(
    {
        "view": lambda x, size: x.reshape(size),
        "squeeze": lambda x, *dim: x.squeeze(*dim),
        "split": _split,
        "zero": lambda x: torch.zeros_like(x),
        "copy": _copy,
        "clamp": _clamp,
        "softmax": _softmax,
        "batch_norm": _batch_norm,
        "to_copy": _to_copy,
        "bincount": _bincount,
        "sum": lambda x, *dim, **dtype: torch.sum(x, *dim, **dtype),
        "mean": lambda x, *dim, **dtype: torch.mean(x, *dim, **dtype),
        "rsub": lambda x, other, alpha=1: torch.rsub(x, other, alpha=alpha),
        "where": lambda mask, x, y: torch.where(mask, x, y),
        "eq": lambda x, y: torch.eq(x, y),
        "gt": lambda x, y: torch.gt(x, y),
        "ge": lambda x, y: torch.ge(x, y),
        "lt": lambda x, y: torch.lt(x, y),
        "le": lambda x, y: torch.le(x, y),
    }
)


def _open(a: Any) -> Any:
    if type(a) is ClearPayload:
        return a.value
    if type(a) is list:
        return [b.value if type(b) is ClearPayload else b for b in a]
    return a


def _close(out: Any) -> Any:
    if isinstance(out, Tensor):
        return ClearPayload(out)
    if isinstance(out, (tuple, list)):
        return tuple(_close(o) for o in out)
    return out


def _runner(name: str, reference: Callable[..., Any]) -> Callable[..., Any]:
    def run(_backend: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            # Opened inside the call, so that a traceback that prints locals shows payloads, not values.
            return _close(reference(*map(_open, args), **kwargs))
        except UnsupportedOp:
            raise
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            message = str(error).split("\n", 1)[0]
        # Out here, so that the new error does not chain to one whose frames hold the opened values.
        raise InvalidInput(message, where=name, fix="check the operands' shapes and dtypes")

    return run


def operand_choices(overload: Any) -> Iterator[str]:
    """Kinds that each tensor operand of ``overload`` may have, in order: e.g. ``C,P`` for a tensor, empty if optional."""
    for argument in overload._schema.arguments:
        text = str(argument.type)
        if argument.kwarg_only:
            continue
        if text == "Tensor":
            yield "C,P"
        elif text == "Optional[Tensor]":
            yield ",C,P"
        elif text.startswith("List["):
            yield "C,P,CP" if "Tensor" in text else ""


def _kinds(op: Op) -> set[str]:
    kinds: set[str] = set()
    for overload in (*op.overloads, *op.inplace):
        choices = [c.split(",") for c in operand_choices(overload) if c]
        for position in PUBLIC_ONLY.get(op.name, ()):
            choices[position] = ["P"]
        if overload in op.inplace and overload not in op.overloads:
            choices[0] = ["C"]
        kinds.update("".join(mix) for mix in product(*choices))
    return {k for k in kinds if "C" in k}


def _kernels() -> Iterator[Kernel]:
    for op in OPS:
        if op.alias:
            continue
        reference = _SPECIAL.get(op.name) or op.overloads[0]
        run = _runner(op.name, reference)
        for kinds in sorted(_kinds(op)):
            yield Kernel(op.name, kinds, run)


KERNELS: Final[KernelTable] = kernel_table(_kernels())
