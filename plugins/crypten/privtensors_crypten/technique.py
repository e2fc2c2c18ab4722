"""The ``CrypTen`` technique: inference on CrypTen's additive shares, between two processes on one host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from privtensors.policy.assets import Asset, Party
from privtensors.policy.facts import Local, Shared
from privtensors.policy.forms import Form, Mask, MaskedValue, Plaintext, Share, SizesAndTiming
from privtensors.policy.phases import Phase, Role, Stage
from privtensors.policy.state import Establishes, Give, Has, Opens, Sees, Transition
from privtensors.policy.technique import Claim, Guarantee, Scene, Technique

_SCHEME = "CrypTen additive Z_2^64"
_COMPUTING = (Party.CLIENT, Party.SERVER)
_LOOPBACK = "the parties are processes of one host and nobody else reads its loopback interface: CrypTen's links are not encrypted"
_PUBLIC = "public to both computing parties"
_TRIPLES = "the trusted third party is asked for every triple, hence it learns the shapes"


@dataclass(frozen=True)
class CrypTen(Technique):
    """CrypTen 0.4.1 (Knott et al., 2021): additive shares in Z_2^64, 16 fractional bits, Beaver triples, two computing parties.

    Guarantee class: heuristic. The protocols are semi-honest secure on paper, but every mask and share that CrypTen draws comes
    from torch's Mersenne Twister, which is no cryptographic generator. For comparison and research, as CrypTen itself says.

    Attributes:
        provider: Who makes the multiplication triples. ``"TTP"``: a third process, the dealer. ``"TFP"``, CrypTen's own default:
            party 0, the client, which therefore can open everything that enters a multiplication, the server's weights included.

    Raises:
        ParameterError: Another provider.
    """

    name: ClassVar[str] = "crypten"
    backend: ClassVar[str | None] = "crypten"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.INFER})
    guarantee: ClassVar[Guarantee] = Guarantee.HEURISTIC
    assumptions: ClassVar[tuple[str, ...]] = (
        "client and server follow the protocol (semi-honest) and do not collude",
        "who makes the triples (the dealer with provider TTP, the client with TFP) is honest: it can open what enters a multiplication",
        "nobody exploits that CrypTen draws its masks from torch's Mersenne Twister, which is no cryptographic generator",
        _LOOPBACK,
    )

    provider: Literal["TTP", "TFP"] = "TTP"

    def parties(self, stage: Stage) -> frozenset[str]:
        dealer = {Party.DEALER} if self.provider == "TTP" else set()
        return frozenset({*_COMPUTING, *dealer, Party.NETWORK})

    def receivers(self, stage: Stage) -> frozenset[str]:
        return frozenset(_COMPUTING)

    def claims(self, stage: Stage) -> frozenset[Claim]:
        return frozenset({Claim(Role.LINEAR), Claim(Role.NONLINEAR)})

    def owners(self, stage: Stage) -> Mapping[str, frozenset[str]]:
        return {Asset.EMBEDDINGS: frozenset({Party.CLIENT})}

    def transitions(self, scene: Scene) -> tuple[Transition, ...]:
        local = "only a value that its owner holds in plain can be shared"
        inputs = Has(Local, Asset.INPUTS, (("party", Party.CLIENT),))
        weights = Has(Local, Asset.WEIGHTS, (("party", Party.SERVER),))
        shared = tuple(Has(Shared, asset, (("scheme", _SCHEME),)) for asset in (Asset.INPUTS, Asset.WEIGHTS))
        result = Has(Shared, Asset.OUTPUTS, (("scheme", _SCHEME),))
        client, server = "Let the client hold the inputs", "Let the server hold the model weights"
        asks = "the client makes the request"
        return (
            Transition("announce the request", Phase.SHARE, (inputs,), self._descriptor(), reason=asks, fix=client),
            Transition("share the inputs", Phase.SHARE, (inputs,), self._shared(Asset.INPUTS, Party.CLIENT), reason=local, fix=client),
            Transition("share the weights", Phase.SHARE, (weights,), self._shared(Asset.WEIGHTS, Party.SERVER), reason=local, fix=server),
            Transition(
                "compute on shares",
                Phase.COMPUTE,
                shared,
                (*self._shared(Asset.ACTIVATIONS), *self._shared(Asset.OUTPUTS)),
                reason="both operands of a protocol must be shared",
            ),
            Transition(
                "open the outputs",
                Phase.REVEAL,
                (result,),
                (Opens(Asset.OUTPUTS, scene.receiver),),
                reason="only a shared value can be opened",
            ),
        )

    def hidden_from(self, scene: Scene) -> Mapping[str, frozenset[str]]:
        everybody = self.parties(scene.stage)
        insiders = everybody if self.provider == "TTP" else everybody - {Party.CLIENT}  # the client made the masks
        hidden = {
            Asset.TOKEN_IDS: everybody - {Party.CLIENT},
            Asset.INPUTS: everybody - {Party.CLIENT},
            Asset.EMBEDDINGS: everybody - {Party.CLIENT},
            Asset.WEIGHTS: insiders - {Party.SERVER},
            Asset.ACTIVATIONS: insiders,
            Asset.OUTPUTS: insiders - {scene.receiver},
            Asset.MASK: everybody - {*_COMPUTING},
        }
        return {asset: parties for asset, parties in hidden.items() if parties}

    def breaks_under(self, scene: Scene) -> Mapping[frozenset[str], frozenset[str]]:
        if self.provider == "TFP":
            return {}  # the client alone can open weights, activations and outputs

        def learned(collusion: frozenset[str], *assets: str) -> frozenset[str]:
            opened = {Asset.ACTIVATIONS} if scene.receiver in collusion else {Asset.ACTIVATIONS, Asset.OUTPUTS}
            return frozenset({*assets, *opened})

        both = frozenset({Party.CLIENT, Party.SERVER})
        client, server = frozenset({Party.CLIENT, Party.DEALER}), frozenset({Party.SERVER, Party.DEALER})
        return {
            both: learned(both),
            client: learned(client, Asset.WEIGHTS),
            server: learned(server, Asset.INPUTS, Asset.TOKEN_IDS),
        }

    def remarks(self, scene: Scene) -> tuple[str, ...]:
        said = [
            "The parties are real processes, but of one host and one user, started by this one: whoever runs it can read all of them",
            "Linear layers and comparisons are exact to about 2^-16; exponentials, roots and reciprocals are wrong outside a narrow range",
            "The client holds the embedding tables and shares the looked-up rows; token ids never leave it",
        ]
        if self.provider == "TFP":
            said.append("Provider TFP: the client makes the triples and can open the server's weights and every activation")
        return tuple(said)

    def why_not(self, stage: Stage) -> str:
        return f"CrypTen does not support stage {stage} here: its own autograd is not used, and the backward rows have no kernels"

    def _shared(self, asset: str, held_by: str = "") -> tuple[Give, ...]:
        gives: list[Give] = [Establishes(Shared(asset, _SCHEME))]
        for index, party in enumerate(_COMPUTING):
            if party != held_by:
                gives += [Sees(asset, party, Share(_SCHEME, index)), Sees(asset, party, MaskedValue(_SCHEME))]
        maker = Party.DEALER if self.provider == "TTP" else Party.CLIENT
        gives += [Sees(asset, maker, Mask(_SCHEME)), Sees(asset, Party.NETWORK, SizesAndTiming(), _LOOPBACK)]
        return tuple(gives)

    def _descriptor(self) -> tuple[Give, ...]:
        form: Form = Plaintext()
        gives = [Sees(Asset.MASK, Party.SERVER, form, _PUBLIC), Sees(Asset.SHAPES, Party.SERVER, form, _PUBLIC)]
        gives.append(Sees(Asset.TOKEN_IDS, Party.SERVER, SizesAndTiming(), _PUBLIC))
        gives += [Sees(asset, Party.NETWORK, SizesAndTiming(), _LOOPBACK) for asset in (Asset.MASK, Asset.SHAPES, Asset.TOKEN_IDS)]
        if self.provider == "TTP":
            gives += [Sees(asset, Party.DEALER, SizesAndTiming(), _TRIPLES) for asset in (Asset.SHAPES, Asset.TOKEN_IDS)]
        return tuple(gives)
