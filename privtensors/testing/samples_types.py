"""What a sample is, and the tensors samples are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor

EMPTY: Final[Mapping[str, Any]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One call of one ATen overload on plain tensors.

    Attributes:
        overload: The ATen overload; run on plain tensors it gives the reference.
        name: Short name, unique in its row.
        args: Positional arguments; tensors among them may be protected, one level of lists included.
        kwargs: Keyword arguments, always public.
        public: Positions that stay public, e.g. an index.
        mixes: Sets of positions to protect; empty for all of them and each alone (every non-empty set up to three operands).
    """

    overload: Any
    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=lambda: EMPTY)
    public: frozenset[int] = frozenset()
    mixes: tuple[tuple[int, ...], ...] = ()

    def operands(self) -> tuple[int, ...]:
        """Positions of the tensor operands, lists of tensors included."""
        return tuple(i for i, a in enumerate(self.args) if isinstance(a, Tensor) or _is_tensor_list(a))

    def protections(self) -> tuple[tuple[int, ...], ...]:
        """Sets of operand positions to protect, largest first; never empty."""
        if self.mixes:
            return self.mixes
        free = [i for i in self.operands() if i not in self.public]
        sizes = range(len(free), 0, -1) if len(free) <= 3 else (len(free), 1)
        return tuple(c for n in sizes for c in combinations(free, n))


def _is_tensor_list(a: object) -> bool:
    return isinstance(a, list) and any(isinstance(b, Tensor) for b in a)


def sample(
    overload: Any, name: str, *args: Any, public: tuple[int, ...] = (), mixes: tuple[tuple[int, ...], ...] = (), kw: Any = None
) -> Sample:
    """A :class:`Sample`, written shortly."""
    return Sample(overload, name, args, MappingProxyType(kw or {}), frozenset(public), mixes)


def rand(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Normal float32 values, the same on every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1000 * seed + len(shape))) * scale


def ramp(low: float, high: float, *shape: int) -> Tensor:
    """Float32 values from ``low`` to ``high`` in equal steps, in the given shape."""
    steps = 1
    for n in shape:
        steps *= n
    return torch.linspace(low, high, steps).view(shape)
