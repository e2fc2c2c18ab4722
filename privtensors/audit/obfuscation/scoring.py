"""How much of the truth an attack has found."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Recovery:
    """Shares, 0 to 1.

    Attributes:
        tokens: Of the probed token ids: which were told right.
        running: Of the words of real text, token by token: the same weighted by frequency.
    """

    tokens: float
    running: float


@dataclass(frozen=True, eq=False)
class Probe:
    """What attacks are asked, and the truth.

    Attributes:
        ids: Keyed ids, int64 (n,), distinct.
        plain: What they stand for, int64 (n,).
        counted: Which of them count for ``tokens``, bool (n,).
        counts: How often each occurs in the text, int64 (n,).
    """

    ids: Tensor
    plain: Tensor
    counted: Tensor
    counts: Tensor

    @classmethod
    def sampled(cls, plain: Tensor, text: Tensor, number: int) -> Probe:
        """Ids of an embedding: ``number`` spread evenly over all of them, and those of a text.

        Args:
            plain: ``plain[keyed id]``, int64 (size,).
            text: Keyed ids of the text.
            number: How many of the sample.
        """
        size = len(plain)
        sample = torch.linspace(0, size - 1, min(number, size)).long()
        counts = torch.bincount(text, minlength=size)
        wanted = counts > 0
        wanted[sample] = True
        ids = wanted.nonzero()[:, 0]
        counted = torch.zeros(size, dtype=torch.bool)
        counted[sample] = True
        return cls(ids, plain[ids], counted[ids], counts[ids])

    @classmethod
    def of_stream(cls, plain: Tensor, stream: Tensor) -> Probe:
        """The ids that occur in a stream of keyed ids."""
        ids, counts = torch.unique(stream, return_counts=True)
        return cls(ids, plain[ids], torch.ones_like(ids, dtype=torch.bool), counts)

    def score(self, guesses: Tensor) -> Recovery:
        """Of guesses, int64 (n,)."""
        right = guesses == self.plain
        tokens = right[self.counted].float().mean() if bool(self.counted.any()) else torch.zeros(())
        return Recovery(float(tokens), float((right * self.counts).sum() / self.counts.sum().clamp_min(1)))
