"""Kernels that move elements: views, structure, selections by public conditions. Local: no round, no byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from privtensors.backends.mpc.protocols.arithmetic import lift, rescale
from privtensors.backends.mpc.runtime import Host, parallel
from privtensors.backends.mpc.shares import WORD, Shares, broadcast_shape
from privtensors.core.kernel import Kernel
from privtensors.errors import InvalidInput

_ROOM: Final = 20  # integer bits that any sum keeps free: inputs have 18


def _dim(dim: int, ndim: int, lead: int) -> int:
    """Position of a plain tensor's dimension when ``lead`` axes come first."""
    return (dim % ndim if ndim else 0) + lead


def view(backend: Host, x: Shares, size: Sequence[int]) -> Shares:
    """view and _unsafe_view."""
    total = math.prod(x.shape)
    known = math.prod(n for n in size if n != -1)
    target = tuple(n if n != -1 else total // max(known, 1) for n in size)
    return x.view(lambda t, lead: t.reshape(*t.shape[:lead], *target), whole=True)


def t(backend: Host, x: Shares) -> Shares:
    """Matrix transpose; a vector stays."""
    return x.view(lambda u, lead: u.transpose(-1, -2) if u.dim() - lead == 2 else u, whole=True)


def transpose(backend: Host, x: Shares, dim0: int, dim1: int) -> Shares:
    """Swap two dimensions."""
    n = len(x.shape)
    return x.view(lambda u, lead: u.transpose(_dim(dim0, n, lead), _dim(dim1, n, lead)), whole=True)


def permute(backend: Host, x: Shares, dims: Sequence[int]) -> Shares:
    """Reorder dimensions."""
    n = len(x.shape)
    return x.view(lambda u, lead: u.permute(*range(lead), *(_dim(d, n, lead) for d in dims)), whole=True)


def unsqueeze(backend: Host, x: Shares, dim: int) -> Shares:
    """Insert a dimension of size one."""
    n = len(x.shape) + 1
    return x.view(lambda u, lead: u.unsqueeze(_dim(dim, n, lead)), whole=True)


def squeeze(backend: Host, x: Shares, dim: int | Sequence[int] | None = None) -> Shares:
    """Drop dimensions of size one."""
    n = len(x.shape)
    dims = range(n) if dim is None else [dim] if isinstance(dim, int) else dim
    drop = {d % n for d in dims if n and x.shape[d % n] == 1}
    shape = tuple(size for i, size in enumerate(x.shape) if i not in drop)
    return x.view(lambda u, lead: u.reshape(*u.shape[:lead], *shape), whole=True)


def expand(backend: Host, x: Shares, size: Sequence[int], implicit: bool = False) -> Shares:
    """Broadcast."""
    shape = x.shape
    new = len(size) - len(shape)
    target = tuple(shape[i - new] if n == -1 else n for i, n in enumerate(size))
    # Not "whole" only when something is dropped; an expansion opens its smaller base.
    return x.view(lambda u, lead: u.reshape(*u.shape[:lead], *[1] * new, *u.shape[lead:]).expand(*u.shape[:lead], *target), whole=True)


def select(backend: Host, x: Shares, dim: int, index: int) -> Shares:
    """One slice."""
    n = len(x.shape)
    return x.view(lambda u, lead: u.select(_dim(dim, n, lead), index), whole=False)


def slice_(backend: Host, x: Shares, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Shares:
    """A range of slices."""
    n, size = len(x.shape), x.shape[dim]
    begin, stop, stride = slice(start, end, step).indices(size)
    length = len(range(begin, stop, stride))

    def cut(u: Tensor, lead: int) -> Tensor:
        index = [slice(None)] * (_dim(dim, n, lead)) + [slice(begin, max(stop, begin), stride)]
        return u[tuple(index)]

    return x.view(cut, whole=length == size and stride == 1)


def split(backend: Host, x: Shares, sizes: int | Sequence[int], dim: int = 0) -> list[Shares]:
    """split and split_with_sizes."""
    total = x.shape[dim]
    if isinstance(sizes, int):
        sizes = [min(sizes, total - i) for i in range(0, total, max(sizes, 1))] or [0]
    out, start = [], 0
    for size in sizes:
        out.append(slice_(backend, x, dim, start, start + size))
        start += size
    return out


def unbind(backend: Host, x: Shares, dim: int = 0) -> list[Shares]:
    """Every slice along a dimension."""
    return [select(backend, x, dim, i) for i in range(x.shape[dim])]


def clone(backend: Host, x: Shares, memory_format: Any = None) -> Shares:
    """A copy that shares nothing."""
    return x.like(x.data.contiguous().clone() if memory_format is not torch.preserve_format else x.data.clone())


def to_copy(
    backend: Host,
    x: Shares,
    dtype: torch.dtype | None = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: Any = None,
    non_blocking: bool = False,
    memory_format: Any = None,
) -> Shares:
    """Another outward dtype; shares keep their scale. Float to integer would need rounding and is refused."""
    if dtype is not None and not dtype.is_floating_point and x.dtype.is_floating_point:
        raise InvalidInput(f"cannot cast shares from {x.dtype} to {dtype}", where="mpc to()", fix="compare, or reveal and round")
    if device is not None and torch.device(device).type != "cpu":
        raise InvalidInput(f"a SafeTensor is on the CPU, not {device}", where="mpc to()", fix="Session(device=…) places shares")
    out = x.like(x.data.clone())
    out.dtype = dtype or x.dtype
    if out.dtype.is_floating_point and x.frac == 0:
        out = rescale(out, backend.frac)
    return out


def _large(x: Shares | Tensor, bits: int) -> bool:
    """A public number of ``2^bits`` or more."""
    return isinstance(x, Tensor) and x.numel() > 0 and float(x.abs().max()) >= 2.0**bits


def aligned(backend: Host, tensors: Sequence[Shares | Tensor]) -> tuple[list[Tensor], int, int, torch.dtype]:
    """Words of shared and public tensors at one scale, without losing ring bits; public ones become party 0's share."""
    shared = [x for x in tensors if isinstance(x, Shares)]
    frac = max(x.frac for x in shared)
    differ = len({(x.frac, x.ring) for x in shared}) > 1
    # Raising the others to a very fine scale would push their values out of the ring.
    crowded = WORD - 2 - frac < _ROOM and (differ or any(_large(x, WORD - 6 - frac) for x in tensors))
    if crowded or (differ and any(x.ring < WORD for x in shared)):
        fine = WORD - 2 - _ROOM
        coarser = [x for x in shared if x.frac > fine or x.ring < WORD]
        fresh = iter(
            backend.run(parallel(*(lift(backend.runtime, x, fine if x.frac > fine else backend.frac) for x in coarser))) if coarser else ()
        )
        tensors = [next(fresh) if any(x is y for y in coarser) else x for x in tensors]
        shared = [x for x in tensors if isinstance(x, Shares)]
        frac = max(x.frac for x in shared)
    words = []
    for x in tensors:
        if isinstance(x, Shares):
            words.append(rescale(x, frac).data)
        else:
            words.append(backend.runtime.constant(backend.encode(x, frac)))
    return words, frac, min(rescale(x, frac).ring for x in shared), shared[0].dtype


def cat(backend: Host, tensors: Sequence[Shares | Tensor], dim: int = 0) -> Shares:
    """Concatenate; public parts are allowed."""
    kept = [x for x in tensors if isinstance(x, Shares) or x.dim() != 1 or x.numel()]
    words, frac, ring, dtype = aligned(backend, kept)
    return Shares(torch.cat(words, _dim(dim, words[0].dim() - 1, 1)), frac, ring, dtype)


def stack(backend: Host, tensors: Sequence[Shares | Tensor], dim: int = 0) -> Shares:
    """Stack along a new dimension."""
    words, frac, ring, dtype = aligned(backend, tensors)
    return Shares(torch.stack(words, _dim(dim, words[0].dim(), 1)), frac, ring, dtype)


def by_row(function: Callable[[Tensor], Tensor], data: Tensor) -> Tensor:
    """``function`` of each party's row."""
    if len(data):
        return torch.stack([function(row) for row in data])
    return function(torch.zeros((), dtype=data.dtype).expand(data.shape[1:])).unsqueeze(0)[:0]  # the dealer needs the shape


def per_party(function: Callable[..., Tensor]) -> Callable[..., Shares]:
    """A kernel that applies a rearrangement of elements to each share."""

    def run(backend: Host, x: Shares, *args: Any) -> Shares:
        return x.like(by_row(lambda row: function(row, *args), x.data))

    return run


def filled_like(number: int) -> Callable[..., Shares]:
    """zeros_like, ones_like: a public constant as shares."""

    def run(
        backend: Host,
        x: Shares,
        *,
        dtype: Any = None,
        layout: Any = None,
        device: Any = None,
        pin_memory: Any = None,
        memory_format: Any = None,
    ) -> Shares:
        data = backend.runtime.add_public(torch.zeros_like(x.data), number << backend.frac)
        return Shares(data, backend.frac, WORD, dtype or x.dtype)

    return run


def zero(backend: Host, x: Shares) -> Shares:
    """zero_: a fresh zero in place of the old value."""
    return Shares(torch.zeros_like(x.data), backend.frac, WORD, x.dtype)


def copy(backend: Host, x: Shares, source: Shares | Tensor, non_blocking: bool = False) -> Shares:
    """copy_: the payload of ``source``, broadcast to x's shape."""
    if isinstance(source, Shares):
        out = expand(backend, source, x.shape)
        return Shares(out.data.clone(), source.frac, source.ring, x.dtype)
    words, frac, ring, _ = aligned(backend, [x, source.expand(x.shape)])
    return Shares(words[1], frac, ring, x.dtype)


def masked_fill(backend: Host, x: Shares, mask: Tensor, value: float) -> Shares:
    """Public constant where a public mask is True. Infinite fills (attention masks) have no fixed-point form."""
    shape = broadcast_shape(x, mask)
    fill = backend.encode(torch.tensor(float(value)), x.frac)
    data = expand(backend, x, shape).data * (~mask)
    return x.like(backend.runtime.add_public(data, mask * fill))


def where(backend: Host, condition: Tensor, x: Shares | Tensor | float, y: Shares | Tensor | float) -> Shares:
    """Choice by a public condition."""
    operands = [v if isinstance(v, Shares | Tensor) else torch.tensor(float(v)) for v in (x, y)]
    shape = broadcast_shape(condition, *operands)
    words, frac, ring, dtype = aligned(backend, [expand(backend, v, shape) if isinstance(v, Shares) else v.expand(shape) for v in operands])
    return Shares(torch.where(condition, words[0], words[1]), frac, ring, dtype)


def constant(backend: Host, x: Tensor) -> Shares:
    """A public tensor as shares that party 0 holds whole: for protocols that want shared operands."""
    return Shares(backend.runtime.constant(backend.encode(x, backend.frac)), backend.frac, WORD, x.dtype)


def constant_pad_nd(backend: Host, x: Shares, pad: Sequence[int], value: float = 0) -> Shares:
    """Pad with a public constant."""
    data = torch.nn.functional.pad(x.data, list(pad))
    if value:
        inner = torch.nn.functional.pad(torch.zeros(x.shape, dtype=torch.bool), list(pad), value=True)
        backend.runtime.add_public(data, inner * backend.encode(torch.tensor(float(value)), x.frac))
    return x.like(data)


def represented(backend: Host, *_args: Any, **_kwargs: Any) -> float:
    """Declared error of kernels that only move or add values: two roundings to fixed point."""
    return float(2.0 ** (1 - backend.frac))


def _a(op: str, run: Callable[..., Any], *kinds: str) -> list[Kernel]:
    return [Kernel(op, kind, run, error=represented) for kind in (kinds or ("A",))]


_aten = torch.ops.aten

KERNELS: Final = (
    *_a("view", view),
    *_a("t", t),
    *_a("transpose", transpose),
    *_a("permute", permute),
    *_a("unsqueeze", unsqueeze),
    *_a("squeeze", squeeze),
    *_a("expand", expand),
    *_a("select", select),
    *_a("slice", slice_),
    *_a("split", split),
    *_a("unbind", unbind),
    *_a("clone", clone),
    *_a("to_copy", to_copy),
    *_a("cat", cat, "A", "AP"),
    *_a("stack", stack, "A", "AP"),
    *_a("repeat", per_party(_aten.repeat.default)),
    *_a("flip", per_party(lambda row, dims: _aten.flip.default(row, dims))),
    *_a("roll", per_party(_aten.roll.default)),
    *_a("index", per_party(_aten.index.Tensor), "AP"),
    *_a("index_select", per_party(_aten.index_select.default), "AP"),
    *_a("gather", per_party(_aten.gather.default), "AP"),
    *_a("tril", per_party(_aten.tril.default)),
    *_a("triu", per_party(_aten.triu.default)),
    *_a("constant_pad_nd", constant_pad_nd),
    *_a("masked_fill", masked_fill, "AP"),
    *_a("where", where, "PAA", "PAP", "PPA", "PA"),
    *_a("zeros_like", filled_like(0)),
    *_a("ones_like", filled_like(1)),
    *_a("zero", zero),
    *_a("copy", copy, "AA", "AP"),
)
