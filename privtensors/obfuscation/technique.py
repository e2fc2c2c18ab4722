"""The ``Obfuscation`` technique: a server runs a model that was transformed with a key, on keyed inputs. Heuristic."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Final, Literal

from privtensors.errors import ParameterError
from privtensors.policy.assets import Asset, Party
from privtensors.policy.facts import Local, Obfuscated
from privtensors.policy.forms import Form, Key, ObfuscatedValue, Plaintext
from privtensors.policy.phases import Phase, Role, Stage
from privtensors.policy.state import Establishes, Give, Has, Opens, Sees, Transition
from privtensors.policy.technique import Claim, Guarantee, Scene, Technique

KEY: Final = "obfuscation key"
"""The name of the key in ``explain()``."""

_READER: Final = "it stops a reader of traffic or logs who lacks the weights, who has little traffic and knows no plain text of it"
_SERVER: Final = "it does not stop a server that holds the transformed weights of an open model: it recovers the key and reads every token"
_AS_SENT: Final = "public: sent as it is"
_COMPUTED: Final = "the embedding alone is keyed: everything after it is as in the plain model"
_LOCAL: Final = "only whoever holds it in plain can transform it"
_FIX: Final = "Let the client hold the plain model and the inputs; the server gets what `privtensors convert` wrote for it"
_EVERYTHING: Final = (Asset.TOKEN_IDS, Asset.INPUTS, Asset.EMBEDDINGS, Asset.WEIGHTS, Asset.ACTIVATIONS, Asset.OUTPUTS)
_EMBEDDING_ONLY: Final = (Asset.TOKEN_IDS, Asset.INPUTS, Asset.EMBEDDINGS)
_WHY_NOT: Final = {
    Stage.TRAIN: "Obfuscation does not support stage train: it adds no noise and hides no training example, so it never counts as"
    " differential privacy (NOISED), nor as SHARED or ENCRYPTED",
    Stage.RELEASE: "Obfuscation does not support stage release: a release must be NOISED, and what is obfuscated is not;"
    " whoever has the key, or recovers it, reads all of it",
}


@dataclass(frozen=True)
class Obfuscation(Technique):
    """A server runs a stock model whose weights were transformed with a key, on token ids (pixels) keyed by the client.

    Guarantee class: heuristic, and never more. It stops a reader of traffic or logs who lacks the weights. It does not stop a server
    that holds the transformed weights of an open model: that server recovers the key (Lin et al. 2024 for embeddings; Thomas et al.
    2025 for permuted hidden states) and reads every token. It never satisfies a need for noise, shares or ciphertexts.

    Attributes:
        scheme: ``"equivariant"``: weights, token ids, labels and hidden states are permuted and rotated so that the outputs are those of
            the plain model, exactly. ``"sentinel"`` (SentinelLMs, Mishra et al. 2024): the vocabulary and the embedding are keyed and
            the model is fine-tuned on keyed text; everything after the embedding, labels included, is plain at the server.
        key: Path of a key file made by ``save_key``; default a key drawn when the model is wrapped. Never the key itself: policies are
            printed, compared and stored.

    Raises:
        ParameterError: ``scheme`` is neither, or ``key`` is empty or looks like a key rather than a path.
    """

    name: ClassVar[str] = "obfuscation"
    backend: ClassVar[str | None] = None
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.INFER})
    guarantee: ClassVar[Guarantee] = Guarantee.HEURISTIC
    assumptions: ClassVar[tuple[str, ...]] = (_READER, _SERVER)

    scheme: Literal["equivariant", "sentinel"] = "equivariant"
    _: KW_ONLY
    key: str | None = None

    def check(self) -> None:
        if self.key is None:
            return
        fix = 'Obfuscation(key="PATH") with a file of save_key'
        if not self.key.strip() or not self.key.isprintable():
            raise ParameterError("must be the path of a key file", where="Obfuscation.key", fix=fix)
        if re.fullmatch(r"(?:[0-9A-Fa-f]{64}|[A-Za-z0-9+/_-]{43}=?)", self.key):  # not repeated here: it may be the secret
            raise ParameterError("looks like a key; a policy holds only the path of its file", where="Obfuscation.key", fix=fix)

    def parties(self, stage: Stage) -> frozenset[str]:
        return frozenset({Party.CLIENT, Party.SERVER, Party.NETWORK})

    def receivers(self, stage: Stage) -> frozenset[str]:
        return frozenset({Party.CLIENT})  # whoever has the key

    def claims(self, stage: Stage) -> frozenset[Claim]:
        return frozenset({Claim(Role.LINEAR), Claim(Role.NONLINEAR)})

    def owners(self, stage: Stage) -> Mapping[str, frozenset[str]]:
        return {asset: frozenset({str(Party.CLIENT)}) for asset in (Asset.WEIGHTS, Asset.EMBEDDINGS)}

    def transitions(self, scene: Scene) -> tuple[Transition, ...]:
        model = (Asset.WEIGHTS, Asset.EMBEDDINGS)
        inputs = (Asset.TOKEN_IDS, Asset.INPUTS)
        public = tuple(Sees(a, p, Plaintext(), _AS_SENT) for a in (Asset.MASK, Asset.SHAPES) for p in (Party.SERVER, Party.NETWORK))
        computed = tuple(self._sees(asset, Party.SERVER) for asset in (Asset.ACTIVATIONS, Asset.OUTPUTS))
        return (
            Transition(
                "obfuscate the weights",
                Phase.SHARE,
                _held(model),
                (
                    Sees(Asset.KEYS, Party.CLIENT, Key(KEY), "its owner"),
                    *self._establish(model),
                    *(self._sees(a, Party.SERVER) for a in model),
                ),
                _LOCAL,
                _FIX,
            ),
            Transition(
                "obfuscate the inputs",
                Phase.SHARE,
                _held(inputs),
                (*self._establish(inputs), *(self._sees(a, p) for a in inputs for p in (Party.SERVER, Party.NETWORK)), *public),
                _LOCAL,
                _FIX,
            ),
            Transition(
                "run the transformed model",
                Phase.COMPUTE,
                tuple(Has(Obfuscated, asset, (("key", KEY),)) for asset in (Asset.EMBEDDINGS, Asset.TOKEN_IDS)),
                computed,
                "keyed inputs fit only the model that was transformed with the same key",
                _FIX,
            ),
            Transition(
                "undo the key at the client",
                Phase.REVEAL,
                gives=(self._sees(Asset.OUTPUTS, Party.NETWORK), Opens(Asset.OUTPUTS, scene.receiver)),
            ),
        )

    def hidden_from(self, scene: Scene) -> Mapping[str, frozenset[str]]:
        others = frozenset({str(Party.SERVER), str(Party.NETWORK)})
        return {str(asset): others for asset in (*self._keyed, Asset.KEYS)}

    def breaks_under(self, scene: Scene) -> Mapping[frozenset[str], frozenset[str]]:
        learned = frozenset({str(Asset.ACTIVATIONS)} if self.scheme == "equivariant" else ())
        return {frozenset({str(Party.CLIENT), str(Party.SERVER)}): learned} if learned else {}

    def remarks(self, scene: Scene) -> tuple[str, ...]:
        return (
            "Obfuscation is heuristic. It is no encryption and no differential privacy, and no need for either is met by it",
            f"Who it stops: {_READER.removeprefix('it stops ')}",
            f"Who it does not stop: {_SERVER.removeprefix('it does not stop ')}",
            "Equal tokens have equal keyed ids in every request under one key; frequencies and known texts reveal them: change keys often",
            "The server and the network see shapes, sequence length, the attention mask and timing of every request",
            *(() if self.scheme == "equivariant" else ("The server and the network see the outputs, labels included, in plain",)),
        )

    def why_not(self, stage: Stage) -> str:
        return _WHY_NOT.get(stage, f"Obfuscation does not support stage {stage}")

    @property
    def _keyed(self) -> tuple[Asset, ...]:
        return _EVERYTHING if self.scheme == "equivariant" else _EMBEDDING_ONLY

    def _form(self, asset: str) -> Form:
        return ObfuscatedValue(KEY) if asset in self._keyed else Plaintext()

    def _sees(self, asset: str, party: str) -> Sees:
        if asset not in self._keyed:
            return Sees(asset, party, Plaintext(), _COMPUTED)
        return Sees(asset, party, self._form(asset), _SERVER if party == Party.SERVER else _READER)

    def _establish(self, assets: tuple[Asset, ...]) -> tuple[Give, ...]:
        return tuple(Establishes(Obfuscated(a, Party.CLIENT, KEY)) for a in assets if a in self._keyed)


def _held(assets: tuple[Asset, ...]) -> tuple[Has, ...]:
    return tuple(Has(Local, asset, (("party", Party.CLIENT),)) for asset in assets)
