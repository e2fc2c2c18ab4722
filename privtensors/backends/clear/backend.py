"""The reference backend: the value itself behind the SafeTensor interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from privtensors.backends.clear.kernels import KERNELS
from privtensors.backends.clear.payload import ClearPayload
from privtensors.core.backend import Payload, TechniqueSpec
from privtensors.core.kernel import KernelTable
from privtensors.core.meter import Meter
from privtensors.errors import FileFormatError, InvalidInput


class ClearBackend:
    """Holds plain tensors; the reference every other backend is tested against.

    Guarantee class: none. It closes the same ways out as every backend, so code that runs here runs elsewhere.
    """

    name: ClassVar[str] = "clear"
    guarantee: ClassVar[str] = "none"
    assumption: ClassVar[str] = "nothing is hidden from whoever runs this process"
    kernels: ClassVar[KernelTable] = KERNELS

    def __init__(self, technique: TechniqueSpec, meter: Meter) -> None:
        self.technique = technique
        self.meter = meter
        self.simulated = True

    def protect(self, x: Tensor, *, owner: str) -> ClearPayload:
        """Keep a copy of ``x``: later writes to it do not reach the SafeTensor. Any dense real, integer or bool dtype."""
        return ClearPayload(x.detach().clone())

    def reveal(self, payload: Payload, *, to: str) -> Tensor:
        """A copy of the value, contiguous."""
        return _own(payload).value.clone(memory_format=torch.contiguous_format)

    def export(self, payload: Payload) -> Mapping[str, tuple[Mapping[str, Tensor], Mapping[str, str]]]:
        """One party, ``server``, stores the plain value."""
        return {"server": ({"value": _own(payload).value}, {})}

    def restore(self, parts: Mapping[str, tuple[Mapping[str, Tensor], Mapping[str, str]]]) -> ClearPayload:
        """Inverse of :meth:`export`.

        Raises:
            FileFormatError: Not exactly one tensor ``value`` of party ``server``.
        """
        if set(parts) != {"server"} or set(parts["server"][0]) != {"value"}:
            raise FileFormatError("expected one tensor 'value' of party 'server'", where="backend 'clear'", fix="save the tensor again")
        return ClearPayload(parts["server"][0]["value"])


def _own(payload: Payload) -> ClearPayload:
    if not isinstance(payload, ClearPayload):
        raise InvalidInput(f"payload of kind {payload.kind!r} is not of this backend", where="backend 'clear'", fix="convert it first")
    return payload
