"""The ``Clear`` technique: the reference. It protects nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from privtensors.policy.assets import Asset, Outputs, Party
from privtensors.policy.forms import Plaintext
from privtensors.policy.phases import Phase, Role, Stage
from privtensors.policy.state import Give, Opens, Sees, Transition, reduction
from privtensors.policy.technique import Claim, Guarantee, Scene, Technique

_SENT = (Asset.TOKEN_IDS, Asset.INPUTS, Asset.MASK, Asset.SHAPES)


@dataclass(frozen=True)
class Clear(Technique):
    """The server computes on plaintext. Guarantee class: none. For tests, and to compare other techniques against."""

    name: ClassVar[str] = "clear"
    backend: ClassVar[str | None] = "clear"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.INFER})
    guarantee: ClassVar[Guarantee] = Guarantee.NONE
    assumptions: ClassVar[tuple[str, ...]] = ("nothing is protected: whoever runs or reaches the server sees every value",)

    def parties(self, stage: Stage) -> frozenset[str]:
        return frozenset({Party.CLIENT, Party.SERVER, Party.NETWORK})

    def receivers(self, stage: Stage) -> frozenset[str]:
        return frozenset({Party.CLIENT, Party.SERVER})

    def claims(self, stage: Stage) -> frozenset[Claim]:
        return frozenset({Claim(Role.LINEAR), Claim(Role.NONLINEAR)})

    def transitions(self, scene: Scene) -> tuple[Transition, ...]:
        send: list[Give] = [Sees(asset, party, Plaintext()) for asset in _SENT for party in (Party.SERVER, Party.NETWORK)]
        compute: list[Give] = [Sees(asset, Party.SERVER, Plaintext()) for asset in (Asset.ACTIVATIONS, Asset.OUTPUTS)]
        reveal: list[Give] = [Sees(Asset.OUTPUTS, Party.NETWORK, Plaintext()), Opens(Asset.OUTPUTS, scene.receiver)]
        return (
            Transition("send the inputs", Phase.SHARE, gives=tuple(send)),
            Transition("compute in the clear", Phase.COMPUTE, gives=tuple(compute)),
            *((reduction(Asset.OUTPUTS, ()),) if scene.outputs == Outputs.ARGMAX else ()),
            Transition("return the outputs", Phase.REVEAL, gives=tuple(reveal)),
        )

    def hidden_from(self, scene: Scene) -> Mapping[str, frozenset[str]]:
        return {}

    def remarks(self, scene: Scene) -> tuple[str, ...]:
        return (
            "The client looks up the embedding rows; the server sees them in plain and can tell the token ids",
            "Clear is a reference for tests, not a protection",
        )
