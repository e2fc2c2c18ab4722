"""A device that only tests have: its tensors live on the CPU, but torch takes them for another device's.

It refuses what CUDA refuses: operands on two devices, integer matrix products and convolutions, numpy views. So the code
paths for accelerators are exercised where there is none. It says nothing about speed, or about one device's own kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "emulated"
_PRODUCTS = ("mm", "bmm", "mv", "dot", "addmm", "baddbmm", "addmv", "addbmm", "vdot", "convolution", "_int_mm")
_a = torch.ops.aten


class Emulated(Tensor):
    """A tensor of the emulated device; ``raw`` holds its elements."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> Emulated:
        assert type(raw) is Tensor
        size, strides, offset = raw.size(), raw.stride(), raw.storage_offset()
        made: Emulated = Tensor._make_wrapper_subclass(
            cls, size, strides=strides, storage_offset=offset, dtype=raw.dtype, device=f"{NAME}:0"
        )
        made.raw = raw
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _run(func, *args, **(kwargs or {}))

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError(f"can't convert {NAME} device type tensor to numpy")

    def tolist(self) -> Any:
        return self.raw.tolist()


def _unwrapped(value: Any) -> Any:
    if isinstance(value, Emulated):
        return value.raw
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == NAME else value


def _run(func: Any, *args: Any, **kwargs: Any) -> Any:
    found = func.decompose(*args, **kwargs)  # an operation made of others arrives whole inside another tensor's dispatch
    if found is not NotImplemented:
        return found
    name = func._schema.name.removeprefix("aten::")
    tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    here = [t for t in tensors if isinstance(t, Emulated)]
    if name in ("_to_copy", "copy_", "_copy_from"):
        return _copied(func, name, args, kwargs)
    if here and any(t.dim() and not isinstance(t, Emulated) for t in tensors):
        raise RuntimeError(f"Expected all tensors to be on the same device, but {func} got {NAME} and cpu")
    if name in _PRODUCTS and any(not t.is_floating_point() for t in here):
        raise RuntimeError(f'"{name}" not implemented for {here[0].dtype} on {NAME}')
    out = func(*pytree.tree_map(_unwrapped, args), **pytree.tree_map(_unwrapped, kwargs))
    if any(t.raw.shape != t.shape for t in here):
        raise NotImplementedError(f"{func} resized a tensor of the emulated device")
    written = {id(t.raw): t for t in here}

    def wrapped(value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, Emulated):
            return value
        return written[id(value)] if id(value) in written else Emulated(value)

    return pytree.tree_map(wrapped, out)


def _copied(func: Any, name: str, args: Any, kwargs: Any) -> Any:
    if name == "copy_":
        args[0].raw.copy_(_unwrapped(args[1])) if isinstance(args[0], Emulated) else args[0].copy_(_unwrapped(args[1]))
        return args[0]
    target = kwargs.get("device") or args[0].device
    out = _a._to_copy.default(_unwrapped(args[0]), **{**kwargs, "device": torch.device("cpu")})
    return Emulated(out) if torch.device(target).type == NAME else out


def register() -> list[torch.library.Library]:
    """Make torch know the device; keep what is returned."""
    _setup_privateuseone_for_python_backend(NAME)
    everything, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    everything.fallback(_run, "PrivateUse1")

    def empty_strided(size: Any, stride: Any, dtype: Any = None, **_ignored: Any) -> Tensor:
        return Emulated(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))

    def empty(size: Any, dtype: Any = None, **_ignored: Any) -> Tensor:
        return Emulated(torch.empty(size, dtype=dtype, device="cpu"))

    def copy(target: Any, source: Any, non_blocking: bool = False) -> Tensor:
        return _copied(None, "copy_", (target, source), {})

    def arange(*bounds: Any, **options: Any) -> Tensor:  # torch makes it by resizing an empty tensor, which a wrapper cannot follow
        return Emulated(torch.arange(*bounds, dtype=options.get("dtype"), device="cpu"))

    def eye(*sizes: int, dtype: Any = None, **_ignored: Any) -> Tensor:
        return Emulated(torch.eye(*sizes, dtype=dtype, device="cpu"))

    for overload in ("arange", "arange.start", "arange.start_step"):
        aten.impl(overload, arange, "PrivateUse1")
    for overload in ("eye", "eye.m"):
        aten.impl(overload, eye, "PrivateUse1")
    aten.impl("empty_strided", empty_strided, "PrivateUse1")
    aten.impl("empty.memory_format", empty, "PrivateUse1")
    aten.impl("copy_", copy, "PrivateUse1")
    return [everything, aten]
