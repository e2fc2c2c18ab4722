"""Payloads that are computed only if somebody uses them: what a forward operation returns for its backward pass alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from privtensors.backends.mpc.shares import Shares


class Deferred(Shares):
    """Shares of a value that inference never asks for, such as layer normalisation's mean and 1/std.

    Args:
        make: Computes the shares; called at most once.
        shape: Shape of the plain tensor.
        dtype: Its dtype.
    """

    __slots__ = ("_found", "_geometry", "_make")

    def __init__(self, make: Callable[[], Shares], shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._make, self._geometry, self.dtype = make, shape, dtype
        self._found: Shares | None = None
        self.origin = None
        self._wire = None
        self._lifted = None
        self.table = None
        self.known = None

    def found(self) -> Shares:
        """The shares, computed now if they were not."""
        if self._found is None:
            self._found = self._make()
        return self._found

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the plain tensor."""
        return self._geometry

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        """The shares' words."""
        return self.found().data

    @property
    def frac(self) -> int:  # type: ignore[override]
        """Fractional bits."""
        return self.found().frac

    @property
    def ring(self) -> int:  # type: ignore[override]
        """Valid low bits."""
        return self.found().ring

    def __repr__(self) -> str:
        return f"Deferred(shape={self._geometry})"
