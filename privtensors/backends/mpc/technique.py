"""The ``MPC`` technique: inference on additive secret shares between client and server, with an offline dealer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from privtensors.errors import ParameterError
from privtensors.policy.assets import Asset, Party
from privtensors.policy.facts import Local, Shared
from privtensors.policy.forms import Mask, MaskedValue, Plaintext, Share, SizesAndTiming
from privtensors.policy.phases import Phase, Role, Stage
from privtensors.policy.state import Establishes, Give, Has, Opens, Sees, Transition
from privtensors.policy.technique import Claim, Guarantee, Scene, Technique

_SCHEME = "additive Z_2^64"
_COMPUTING = (Party.CLIENT, Party.SERVER)
_TLS = "the links run TLS 1.3"
_PUBLIC = "public to both computing parties"
_OFFLINE = "the dealer learns how much correlated randomness a request needs, hence its shapes"
_DESCRIPTOR = "the request descriptor is public: task, shapes, sequence length, attention mask"


@dataclass(frozen=True)
class MPC(Technique):
    """Additive shares in Z_2^64, fixed point; two computing parties and a dealer.

    Guarantee class: computational, against one semi-honest computing party. The dealer is honest, offline, and
    colludes with nobody: dealer and any computing party together see everything that was shared with it.

    Attributes:
        fractional_bits: Fixed-point precision, 16 to 20 bits after the point.
        embeddings: Who holds the embedding tables. ``"client"``: the client looks rows up and shares them, so token
            ids never leave it.

    Raises:
        ParameterError: A parameter is out of range or of a wrong type.
    """

    name: ClassVar[str] = "mpc"
    backend: ClassVar[str | None] = "mpc"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.INFER})
    guarantee: ClassVar[Guarantee] = Guarantee.COMPUTATIONAL
    assumptions: ClassVar[tuple[str, ...]] = (
        "client and server follow the protocol (semi-honest) and do not collude",
        "the dealer is honest and colludes with nobody: dealer and any computing party together see everything",
        "AES in counter mode is a pseudorandom generator",
    )

    fractional_bits: int = 18
    embeddings: Literal["client"] = "client"

    def check(self) -> None:
        if not 16 <= self.fractional_bits <= 20:
            raise ParameterError(
                f"must be 16 to 20, got {self.fractional_bits}",
                where="MPC.fractional_bits",
                fix="fewer bits lose accuracy, more overflow the ring in products; 18 suits transformers",
            )

    def parties(self, stage: Stage) -> frozenset[str]:
        return frozenset({*_COMPUTING, Party.DEALER, Party.NETWORK})

    def receivers(self, stage: Stage) -> frozenset[str]:
        return frozenset(_COMPUTING)

    def claims(self, stage: Stage) -> frozenset[Claim]:
        return frozenset({Claim(Role.LINEAR), Claim(Role.NONLINEAR)})

    def owners(self, stage: Stage) -> Mapping[str, frozenset[str]]:
        return {Asset.EMBEDDINGS: frozenset({self.embeddings})}

    def transitions(self, scene: Scene) -> tuple[Transition, ...]:
        local = "only a value that its owner holds in plain can be shared"
        return (
            Transition(
                "announce the request",
                Phase.SHARE,
                needs=(Has(Local, Asset.INPUTS, (("party", Party.CLIENT),)),),
                gives=_descriptor(),
                reason="the client makes the request",
                fix="Let the client hold the inputs",
            ),
            Transition(
                "share the inputs",
                Phase.SHARE,
                needs=(Has(Local, Asset.INPUTS, (("party", Party.CLIENT),)),),
                gives=_shared(Asset.INPUTS, held_by=Party.CLIENT),
                reason=local,
                fix="Let the client hold the inputs",
            ),
            Transition(
                "share the weights",
                Phase.SHARE,
                needs=(Has(Local, Asset.WEIGHTS, (("party", Party.SERVER),)),),
                gives=_shared(Asset.WEIGHTS, held_by=Party.SERVER),
                reason=local,
                fix="Let the server hold the model weights",
            ),
            Transition(
                "compute on shares",
                Phase.COMPUTE,
                needs=tuple(Has(Shared, asset, (("scheme", _SCHEME),)) for asset in (Asset.INPUTS, Asset.WEIGHTS)),
                gives=(*_shared(Asset.ACTIVATIONS), *_shared(Asset.OUTPUTS)),
                reason="both operands of a protocol must be shared",
            ),
            Transition(
                "open the outputs",
                Phase.REVEAL,
                needs=(Has(Shared, Asset.OUTPUTS, (("scheme", _SCHEME),)),),
                gives=(Opens(Asset.OUTPUTS, scene.receiver),),
                reason="only a shared value can be opened",
            ),
        )

    def hidden_from(self, scene: Scene) -> Mapping[str, frozenset[str]]:
        beyond_client = self.parties(scene.stage) - {Party.CLIENT}
        return {
            Asset.TOKEN_IDS: beyond_client,
            Asset.INPUTS: beyond_client,
            Asset.EMBEDDINGS: beyond_client,
            Asset.WEIGHTS: self.parties(scene.stage) - {Party.SERVER},
            Asset.ACTIVATIONS: self.parties(scene.stage),
            Asset.OUTPUTS: self.parties(scene.stage) - {scene.receiver},
            Asset.MASK: frozenset({Party.DEALER, Party.NETWORK}),
        }

    def breaks_under(self, scene: Scene) -> Mapping[frozenset[str], frozenset[str]]:
        def learned(collusion: frozenset[str], *assets: str) -> frozenset[str]:
            opened = {Asset.ACTIVATIONS} if scene.receiver in collusion else {Asset.ACTIVATIONS, Asset.OUTPUTS}
            return frozenset({*assets, *opened})

        both, client, server = (
            frozenset({Party.CLIENT, Party.SERVER}),
            frozenset({Party.CLIENT, Party.DEALER}),
            frozenset({Party.SERVER, Party.DEALER}),
        )
        return {
            both: learned(both),
            client: learned(client, Asset.WEIGHTS),
            server: learned(server, Asset.INPUTS, Asset.TOKEN_IDS),
        }

    def remarks(self, scene: Scene) -> tuple[str, ...]:
        return (
            "The client holds the embedding tables and shares the looked-up rows; token ids never leave it",
            "The server sees shapes, sequence length, the attention mask and timing of every request",
            "The dealer sees the shapes of every request, never a value of it",
            "Hidden states and attentions stay protected unless they are revealed by hand",
        )

    def why_not(self, stage: Stage) -> str:
        return f"MPC does not support stage {stage}" + (" yet" if stage is Stage.TRAIN else "")


def _shared(asset: str, held_by: str = "") -> tuple[Give, ...]:
    """``asset`` becomes shared: each computing party that does not own it holds a share and what was opened under masks."""
    gives: list[Give] = [Establishes(Shared(asset, _SCHEME))]
    for index, party in enumerate(_COMPUTING):
        if party != held_by:
            gives += [Sees(asset, party, Share(_SCHEME, index)), Sees(asset, party, MaskedValue(_SCHEME))]
    gives += [Sees(asset, Party.DEALER, Mask(_SCHEME)), Sees(asset, Party.NETWORK, SizesAndTiming(), _TLS)]
    return tuple(gives)


def _descriptor() -> tuple[Give, ...]:
    return (
        Sees(Asset.MASK, Party.SERVER, Plaintext(), _PUBLIC),
        Sees(Asset.MASK, Party.NETWORK, SizesAndTiming(), _TLS),
        Sees(Asset.SHAPES, Party.SERVER, Plaintext(), _PUBLIC),
        Sees(Asset.SHAPES, Party.DEALER, SizesAndTiming(), _OFFLINE),
        Sees(Asset.SHAPES, Party.NETWORK, SizesAndTiming(), _TLS),
        Sees(Asset.TOKEN_IDS, Party.SERVER, SizesAndTiming(), _DESCRIPTOR),
        Sees(Asset.TOKEN_IDS, Party.DEALER, SizesAndTiming(), _OFFLINE),
        Sees(Asset.TOKEN_IDS, Party.NETWORK, SizesAndTiming(), _TLS),
    )
