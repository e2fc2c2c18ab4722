"""The id stream as a monoalphabetic code, broken by frequencies and neighbours with other text of the same kind."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from privtensors.audit.obfuscation.attack import NO_GUESS, Attacker, View, held
from privtensors.audit.obfuscation.counts import Ranking, conditional, pairs


@dataclass(frozen=True)
class FrequencyRank:
    """The id of a rank in the stream is the plain id of that rank in the corpus."""

    name: str = "frequency rank"

    @property
    def attacker(self) -> Attacker:
        """Reads the stream."""
        return Attacker.READER

    def recover(self, view: View, ids: Tensor) -> Tensor:
        """See :class:`~privtensors.audit.obfuscation.attack.Attack`; needs ``stream`` and ``corpus``."""
        stream, corpus = (Ranking.of(held(view, name, self.name), view.size) for name in ("stream", "corpus"))
        return by_rank(stream, corpus)[ids]


@dataclass(frozen=True)
class Decipherment:
    """Bigram decipherment by graduated assignment.

    The likelihood of the stream's pairs under the corpus's bigram model is a quadratic assignment problem in the mapping. It is relaxed
    to a doubly stochastic matrix that is sharpened step by step (softassign: Gold and Rangarajan, 1996), first for the most frequent
    ids, whose neighbours then pin down twice as many, and so on (the order of Nuhn and Ney, 2014).

    Attributes:
        common: How many of the most frequent ids are deciphered by their neighbours; the rest by rank. Memory and time grow with the
            square and the cube.
        start: How many at first.
    """

    common: int = 400
    start: int = 100
    name: str = "bigram decipherment"

    @property
    def attacker(self) -> Attacker:
        """Reads the stream."""
        return Attacker.READER

    def recover(self, view: View, ids: Tensor) -> Tensor:
        """See :class:`~privtensors.audit.obfuscation.attack.Attack`; needs ``stream`` and ``corpus``."""
        stream: Tensor = held(view, "stream", self.name)
        corpus: Tensor = held(view, "corpus", self.name)
        keyed, plain = Ranking.of(stream, view.size), Ranking.of(corpus, view.size)
        last = min(self.common, keyed.types)
        number, match = min(self.start, last), None
        while last > 1:
            match = _deciphered(pairs(stream, keyed, number), pairs(corpus, plain, number), match)
            if number == last:
                break
            number = min(2 * number, last)
        table = by_rank(keyed, plain)
        if match is not None:
            table[keyed.order[:last]] = plain.order[:last][_rounded(match)]
        return table[ids]


def by_rank(stream: Ranking, corpus: Ranking) -> Tensor:
    """The plain id for each keyed one by rank, int64 (size,); -1 for ids that do not occur in the stream."""
    table = torch.empty_like(stream.order)
    table[stream.order] = corpus.order
    table[stream.counts == 0] = NO_GUESS
    return table


def _deciphered(seen: Tensor, text: Tensor, match: Tensor | None) -> Tensor:
    """A doubly stochastic matrix (k, k) from keyed to plain ranks, from pair counts (k + 1, k + 1) and the matrix for fewer ranks."""
    number = len(seen) - 1
    after, before = _information(text), _information(text.T)
    counts = seen.sum(1)[:number]
    prior = _same_frequency(counts, text.sum(1)[:number] * (seen.sum() / text.sum()))
    sharpness = (1 / (1 + counts / 50))[:, None]  # neighbours are not independent, so their likelihood is tempered
    known, steps = match, 12
    if match is None:
        current = sinkhorn(prior)
    else:
        current = torch.zeros(number, number)
        current[: len(match), : len(match)] = match
        steps = 4
    whole = torch.zeros(number + 1, number + 1)
    whole[number, number] = 1
    for step in range(steps):
        whole[:number, :number] = current
        evidence = seen[:number] @ whole @ after.T + seen.T[:number] @ whole @ before.T
        warmth = min(1.0, 0.05 * 1.5**step) if known is None else 1.0
        current = sinkhorn(warmth * evidence * sharpness + prior)
    return current


def _information(text: Tensor) -> Tensor:
    """Pointwise mutual information of neighbours, (k, k + 1) from counts (k + 1, k + 1)."""
    unigram = (text.sum(0) + 0.5) / (text.sum() + 0.5 * len(text))
    return (conditional(text) - unigram.log())[:-1]


def _same_frequency(counts: Tensor, expected: Tensor) -> Tensor:
    """log-likelihood, up to a constant, that a keyed id and a plain one have one frequency: (k, k). Texts differ by 30 %."""
    distance = (counts[:, None] + 0.5).log() - (expected[None, :] + 0.5).log()
    variance = 1 / (counts[:, None] + 1) + 1 / (expected[None, :] + 1) + 0.3**2
    return -distance.square() / (2 * variance)


def sinkhorn(logits: Tensor, rounds: int = 30) -> Tensor:
    """The nearly doubly stochastic scaling (n, n) of exp(logits) (Sinkhorn and Knopp, 1967)."""
    kernel = (logits - logits.amax(1, keepdim=True)).clamp_min(-60.0).exp()
    columns = torch.ones(len(kernel))
    rows = columns
    for _ in range(rounds):
        rows = 1 / (kernel @ columns).clamp_min(1e-30)
        columns = 1 / (kernel.T @ rows).clamp_min(1e-30)
    return kernel * rows[:, None] * columns[None, :]


def _rounded(match: Tensor) -> Tensor:
    """A permutation from a doubly stochastic matrix: pairs that prefer each other first, then the same among the rest."""
    scores, number = match.clone(), len(match)
    found = torch.full((number,), -1)
    while bool((found < 0).any()):
        rows, columns = scores.argmax(1), scores.argmax(0)
        mutual = ((columns[rows] == torch.arange(number)) & (found < 0)).nonzero()[:, 0]
        if not len(mutual):  # ties: the first free row takes the first free column
            free = torch.ones(number, dtype=torch.bool)
            free[found[found >= 0]] = False
            mutual = (found < 0).nonzero()[:1, 0]
            rows = rows.clone()
            rows[mutual] = free.nonzero()[0, 0]
        found[mutual] = rows[mutual]
        scores[mutual] = -1.0
        scores[:, rows[mutual]] = -1.0
    return found
