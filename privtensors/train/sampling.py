"""Poisson sampling from a CSPRNG: the one sampling that an amplified ε is accounted for here."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from privtensors.core.randomness import ByteStream
from privtensors.errors import AccountingError, ParameterError
from privtensors.train.roles import Sampler

_CHUNK = 1 << 18  # coins drawn at once: 2 MiB
_REASONS = (
    ("WeightedRandomSampler", "draws some examples with far higher probability than others, and several times over"),
    ("RandomSampler", "cuts a shuffled epoch into batches of a fixed size, and whether one example is in depends on the others"),
    ("SequentialSampler", "takes the same examples every time"),
    ("DistributedSampler", "cuts a shuffled epoch into batches of a fixed size, and whether one example is in depends on the others"),
)


class PoissonSampler:
    """Each unit is in a step by a coin of its own, independently of everything else; a step may be empty.

    A coin is 64 bits of AES-256 in counter mode under a fresh random key, heads where they are below floor(rate · 2^64).
    So units are drawn with at most ``rate``, less by no more than 2^-64, and ε accounted at ``rate`` covers it: the
    hockey-stick divergence of a Poisson sampled mechanism grows with the rate. Guarantee class: statistical, given that
    AES is a pseudorandom permutation. Poisson sampling for DP-SGD: Abadi et al. 2016; Mironov et al. 2019.

    There is no seed: whoever can repeat the sample knows it, and against them nothing is amplified.

    Args:
        size: Number of units (examples or users), at least 1.
        rate: Probability with which one of them is in a step, in (0, 1]. Accounted as given.

    Raises:
        ParameterError: ``size`` or ``rate`` is out of range.
    """

    def __init__(self, size: int, rate: float) -> None:
        if type(size) is not int or size < 1:
            raise ParameterError("there is nobody to sample", where="PoissonSampler, size", fix="Give at least one example")
        if not isinstance(rate, float) or not 0 < rate <= 1:
            raise ParameterError(f"rate is {rate!r}", where="PoissonSampler, rate", fix="Give a float in (0, 1]")
        self.size, self.rate, self.expected = size, rate, rate * size
        self._threshold = int(Fraction(rate) * 2**64)  # exact: a float is a fraction; int rounds down
        self._stream = ByteStream()

    def __iter__(self) -> Iterator[Tensor]:
        """Without end: per step the indices drawn, int64, ``(n,)``, ascending; n may be 0."""
        while True:
            yield self.draw()

    def draw(self) -> Tensor:
        """The indices of one step, int64, ``(n,)``, ascending; n may be 0."""
        if self._threshold >= 2**64:
            return torch.arange(self.size)
        parts = []
        for start in range(0, self.size, _CHUNK):
            count = min(_CHUNK, self.size - start)
            parts.append(np.flatnonzero(self._stream.words(count) < np.uint64(self._threshold)) + start)
        return torch.from_numpy(np.concatenate(parts).astype(np.int64))

    def __repr__(self) -> str:
        return f"PoissonSampler(size={self.size}, rate={self.rate:g})"


def amplified_rate(sampler: Sampler) -> float:
    """The rate at which a step on what ``sampler`` draws may be accounted: for a Poisson sampler its own.

    Raises:
        AccountingError: It is another sampler; the message says what is wrong with it and what to do.
    """
    if isinstance(sampler, PoissonSampler):
        return sampler.rate
    raise not_poisson(sampler)


def not_poisson(sampler: object) -> AccountingError:
    """Why ε cannot be accounted as amplified under ``sampler``."""
    kinds = {cls.__name__ for cls in type(sampler).__mro__}
    reason = next((why for name, why in _REASONS if name in kinds), "is not known to draw each example by a coin of its own")
    return AccountingError(
        f"{type(sampler).__name__} {reason}; ε amplified by sampling holds for Poisson sampling only",
        where="sampler",
        fix="Give the data set itself and the expected batch size: batches are then drawn by PoissonSampler",
    )
