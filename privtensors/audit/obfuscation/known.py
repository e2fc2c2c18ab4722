"""Known plaintext: every token of a text that the attacker knows is known in all others under the key."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from privtensors.audit.obfuscation.attack import NO_GUESS, Attacker, View, held


@dataclass(frozen=True)
class KnownPlaintext:
    """Reads the pairs off; no guess for a token that was not among them."""

    name: str = "known plaintext"

    @property
    def attacker(self) -> Attacker:
        """Knows texts."""
        return Attacker.INFORMED

    def recover(self, view: View, ids: Tensor) -> Tensor:
        """See :class:`~privtensors.audit.obfuscation.attack.Attack`; needs ``known``."""
        plain, keyed = held(view, "known", self.name)
        table = torch.full((view.size,), NO_GUESS)
        table[keyed] = plain
        return table[ids]
