"""A kernel: one operation of one backend for certain kinds of operands, with its declared cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from privtensors.errors import RegistryError


@dataclass(frozen=True, slots=True)
class Cost:
    """What a call costs one computing party online, for operands that were never opened before.

    Attributes:
        rounds: Sequential exchanges.
        bytes: Bytes sent per party.
    """

    rounds: int = 0
    bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        """Cost of one call after the other."""
        return Cost(self.rounds + other.rounds, self.bytes + other.bytes)


FREE = Cost()


def free(*_args: Any, **_kwargs: Any) -> Cost:
    """Cost function of a local kernel: no round, no byte."""
    return FREE


def exact(*_args: Any, **_kwargs: Any) -> float:
    """Error function of a kernel that adds no error of its own."""
    return 0.0


@dataclass(frozen=True, slots=True)
class Kernel:
    """One operation of one backend.

    Attributes:
        op: Name of the row in the op table.
        kinds: Kinds of the tensor operands in order, ``P`` for a public tensor; a list of tensors counts as one operand
            whose letters are sorted and unique.
        run: ``run(backend, *args, **kwargs)``: the ATen arguments with each SafeTensor replaced by its payload; returns
            a payload, a tuple of payloads, or None where ATen returns an undefined tensor.
        cost: ``cost(backend, *args, **kwargs)``: declared :class:`Cost` for the same arguments.
        error: ``error(backend, *args, **kwargs)``: declared largest absolute error of the result against float32, for
            operands inside the kernel's documented range.
    """

    op: str
    kinds: str
    run: Callable[..., Any]
    cost: Callable[..., Cost] = free
    error: Callable[..., float] = exact


KernelTable = Mapping[tuple[str, str], Kernel]


def kernel_table(kernels: Iterable[Kernel]) -> KernelTable:
    """Freeze ``kernels`` into a closed table.

    Raises:
        RegistryError: Two kernels claim the same operation and kinds.
    """
    table: dict[tuple[str, str], Kernel] = {}
    for kernel in kernels:
        key = (kernel.op, kernel.kinds)
        if key in table:
            raise RegistryError(f"two kernels for {kernel.op}({kernel.kinds})", where="kernel_table", fix="keep one of them")
        table[key] = kernel
    return MappingProxyType(table)
