"""Rows of the op table that every party computes on its share alone, exactly and without a message.

Each function maps tensors to tensors and is linear over the integers, so it acts on a share as it acts on the value. The
parties run it on shares, the session on ``meta`` tensors to learn the result's shape and dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor

_a: Final = torch.ops.aten


def _split(x: Tensor, size: int | Sequence[int], dim: int = 0) -> Any:
    return _a.split.Tensor(x, size, dim) if isinstance(size, int) else _a.split_with_sizes.default(x, size, dim)


def _select_backward(grad: Tensor, size: Sequence[int], dim: int, index: int) -> Tensor:
    out = grad.new_zeros(size)
    out.select(dim, index).copy_(grad)
    return out


def _slice_backward(grad: Tensor, size: Sequence[int], dim: int, start: int, end: int, step: int) -> Tensor:
    out = grad.new_zeros(size)
    _a.slice.Tensor(out, dim, start, end, step).copy_(grad)
    return out


LOCAL: Final[Mapping[str, Callable[..., Any]]] = MappingProxyType(
    {
        "view": lambda x, size: x.reshape(size),
        "t": lambda x: x.t(),
        "transpose": lambda x, a, b: x.transpose(a, b),
        "permute": lambda x, axes: x.permute(axes),
        "unsqueeze": lambda x, dim: x.unsqueeze(dim),
        "squeeze": lambda x, *dim: x.squeeze(*dim),
        "expand": lambda x, size: x.expand(size),
        "select": lambda x, dim, index: x.select(dim, index),
        "slice": lambda x, dim=0, start=None, end=None, step=1: _a.slice.Tensor(x, dim, start, end, step),
        "split": _split,
        "unbind": lambda x, dim=0: x.unbind(dim),
        "clone": lambda x: x.clone(),
        "cat": lambda xs, dim=0: torch.cat(xs, dim),
        "stack": lambda xs, dim=0: torch.stack(xs, dim),
        "repeat": lambda x, times: x.repeat(times),
        "flip": lambda x, axes: x.flip(axes),
        "roll": lambda x, shifts, axes=(): x.roll(shifts, axes),
        "index": lambda x, where: _a.index.Tensor(x, where),
        "index_select": lambda x, dim, where: x.index_select(dim, where),
        "gather": lambda x, dim, where: x.gather(dim, where),
        "tril": lambda x, diagonal=0: x.tril(diagonal),
        "triu": lambda x, diagonal=0: x.triu(diagonal),
        "neg": lambda x: -x,
        "sum": lambda x, *dim: torch.sum(x, *dim),
        "cumsum": lambda x, dim: x.cumsum(dim),
        "select_backward": _select_backward,
        "slice_backward": _slice_backward,
    }
)
