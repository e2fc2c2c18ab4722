"""The published shuffle of SentinelLMs tried seed by seed: there are 10,000."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from privtensors.audit.obfuscation.attack import NO_GUESS, Attacker, Signature, Tables, View, held
from privtensors.audit.obfuscation.counts import Ranking
from privtensors.errors import InvalidInput

SEEDS: Final = 10_000
_LIKELIEST: Final = 1_500
_PROBES: Final = 64
_SAME: Final = 0.9


def likely_seeds(number: int = SEEDS) -> tuple[int, ...]:
    """Seeds of passkeys, likeliest first: the sum of 8 to 20 letters and digits lies around 1500."""
    return tuple(sorted(range(SEEDS), key=lambda seed: (abs(seed - _LIKELIEST), seed))[:number])


def swaps(seed: int, words: Sequence[int], size: int) -> Tensor:
    """The published swaps of a seed, int64 (size,): its own inverse. The same as ``sentinel.compat.involution``, ten times faster.

    Ten shuffles from one seed are the tenth power of one.

    Args:
        seed: 0 to 9,999.
        words: The ids that are shuffled, ascending.
        size: How many ids there are.
    """
    listed = list(range(len(words)))
    random.Random(seed).shuffle(listed)
    once = np.array(listed)
    twice = once[once]
    eighth = twice[twice][twice[twice]]
    mixed = np.asarray(words)[eighth[twice]]
    pivot = len(mixed) // 2 + 5
    one, other = mixed[: len(mixed) - pivot], mixed[pivot:]
    table = np.arange(size)
    table[one], table[other] = other, one
    return torch.from_numpy(table)


@dataclass(frozen=True)
class SeedEnumeration:
    """Whoever holds the weights knows the right seed by the row-centred embedding, a reader by what the stream then says.

    Attributes:
        attacker: ``SERVER`` or ``READER``.
        words: Ids that the tokenizer uses, without the special ones, ascending: public. The special ones keep their ids.
        seeds: To try, in this order. 11 ms each for 30,522 tokens.
        name: As in the tables.
    """

    attacker: Attacker
    words: tuple[int, ...]
    seeds: tuple[int, ...]
    name: str = "seed enumeration"

    def recover(self, view: View, ids: Tensor) -> Tensor:
        """See :class:`~privtensors.audit.obfuscation.attack.Attack`; needs ``public`` and ``server``, or ``stream`` and ``corpus``.

        The server's search ends at the first seed that fits; without one it makes no guess.
        """
        if self.attacker is Attacker.SERVER:
            table = self._by_rows(view)
        elif self.attacker is Attacker.READER:
            table = self._by_stream(view)
        else:
            raise InvalidInput(f"no such attack for a {self.attacker.value}", where=self.name, fix="Give SERVER or READER")
        return torch.full_like(ids, NO_GUESS) if table is None else table[ids]

    def _swaps(self, seed: int, size: int) -> Tensor:
        return swaps(seed, self.words, size)

    def _by_rows(self, view: View) -> Tensor | None:
        public: Tables = held(view, "public", self.name)
        server: Tables = held(view, "server", self.name)
        some = torch.tensor(self.words)[:: max(1, len(self.words) // _PROBES)]
        normalize = torch.nn.functional.normalize
        keyed = normalize(Signature.CENTRED.of(server.words[some]))
        plain = normalize(public.signature(Signature.CENTRED))
        for seed in self.seeds:
            table = self._swaps(seed, view.size)
            if float((keyed * plain[table[some]]).sum(1).median()) > _SAME:
                return table
        return None

    def _by_stream(self, view: View) -> Tensor | None:
        stream: Tensor = held(view, "stream", self.name)
        counts = Ranking.of(held(view, "corpus", self.name), view.size).counts
        surprise = -((counts + 0.5) / (counts.sum() + 0.5 * view.size)).log()
        seen, often = torch.unique(stream, return_counts=True)
        tried = ((float((surprise[table[seen]] * often).sum()), table) for table in (self._swaps(seed, view.size) for seed in self.seeds))
        return min(tried, key=lambda one: one[0], default=(0.0, None))[1]


@dataclass(frozen=True)
class IdsAsTheyAre:
    """Ids read with the open model's tokenizer: what a scheme that does not move ids gives away."""

    name: str = "ids as they are"

    @property
    def attacker(self) -> Attacker:
        """Reads the stream."""
        return Attacker.READER

    def recover(self, view: View, ids: Tensor) -> Tensor:
        """See :class:`~privtensors.audit.obfuscation.attack.Attack`; needs nothing."""
        return ids.clone()
