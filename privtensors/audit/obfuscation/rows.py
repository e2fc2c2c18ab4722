"""Attacks on the embedding: each keyed row against the rows of the open model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from privtensors.audit.obfuscation.attack import Attacker, Signature, Tables, View, held
from privtensors.audit.obfuscation.nearest import nearest


@dataclass(frozen=True)
class RowMatching:
    """The nearest row of the open model, compared by a signature.

    Rows as they are undo a bijection of the vocabulary. Row-centred and neighbour-difference (EDNN) matching undo whatever moves a row
    along the all-ones line (Lin et al., EMNLP 2024). Sorted rows undo a permutation of the hidden units (the sorted-L1 matching of Thomas
    et al., ICML 2025, on the embedding).

    Attributes:
        signature: What is compared.
    """

    signature: Signature

    @property
    def name(self) -> str:
        """As in the tables."""
        return self.signature.value

    @property
    def attacker(self) -> Attacker:
        """Needs the weights."""
        return Attacker.SERVER

    def recover(self, view: View, ids: Tensor) -> Tensor:
        """See :class:`~privtensors.audit.obfuscation.attack.Attack`; needs ``public`` and ``server``."""
        public: Tables = held(view, "public", self.name)
        server: Tables = held(view, "server", self.name)
        return nearest(self.signature.of(server.words[ids]), public.signature(self.signature))[0]


@dataclass(frozen=True)
class UnitMatching:
    """Hidden units are put in order by the parameters that have one column per unit; then the nearest row, by direction.

    The position table and the gains of normalisation layers name each hidden unit by hundreds of numbers, so noise on the embedding does
    not hide a permutation of them. It fails on a rotation.
    """

    name: str = "hidden units matched"

    @property
    def attacker(self) -> Attacker:
        """Needs the weights."""
        return Attacker.SERVER

    def recover(self, view: View, ids: Tensor) -> Tensor:
        """See :class:`~privtensors.audit.obfuscation.attack.Attack`; needs ``public`` and ``server``; without ``units``, no guess."""
        public: Tables = held(view, "public", self.name)
        server: Tables = held(view, "server", self.name)
        if public.units is None or server.units is None or public.units.shape != server.units.shape:
            return torch.full_like(ids, -1)
        scale = public.units.std(1, keepdim=True).clamp_min(1e-12)
        places = nearest((server.units / scale).T.contiguous(), (public.units / scale).T.contiguous())[0]
        return _in_order(server.words[ids], places, public)


@dataclass(frozen=True)
class ColumnMatching:
    """Hidden units are put in order by the cumulants of their columns in the embedding alone; then the nearest row, by direction.

    Normal noise changes only the second cumulant, alike in all columns, and the number of rows makes the others exact. It needs neither
    gains nor positions, so it also reads tables whose other parameters are hidden. It fails on a rotation.
    """

    name: str = "columns matched"

    @property
    def attacker(self) -> Attacker:
        """Needs the weights."""
        return Attacker.SERVER

    def recover(self, view: View, ids: Tensor) -> Tensor:
        """See :class:`~privtensors.audit.obfuscation.attack.Attack`; needs ``public`` and ``server``."""
        public: Tables = held(view, "public", self.name)
        server: Tables = held(view, "server", self.name)
        keyed = _cumulants(Signature.CENTRED.of(server.words))
        plain = _cumulants(public.signature(Signature.CENTRED))
        error = torch.tensor([1.0, 2.0, 15.0, 96.0]).sqrt()  # of the estimates for normal numbers, times the root of the rows
        scale = keyed[:, 1].mean().sqrt().clamp_min(1e-12) ** torch.arange(1, 5)
        keyed[:, 1] -= keyed[:, 1].mean()
        plain[:, 1] -= plain[:, 1].mean()
        places = nearest(keyed / scale / error, plain / scale / error)[0]
        return _in_order(server.words[ids], places, public)


def _cumulants(rows: Tensor) -> Tensor:
    """The first four of each column: float32 (width, 4)."""
    mean = rows.mean(0)
    moved = rows - mean
    squares = moved.square()
    second = squares.mean(0)
    return torch.stack([mean, second, (squares * moved).mean(0), squares.square().mean(0) - 3 * second.square()], 1)


def _in_order(rows: Tensor, places: Tensor, public: Tables) -> Tensor:
    """The nearest public row of each one whose column j is public column ``places[j]``; columns without a match are zero."""
    ordered = torch.zeros_like(rows)
    ordered[:, places] = Signature.CENTRED.of(rows)  # a keyed multiple of the all-ones vector falls away
    centred = torch.nn.functional.normalize(public.signature(Signature.CENTRED))
    return nearest(torch.nn.functional.normalize(ordered), centred)[0]
