"""What the reference backend holds: the plain tensor, with no text form that shows it."""

from __future__ import annotations

import torch
from torch import Tensor


class ClearPayload:
    """A plain tensor of kind ``C``. Any shape and strides; any dense real, integer or bool dtype."""

    __slots__ = ("dtype", "shape", "value")
    kind = "C"

    def __init__(self, value: Tensor) -> None:
        self.value = value
        self.shape: tuple[int, ...] = value.shape
        self.dtype: torch.dtype = value.dtype

    def __repr__(self) -> str:
        return f"ClearPayload(shape={tuple(self.shape)}, dtype={self.dtype})"
