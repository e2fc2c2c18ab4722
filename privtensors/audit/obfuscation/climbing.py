"""Hill climbing by transpositions under a bigram model: the strongest baseline of the contest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from privtensors.audit.obfuscation.attack import NO_GUESS, Attacker, View, held
from privtensors.audit.obfuscation.counts import Ranking, conditional, pairs


@dataclass(frozen=True)
class HillClimbing:
    """Starts at the frequency ranks; each step tries random transpositions and takes the best one if the text becomes likelier.

    Attributes:
        steps: How many.
        tried: Transpositions per step.
        common: Plain ids that are considered: the most frequent of the corpus.
        seed: Of the proposals.
        name: As in the tables.
    """

    steps: int = 400
    tried: int = 128
    common: int = 2000
    seed: int = 0
    name: str = "hill climbing"

    @property
    def attacker(self) -> Attacker:
        """Reads the stream."""
        return Attacker.READER

    def recover(self, view: View, ids: Tensor) -> Tensor:
        """See :class:`~privtensors.audit.obfuscation.attack.Attack`; needs ``stream`` and ``corpus``."""
        stream: Tensor = held(view, "stream", self.name)
        plain = Ranking.of(held(view, "corpus", self.name), view.size)
        keyed = Ranking.of(stream, view.size)
        number = min(self.common, plain.types, view.size)
        types = min(keyed.types, number)  # rarer ones stay unguessed
        log = conditional(pairs(held(view, "corpus", self.name), plain, number))
        places = keyed.rank[stream].clamp(max=types)
        # A permutation of plain ranks: the keyed id of rank r is the plain one of rank state[r]. The last place stands for all others.
        state = torch.arange(number + 1)
        draw = torch.Generator().manual_seed(self.seed)
        best = _likelihood(log, state[None], places, number, types)[0]
        for _ in range(self.steps):
            one = torch.randint(types, (self.tried,), generator=draw)
            other = torch.randint(number, (self.tried,), generator=draw)
            proposals = state.expand(self.tried, -1).clone()
            lanes = torch.arange(self.tried)
            proposals[lanes, one], proposals[lanes, other] = state[other], state[one]
            found = _likelihood(log, proposals, places, number, types)
            if found.max() > best:
                best, state = found.max(), proposals[found.argmax()]
        table = torch.full((view.size,), NO_GUESS)
        table[keyed.order[:types]] = plain.order[state[:types]]
        return table[ids]


def _likelihood(log: Tensor, states: Tensor, places: Tensor, number: int, types: int) -> Tensor:
    """Of the stream under each mapping: (tried,)."""
    mapped = states[:, places]
    mapped = torch.where(places == types, number, mapped)
    return log[mapped[:, :-1], mapped[:, 1:]].sum(1)
