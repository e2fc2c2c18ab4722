"""What the backend holds in this process: a number under which both parties keep their share, and public geometry."""

from __future__ import annotations

from collections import deque

import torch


class Held:
    """A value that the parties hold: ``number`` names its shares there. It holds no share and no value.

    When the last reference goes, ``number`` is put on ``forgotten``, and the parties drop their shares with the next request.
    """

    __slots__ = ("__weakref__", "_forgotten", "dtype", "number", "shape")
    kind = "Y"

    def __init__(self, number: int, shape: tuple[int, ...], dtype: torch.dtype, forgotten: deque[int]) -> None:
        self.number, self.shape, self.dtype, self._forgotten = number, shape, dtype, forgotten

    def __del__(self) -> None:
        self._forgotten.append(self.number)

    def __repr__(self) -> str:
        return f"Held(shape={self.shape}, dtype={self.dtype})"
