"""The guessing game of a one-run audit: which of m canaries, each in by a fair coin, took part?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privtensors.errors import InvalidInput


@dataclass(frozen=True)
class Outcome:
    """How a game ended.

    Attributes:
        canaries: m, how many coins were thrown.
        guesses: r, on how many of them a guess was made; fixed before the game.
        correct: v, how many guesses were right.
    """

    canaries: int
    guesses: int
    correct: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.guesses <= self.canaries or self.canaries < 1:
            what = f"{self.correct} right of {self.guesses} guesses on {self.canaries} canaries"
            raise InvalidInput(what, where="audit", fix="Give 0 <= correct <= guesses <= canaries")


def check_guesses(guesses: int, canaries: int) -> int:
    """``guesses``, or InvalidInput unless it is an even whole number from 2 to ``canaries``."""
    if type(guesses) is not int or guesses % 2 or not 2 <= guesses <= canaries:
        what = f"{guesses!r} guesses on {canaries} canaries"
        raise InvalidInput(what, where="audit, guesses", fix=f"Give an even number from 2 to {canaries}")
    return guesses


def play(scores: NDArray[np.float64], included: NDArray[np.bool_], guesses: int) -> Outcome:
    """Guess "in" for the highest scores and "out" for as many lowest ones, and abstain from the rest.

    Args:
        scores: Higher where the canary seems to be in, (m,). Computed from what the mechanism released, never from the coins.
        included: The coins, (m,).
        guesses: r, even, chosen before ``scores`` were seen.

    Raises:
        InvalidInput: The arguments do not fit together, or a score is not a number.
    """
    if scores.shape != included.shape or scores.ndim != 1 or np.isnan(scores).any():
        raise InvalidInput("scores are not one number per canary", where="audit, scores", fix="Give one score for each coin")
    half = check_guesses(guesses, len(scores)) // 2
    # Ties must not be broken by an order that has to do with the coins; that of the canaries has not.
    order = np.argsort(scores, kind="stable")
    right = int((~included[order[:half]]).sum()) + int(included[order[-half:]].sum())
    return Outcome(len(scores), guesses, right)
