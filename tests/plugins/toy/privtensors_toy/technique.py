"""The ``Toy`` technique."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from privtensors.errors import ParameterError
from privtensors.policy.assets import Asset, Party
from privtensors.policy.forms import Plaintext
from privtensors.policy.phases import Phase, Role, Stage
from privtensors.policy.state import Opens, Sees, Transition
from privtensors.policy.technique import Claim, Guarantee, Scene, Technique

_SENT = (Asset.TOKEN_IDS, Asset.INPUTS, Asset.MASK, Asset.SHAPES)


@dataclass(frozen=True)
class Toy(Technique):
    """A value plus a random mask, both in this process. Guarantee class: none. For tests of the plugin machinery."""

    name: ClassVar[str] = "toy"
    backend: ClassVar[str | None] = "toy"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.INFER})
    guarantee: ClassVar[Guarantee] = Guarantee.NONE
    assumptions: ClassVar[tuple[str, ...]] = ("nothing is protected: the process that holds the masked value holds the mask",)

    bits: int = 10

    def check(self) -> None:
        if not 1 <= self.bits <= 20:
            raise ParameterError(f"{self.bits} is outside 1..20", where="Toy.bits", fix="use the default, 10")

    def parties(self, stage: Stage) -> frozenset[str]:
        return frozenset({Party.CLIENT, Party.SERVER, Party.NETWORK})

    def receivers(self, stage: Stage) -> frozenset[str]:
        return frozenset({Party.CLIENT, Party.SERVER})

    def claims(self, stage: Stage) -> frozenset[Claim]:
        return frozenset({Claim(Role.LINEAR), Claim(Role.NONLINEAR)})

    def transitions(self, scene: Scene) -> tuple[Transition, ...]:
        send = tuple(Sees(asset, party, Plaintext()) for asset in _SENT for party in (Party.SERVER, Party.NETWORK))
        compute = tuple(Sees(asset, Party.SERVER, Plaintext()) for asset in (Asset.ACTIVATIONS, Asset.OUTPUTS))
        reveal = (Sees(Asset.OUTPUTS, Party.NETWORK, Plaintext()), Opens(Asset.OUTPUTS, scene.receiver))
        return (
            Transition("send the inputs", Phase.SHARE, gives=send),
            Transition("compute", Phase.COMPUTE, gives=compute),
            Transition("return the outputs", Phase.REVEAL, gives=reveal),
        )

    def hidden_from(self, scene: Scene) -> Mapping[str, frozenset[str]]:
        return {}
