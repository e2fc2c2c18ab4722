"""The contest of the published equivariant encryption: one prompt and one answer as keyed ids a day, +10 per right id, -1 per wrong one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from privtensors.audit.obfuscation.attack import NO_GUESS, Attack, Attacker, View, held

RIGHT: Final = 10
WRONG: Final = -1


@dataclass(frozen=True)
class RandomGuess:
    """A random injection of the ids seen into all plain ids: the first baseline.

    Attributes:
        seed: Of the draw.
        name: As in the tables.
    """

    seed: int = 0
    name: str = "random"

    @property
    def attacker(self) -> Attacker:
        """Reads the stream."""
        return Attacker.READER

    def recover(self, view: View, ids: Tensor) -> Tensor:
        """See :class:`~privtensors.audit.obfuscation.attack.Attack`; needs nothing."""
        return torch.randperm(view.size, generator=torch.Generator().manual_seed(self.seed))[ids]


@dataclass(frozen=True)
class Play:
    """One player's day.

    Attributes:
        player: The attack's name.
        right: Ids told right.
        wrong: Ids told wrong; those without a guess cost nothing.
        points: 10 per right one, -1 per wrong one.
        highest: Points of a player that knows the key.
    """

    player: str
    right: int
    wrong: int
    points: int
    highest: int


def play(attacks: Sequence[Attack], view: View, plain: Tensor) -> tuple[Play, ...]:
    """One day of the contest for each attack.

    Args:
        attacks: The players.
        view: ``stream`` is the day's prompt and answer.
        plain: ``plain[keyed id]``, int64 (size,): the judge's.
    """
    ids = torch.unique(held(view, "stream", "contest"))
    plays = []
    for attack in attacks:
        guesses = attack.recover(view, ids)
        right = int((guesses == plain[ids]).sum())
        wrong = int((guesses != NO_GUESS).sum()) - right
        plays.append(Play(attack.name, right, wrong, RIGHT * right + WRONG * wrong, RIGHT * len(ids)))
    return tuple(plays)


def brute_force_digits(types: int, size: int) -> float:
    """log10 of the number of mappings of ``types`` ids into ``size``: what trying all of them (the fourth baseline) would take."""
    return (math.lgamma(size + 1) - math.lgamma(size - types + 1)) / math.log(10)
