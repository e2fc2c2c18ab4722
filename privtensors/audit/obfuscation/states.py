"""Vocabulary matching on hidden states: every token through both models, layer by layer (Thomas et al., ICML 2025)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from privtensors.audit.obfuscation.attack import Attacker, Signature, States, View, held
from privtensors.audit.obfuscation.nearest import nearest, nearest_absolute

_BATCH: Final = 2048


def states_of(model: Any, layers: Iterable[int]) -> States:
    """Hidden states of texts of one token: of the keyed model, what its server computes for inputs that it chooses itself.

    Args:
        model: A stock transformers model of text, in evaluation mode.
        layers: Numbers of ``hidden_states``: 0 is the embedding.
    """
    wanted = tuple(layers)

    @torch.no_grad()
    def states(ids: Tensor) -> tuple[Tensor, ...]:
        found: list[list[Tensor]] = [[] for _ in wanted]
        for block in torch.split(ids, _BATCH):
            hidden = model(input_ids=block[:, None], output_hidden_states=True).hidden_states
            for place, layer in enumerate(wanted):
                found[place].append(hidden[layer][:, 0].float())
        return tuple(torch.cat(one) for one in found)

    return states


@dataclass(frozen=True)
class StateMatching:
    """The nearest hidden state of the open model at one layer, in L1, as it is or sorted (undoes a permutation of the units).

    Rows of equal sorted coordinates are what a hidden permutation leaves. A rotation leaves the norms alone: see ``NormProfile``.

    Attributes:
        signature: ``ROW`` or ``SORTED``.
        place: Which of the layers that the view's states give.
        layer: Its number, for the name.
    """

    signature: Signature = Signature.SORTED
    place: int = 0
    layer: int = 0

    @property
    def name(self) -> str:
        """As in the tables."""
        return f"hidden states, layer {self.layer}" + (", sorted" if self.signature is Signature.SORTED else "")

    @property
    def attacker(self) -> Attacker:
        """Needs the weights."""
        return Attacker.SERVER

    def recover(self, view: View, ids: Tensor) -> Tensor:
        """See :class:`~privtensors.audit.obfuscation.attack.Attack`; needs ``public_states`` and ``server_states``."""
        public = held(view, "public_states", self.name)(torch.arange(view.size))[self.place]
        server = held(view, "server_states", self.name)(ids)[self.place]
        return nearest_absolute(self.signature.of(server), self.signature.of(public))


@dataclass(frozen=True)
class NormProfile:
    """The nearest profile of norms over all given layers: no rotation changes them."""

    name: str = "norms of hidden states"

    @property
    def attacker(self) -> Attacker:
        """Needs the weights."""
        return Attacker.SERVER

    def recover(self, view: View, ids: Tensor) -> Tensor:
        """See :class:`~privtensors.audit.obfuscation.attack.Attack`; needs ``public_states`` and ``server_states``."""
        public, server = (
            torch.stack([one.double().norm(dim=1) for one in states], 1)
            for states in (
                held(view, "public_states", self.name)(torch.arange(view.size)),
                held(view, "server_states", self.name)(ids),
            )
        )
        scale = public.std(0).clamp_min(1e-12)
        return nearest(server / scale, public / scale)[0]


def remembered(states: States, size: int) -> States:
    """The states of every id, computed at the first call, in memory from then on."""
    kept: list[tuple[Tensor, ...]] = []

    def answer(ids: Tensor) -> tuple[Tensor, ...]:
        if not kept:
            kept.append(states(torch.arange(size)))
        return tuple(one[ids] for one in kept[0])

    return answer
