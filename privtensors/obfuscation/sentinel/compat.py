"""The published construction of SentinelLMs (Mishra, Li and Deo, AAAI 2024), number by number. It protects nothing.

Guarantee class: heuristic, and broken. The seed is one of 10,000, equal for anagrams. Reflecting and translating along the line of all
ones changes only the mean of a row, which LayerNorm removes, so neighbouring coordinates keep their differences: matching those with
the public model's embedding recovers 100 % of the tokens, before and after fine-tuning (EDNN; Lin et al., EMNLP 2024).
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor

from privtensors.errors import ParameterError

DEFAULT_PASSKEY: Final = "languagemodel123"
WARNING: Final = (
    "compat reproduces the published SentinelLMs and protects nothing: whoever has the converted weights and the public model recovers "
    "100 % of the tokens by neighbour differences (EDNN, Lin et al. 2024), and the shuffle has at most 10,000 keys"
)
_SEEDS: Final = 10_000
_SHUFFLES: Final = 10


def seed_of(passkey: str) -> int:
    """The published seed: the sum of the characters' code points modulo 10,000."""
    return sum(map(ord, passkey)) % _SEEDS


def involution(passkey: str, ids: Iterable[int], fixed: Iterable[int]) -> dict[int, int]:
    """The published shuffle of ids: pairwise swaps.

    Args:
        passkey: Only its :func:`seed_of` matters.
        ids: Every id of the vocabulary.
        fixed: Ids of special tokens, which stay.
    """
    kept = set(fixed)
    mixed = sorted(set(ids) - kept)
    for _ in range(_SHUFFLES):
        random.Random(seed_of(passkey)).shuffle(mixed)
    pivot = len(mixed) // 2 + 5
    found = {number: number for number in (*kept, *mixed)}
    for one, other in zip(mixed[:pivot], mixed[pivot:], strict=False):
        found[one], found[other] = other, one
    return found


def glide(table: Tensor, passkey: str, factor: int) -> Tensor:
    """The published reflection and translation of every row, ``factor`` times.

    Args:
        table: Embedding (rows, width), floating.
        passkey: Only its :func:`seed_of` matters.
        factor: ``--embedding_rescaling_factor``, 0 or more.

    Returns:
        float64 (rows, width).

    Raises:
        ParameterError: ``factor`` is negative.
    """
    if factor < 0:
        raise ParameterError(f"must be 0 or more, got {factor}", where="embedding_rescaling_factor")
    stream = random.Random(seed_of(passkey))
    rows = table.detach().to(torch.float64)
    for _ in range(factor):
        line, translation = stream.random(), stream.random()
        ones = torch.full((rows.shape[1],), line, dtype=torch.float64)
        rows = rows - torch.outer(2 * (rows @ ones) / (ones @ ones), ones) + translation
    return rows
