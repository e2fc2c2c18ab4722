"""Nearest rows of a large table, in blocks."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

_BLOCK: Final = 256


def nearest(points: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """The row of ``table`` (m, width) nearest to each point (n, width) in the Euclidean norm.

    Returns:
        Its index, int64 (n,), and the squared distance, float32 (n,), accurate to 1e-6 of the squared norms.
    """
    squares = table.square().sum(1)
    found = [(squares - 2 * block @ table.T).min(1) for block in torch.split(points, _BLOCK)]
    indices = torch.cat([one.indices for one in found]) if found else torch.empty(0, dtype=torch.int64)
    distances = torch.cat([one.values for one in found]) if found else torch.empty(0)
    return indices, (distances + points.square().sum(1)).clamp_min(0)


def nearest_absolute(points: Tensor, table: Tensor, shortlist: int = 32) -> Tensor:
    """The row of ``table`` nearest to each point in the L1 norm, among its ``shortlist`` nearest in the Euclidean norm: int64 (n,)."""
    squares = table.square().sum(1)
    found = []
    for block in torch.split(points, _BLOCK):
        candidates = (squares - 2 * block @ table.T).topk(min(shortlist, len(table)), largest=False).indices
        distances = (table[candidates] - block[:, None]).abs().sum(2)
        found.append(candidates.gather(1, distances.argmin(1, keepdim=True))[:, 0])
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int64)
