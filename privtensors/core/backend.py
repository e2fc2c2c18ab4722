"""What a backend and its payloads must offer. Core imports no backend; backends are found by entry point."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from privtensors.core.kernel import KernelTable
from privtensors.core.meter import Meter
from privtensors.core.recorder import Disclosure, Recorder


@runtime_checkable
class Payload(Protocol):
    """A protected value as its backend holds it. Geometry is public; nothing else may be read from it by core."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def kind(self) -> str: ...


@runtime_checkable
class Releasing(Protocol):
    """The further part of a backend whose values leave with noise only. ``reveal`` on it requires ``release=``."""

    def release(self, payload: Payload, mechanism: object, *, disclosure: Disclosure, recorder: Recorder) -> Tensor:
        """Charge the release, record ``disclosure``, and return the noised value; whatever fails first, nothing leaves."""


@runtime_checkable
class TechniqueSpec(Protocol):
    """The part of a technique that core reads: its name and the backend that serves it."""

    @property
    def name(self) -> str: ...

    @property
    def backend(self) -> str | None: ...


class Backend(Protocol):
    """Holds protected values and has kernels for operations on them.

    A backend is constructed as ``BackendClass(technique, meter)`` once per session and technique.

    Attributes:
        name: Name under which it is registered.
        guarantee: Guarantee class, e.g. ``"computational"``; ``"none"`` for the reference backend.
        assumption: One sentence: what must hold for the guarantee.
        simulated: True when one process holds every party's view.
        kernels: The closed kernel table.

    One that can compute on another device than the CPU says so by a class attribute ``accelerated = True``, takes
    ``device=`` at construction and keeps it as ``device`` (None for the CPU). Its kernels run under ``with device:``, so
    that what they make is there, with their public operands moved there.
    """

    name: ClassVar[str]
    guarantee: ClassVar[str]
    assumption: ClassVar[str]
    kernels: ClassVar[KernelTable]
    simulated: bool
    meter: Meter

    def protect(self, x: Tensor, *, owner: str) -> Payload:
        """Take a plain tensor under protection; raises InvalidInput or OutOfRange before anything is stored."""

    def reveal(self, payload: Payload, *, to: str) -> Tensor:
        """Return the plain value to party ``to``: the only way out."""

    def export(self, payload: Payload) -> Mapping[str, tuple[Mapping[str, Tensor], Mapping[str, str]]]:
        """Per party: the tensors and public text fields that party would store. Used by ``save``."""

    def restore(self, parts: Mapping[str, tuple[Mapping[str, Tensor], Mapping[str, str]]]) -> Payload:
        """Inverse of :meth:`export`; raises FileFormatError on anything malformed."""


class Bridge(Protocol):
    """Converts a payload of one backend into a payload of another, at a declared cost."""

    source: str
    target: str

    def convert(self, payload: Payload, source: Any, target: Any, *, owner: str) -> Payload:
        """Convert ``payload`` held by backend ``source`` into one held by backend ``target``."""
