"""A secret rotation undone: principal axes of both tables, signs by skewness, and a Procrustes refinement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from privtensors.audit.obfuscation.attack import Attacker, Signature, Tables, View, held
from privtensors.audit.obfuscation.nearest import nearest

_EXACT: Final = 0.01  # of the squared length, left by a fit that needs no other tried


@dataclass(frozen=True)
class Spectral:
    """Rows compared in their own principal axes, each turned so that its third moment is positive.

    An orthogonal matrix, and so a permutation, leaves the rows as they are in these axes. It is tried on the rows and on the centred
    rows; the fit that leaves less is taken.

    Attributes:
        rounds: How often the better half of the matches is used to fit the rotation anew (orthogonal Procrustes: Schönemann, 1966).
    """

    rounds: int = 3

    @property
    def name(self) -> str:
        """As in the tables."""
        return "spectral, refined" if self.rounds else "spectral"

    @property
    def attacker(self) -> Attacker:
        """Needs the weights."""
        return Attacker.SERVER

    def recover(self, view: View, ids: Tensor) -> Tensor:
        """See :class:`~privtensors.audit.obfuscation.attack.Attack`; needs ``public`` and ``server``."""
        public: Tables = held(view, "public", self.name)
        server: Tables = held(view, "server", self.name)
        fits = []
        for kind in (Signature.ROW, Signature.CENTRED):
            table = public.in_own_axes(kind)
            points = server.in_own_axes(kind)[ids]
            guesses, left = _matched(points, table, self.rounds)
            fits.append((float(left / points.square().sum().clamp_min(1e-30)), guesses))
            if fits[-1][0] < _EXACT:
                break
        return min(fits, key=lambda fit: fit[0])[1]


def _matched(points: Tensor, table: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    guesses, distances = nearest(points, table)
    for _ in range(rounds):
        trusted = distances.argsort()[: max(1, len(points) // 2)]
        left, _, right = torch.linalg.svd((points[trusted].T @ table[guesses[trusted]]).double())
        again, farther = nearest(points @ (left @ right).float(), table)
        if float(farther.sum()) >= float(distances.sum()):
            break
        guesses, distances = again, farther
    return guesses, distances.sum()
