"""Frequencies of ids and of pairs of neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Ranking:
    """Ids by falling frequency; equal ones by id.

    Attributes:
        counts: int64 (size,), by id.
        order: int64 (size,): the id at each rank.
        rank: int64 (size,): its inverse.
    """

    counts: Tensor
    order: Tensor
    rank: Tensor

    @classmethod
    def of(cls, ids: Tensor, size: int) -> Ranking:
        """Of a stream."""
        counts = torch.bincount(ids, minlength=size)
        order = torch.argsort(counts, descending=True, stable=True)
        return cls(counts, order, torch.argsort(order))

    @property
    def types(self) -> int:
        """How many ids occur."""
        return int((self.counts > 0).sum())


def pairs(ids: Tensor, ranking: Ranking, common: int) -> Tensor:
    """How often each of the ``common`` most frequent ids is followed by each: float32 (common + 1, common + 1), the rest in the last."""
    ranks = ranking.rank[ids].clamp(max=common)
    side = common + 1
    return torch.bincount(ranks[:-1] * side + ranks[1:], minlength=side * side).view(side, side).float()


def conditional(counts: Tensor, weight: float = 5.0) -> Tensor:
    """log p(next | this) of pair counts (n, n), interpolated with the unigrams (Dirichlet prior of ``weight`` observations)."""
    unigram = (counts.sum(0) + 0.5) / (counts.sum() + 0.5 * len(counts))
    return ((counts + weight * unigram) / (counts.sum(1, keepdim=True) + weight)).log()
