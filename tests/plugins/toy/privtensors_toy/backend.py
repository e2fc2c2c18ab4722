"""The toy backend: what is computed on is ``value + mask``; the backend keeps the masks aside."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from privtensors.core.backend import Payload, TechniqueSpec
from privtensors.core.kernel import Cost, Kernel, KernelTable, kernel_table
from privtensors.core.meter import Meter
from privtensors.errors import FileFormatError, InvalidInput


class ToyPayload:
    """``value + mask`` in float64, standing for a float32 tensor."""

    __slots__ = ("__weakref__", "masked")
    kind = "T"
    dtype = torch.float32

    def __init__(self, masked: Tensor) -> None:
        self.masked = masked

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.masked.shape)


def _linear(op: str, kinds: str, f: Callable[..., Tensor]) -> Kernel:
    """A kernel for a map that is linear in its one protected operand: it acts on value + mask and on the mask alike."""

    def run(backend: ToyBackend, *args: Any) -> ToyPayload:
        held = next(a for a in args if isinstance(a, ToyPayload))
        return backend.hold(f(*(a.masked if a is held else a for a in args)), f(*(backend.masks[held] if a is held else a for a in args)))

    return Kernel(op, kinds, run)


def _wide(a: Any) -> Tensor:
    return torch.as_tensor(a, dtype=torch.float64)


def _product(x: Any, y: Any) -> Tensor:
    return _wide(x) * _wide(y)  # without _wide, torch multiplies a float64 scalar by a float32 matrix in float32


def _clone(backend: ToyBackend, x: ToyPayload, *, memory_format: torch.memory_format | None = None) -> ToyPayload:
    return backend.hold(x.masked.clone(), backend.masks[x].clone())


def _add(backend: ToyBackend, x: Any, y: Any, *, alpha: float = 1) -> ToyPayload:
    masked = [a.masked if isinstance(a, ToyPayload) else _wide(a) for a in (x, y)]
    masks = [backend.masks[a] if isinstance(a, ToyPayload) else torch.zeros_like(_wide(a)) for a in (x, y)]
    return backend.hold(masked[0] + alpha * masked[1], masks[0] + alpha * masks[1])


def _mul(backend: ToyBackend, x: ToyPayload, y: ToyPayload) -> ToyPayload:
    """Two protected factors: the product gets a new mask, which costs a round."""
    out = backend.fresh((x.masked - backend.masks[x]) * (y.masked - backend.masks[y]))
    backend.meter.rounds += 1
    backend.meter.bytes_sent += 8 * out.masked.numel()
    return out


def _mul_cost(_backend: ToyBackend, x: ToyPayload, y: ToyPayload) -> Cost:
    shape = torch.broadcast_shapes(x.shape, y.shape)
    return Cost(1, 8 * shape.numel())


def _error(_backend: ToyBackend, *_args: Any, **_kwargs: Any) -> float:
    return 1e-5


KERNELS = kernel_table(
    [
        _linear("view", "T", lambda x, size: x.reshape(size)),
        _linear("t", "T", lambda x: x.t()),
        _linear("transpose", "T", lambda x, a, b: x.transpose(a, b)),
        _linear("permute", "T", lambda x, axes: x.permute(axes)),
        _linear("select", "T", lambda x, dim, i: x.select(dim, i)),
        _linear("slice", "T", lambda x, dim=0, start=None, end=None, step=1: torch.ops.aten.slice.Tensor(x, dim, start, end, step)),
        _linear("unsqueeze", "T", lambda x, dim: x.unsqueeze(dim)),
        Kernel("clone", "T", _clone),
        _linear("neg", "T", lambda x: -x),
        _linear("sum", "T", lambda x, *dim: x.sum(*dim)),
        _linear("mm", "TP", lambda x, w: x @ w.double()),
        _linear("mul", "T", _product),
        _linear("mul", "TP", _product),
        _linear("mul", "PT", _product),
        Kernel("mul", "TT", _mul, cost=_mul_cost, error=_error),
        *(Kernel("add", kinds, _add, error=_error) for kinds in ("T", "TT", "TP", "PT")),
    ]
)


class ToyBackend:
    """Guarantee class: none."""

    name: ClassVar[str] = "toy"
    guarantee: ClassVar[str] = "none"
    assumption: ClassVar[str] = "nothing is protected: the process that holds the masked value holds the mask"
    kernels: ClassVar[KernelTable] = KERNELS

    def __init__(self, technique: TechniqueSpec, meter: Meter) -> None:
        self.technique, self.meter, self.simulated = technique, meter, True
        self.masks: WeakKeyDictionary[ToyPayload, Tensor] = WeakKeyDictionary()

    def hold(self, masked: Tensor, mask: Tensor) -> ToyPayload:
        payload = ToyPayload(masked)
        self.masks[payload] = mask
        return payload

    def fresh(self, value: Tensor) -> ToyPayload:
        mask = torch.tensor([secrets.randbits(30) for _ in range(value.numel())], dtype=torch.float64).view(value.shape) / 2**20
        return self.hold(value.double() + mask, mask)

    def protect(self, x: Tensor, *, owner: str) -> ToyPayload:
        if x.dtype is not torch.float32:
            raise InvalidInput(f"dtype {x.dtype} is not supported", where="backend 'toy'", fix="call .float() first")
        return self.fresh(x)

    def reveal(self, payload: Any, *, to: str) -> Tensor:
        return (payload.masked - self.masks[payload]).float().contiguous()

    def export(self, payload: Any) -> Mapping[str, tuple[Mapping[str, Tensor], Mapping[str, str]]]:
        return {"server": ({"masked": payload.masked}, {}), "keeper": ({"mask": self.masks[payload]}, {})}

    def restore(self, parts: Mapping[str, tuple[Mapping[str, Tensor], Mapping[str, str]]]) -> Payload:
        try:
            return self.hold(parts["server"][0]["masked"], parts["keeper"][0]["mask"])
        except KeyError as missing:
            raise FileFormatError(f"part {missing} is missing", where="backend 'toy'", fix="save the tensor again") from None
