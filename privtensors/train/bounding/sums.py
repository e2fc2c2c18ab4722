"""The running sum of clipped gradients between two steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor, nn

from privtensors.errors import BoundingError

_BLOCK: Final = 512


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Sums and norms of half-precision gradients are kept in float32: rounding must not move a norm past the bound."""
    return torch.promote_types(dtype, torch.float32)


def row_squares(rows: Tensor) -> Tensor:
    """Squared L2 norms of ``rows`` (B, …), float64, (B,).

    By blocks: torch adds up the squares of a float32 row one after another, and over millions of them the norm comes out too
    small by up to 1e-3 of itself, which would let as much more than C through. Here it is right to 2.5e-7 of itself, and
    nothing is copied.
    """
    flat = rows.flatten(1)
    whole = flat.shape[1] // _BLOCK * _BLOCK
    inner = flat[:, :whole].view(len(flat), whole // _BLOCK, _BLOCK)
    blocks = torch.linalg.vector_norm(inner, dim=2, dtype=sum_dtype(flat.dtype))
    total: Tensor = blocks.double().square().sum(1) + flat[:, whole:].double().square().sum(1)
    return total


class RunningSum:
    """One tensor per parameter, made when first added to. Sums are float32 or wider, in the parameter's shape, on its device."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = dict(parameters)
        self._sums: dict[nn.Parameter, Tensor] = {}
        self._torn = False

    def get(self, parameter: nn.Parameter) -> Tensor | None:
        """The sum so far, to be added to in place, or None where there is none yet."""
        return self._sums.get(parameter)

    def add(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Add a tensor of the parameter's shape; it is kept if it is the first, so it must be the caller's own."""
        held = self._sums.get(parameter)
        if held is None:
            self._sums[parameter] = value.to(sum_dtype(parameter.dtype))
        else:
            held.add_(value)

    def add_product(self, parameter: nn.Parameter, left: Tensor, right: Tensor) -> None:
        """Add the product of two matrices, ``(p, n)`` and ``(n, d)``, where ``p · d`` is the parameter's size."""
        held = self._sums.get(parameter)
        if held is None:
            self._sums[parameter] = torch.mm(left, right).view(parameter.shape)
        else:
            held.view(left.shape[0], right.shape[1]).addmm_(left, right)

    @contextmanager
    def adding(self) -> Iterator[None]:
        """Around additions that belong together: if they are cut short, this step's sum is lost rather than taken in part."""
        try:
            yield
        except BaseException:
            self._torn = True
            self._sums = {}
            raise

    def take(self) -> dict[str, Tensor]:
        """The sums by name, zeros where nothing was added; starts anew.

        Raises:
            BoundingError: An addition was cut short since the last call; the next step starts from zero.
        """
        sums, self._sums = self._sums, {}
        if self._torn:
            self._torn = False
            raise BoundingError(
                "an interrupt cut a clipped sum short, and what had been added is lost", where="take", fix="Repeat the whole step."
            )
        return {
            name: sums[p] if p in sums else torch.zeros_like(p, dtype=sum_dtype(p.dtype), requires_grad=False)
            for name, p in self._parameters.items()
        }
