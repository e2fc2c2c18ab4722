"""The ``MPC`` technique: inference and training on additive secret shares of client and server, with an offline dealer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from privtensors.backends.mpc import training
from privtensors.errors import ParameterError
from privtensors.policy.assets import Asset, Outputs, Party
from privtensors.policy.facts import Local, Shared
from privtensors.policy.forms import Mask, MaskedValue, Plaintext, Share, SizesAndTiming
from privtensors.policy.phases import Phase, Role, Stage
from privtensors.policy.state import Establishes, Give, Has, Opens, Sees, Transition, reduction
from privtensors.policy.technique import Claim, Guarantee, Scene, Technique

_SCHEME = "additive Z_2^64"
_COMPUTING = (Party.CLIENT, Party.SERVER)
_TLS = "the links run TLS 1.3"
_PUBLIC = "public to both computing parties"
_OFFLINE = "the dealer learns how much correlated randomness a request needs, hence its shapes and whether any token is masked"
_LOCAL = "only a value that its owner holds in plain can be shared"
_DESCRIPTOR = "the request descriptor is public: task, shapes, sequence length, attention mask, a decoder's position numbers"
_CHECK = "whether a value left its range"
_ONE_BIT = "one bit per forward: whether any value left its range"
_BITS = "one bit per operation and forward: whether a value left its range, and in which layer"
_CLIENT_TABLES = ("The client holds the embedding tables and shares the looked-up rows; token ids never leave it",)
_CHECKED = (
    "With every revealed result its receiver, and nobody else, learns whether a value left its range since the last reveal",
    "A receiver that stops asking after such an error shows that there was one",
)
_SERVER_TABLES = (
    "The server holds the embedding tables; the client looks rows up by token ids that it alone knows, two rounds per table",
    "The server sees how many token ids there are and how large the tables are, never which ids or whether two are equal",
)


@dataclass(frozen=True)
class MPC(Technique):
    """Additive shares in Z_2^64, fixed point; two computing parties and a dealer.

    Guarantee class: computational, against one semi-honest computing party. The dealer is honest, offline, and
    colludes with nobody: dealer and any computing party together see everything that was shared with it.

    Attributes:
        fractional_bits: Fixed-point precision, 16 to 20 bits after the point.
        embeddings: Who holds the embedding tables. ``"client"``: the client looks rows up and shares them, so token
            ids never leave it. ``"server"``: the tables are protected like other weights, and rows are looked up privately
            (``protocols/lookup.py``): the server learns nothing of the ids, the client nothing of the tables.
        ranges: What happens to a value outside the range in which a protocol is right. ``"saturate"``: it saturates or wraps,
            and nobody learns it. ``"checked"``: whoever receives a result is told, by one bit, whether any value left its range
            on the way, and then gets an error in place of the result (``docs/sharp-edges/mpc.md``).
        diagnose: With checked ranges: one bit per operation instead, so that the error names the layer. The receiver learns more.

    Raises:
        ParameterError: A parameter is out of range or of a wrong type.
    """

    name: ClassVar[str] = "mpc"
    backend: ClassVar[str | None] = "mpc"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.TRAIN, Stage.INFER})
    guarantee: ClassVar[Guarantee] = Guarantee.COMPUTATIONAL
    assumptions: ClassVar[tuple[str, ...]] = (
        "client and server follow the protocol (semi-honest) and do not collude",
        "the dealer is honest and colludes with nobody: dealer and any computing party together see everything",
        "AES in counter mode is a pseudorandom generator",
    )

    fractional_bits: int = 18
    embeddings: Literal["client", "server"] = "client"
    ranges: Literal["saturate", "checked"] = "saturate"
    diagnose: bool = False

    def check(self) -> None:
        if self.diagnose and self.ranges != "checked":
            raise ParameterError("needs checked ranges", where="MPC.diagnose", fix='MPC(ranges="checked", diagnose=True)')
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
        if stage is Stage.TRAIN:
            return training.owners()
        tables: dict[str, frozenset[str]] = {Asset.EMBEDDINGS: frozenset({self.embeddings})}
        # What enters the model is then a looked-up row, which nobody holds in plain.
        return tables if self.embeddings == "client" else tables | {Asset.INPUTS: frozenset()}

    def transitions(self, scene: Scene) -> tuple[Transition, ...]:
        if scene.stage is Stage.TRAIN:
            return training.transitions(_SCHEME, _shared)
        shared_outputs = Has(Shared, Asset.OUTPUTS, (("scheme", _SCHEME),))
        return (
            *(_inputs_of_the_client() if self.embeddings == "client" else _rows_of_the_server()),
            Transition(
                "share the weights",
                Phase.SHARE,
                needs=(Has(Local, Asset.WEIGHTS, (("party", Party.SERVER),)),),
                gives=_shared(Asset.WEIGHTS, held_by=Party.SERVER),
                reason=_LOCAL,
                fix="Let the server hold the model weights",
            ),
            Transition(
                "compute on shares",
                Phase.COMPUTE,
                needs=tuple(Has(Shared, asset, (("scheme", _SCHEME),)) for asset in (Asset.INPUTS, Asset.WEIGHTS)),
                gives=(*_shared(Asset.ACTIVATIONS), *_shared(Asset.OUTPUTS)),
                reason="both operands of a protocol must be shared",
            ),
            *((reduction(Asset.OUTPUTS, (shared_outputs,)),) if scene.outputs == Outputs.ARGMAX else ()),
            Transition(
                "open the outputs",
                Phase.REVEAL,
                needs=(shared_outputs,),
                gives=(Opens(Asset.OUTPUTS, scene.receiver), *self._told(scene)),
                reason="only a shared value can be opened",
            ),
        )

    def _told(self, scene: Scene) -> tuple[Give, ...]:
        """What the receiver of the outputs learns beside them."""
        if self.ranges != "checked":
            return ()
        return (Sees(_CHECK, scene.receiver, Plaintext(), _BITS if self.diagnose else _ONE_BIT),)

    def hidden_from(self, scene: Scene) -> Mapping[str, frozenset[str]]:
        if scene.stage is Stage.TRAIN:
            return training.hidden_from(self.parties(scene.stage))
        beyond_client = self.parties(scene.stage) - {Party.CLIENT}
        return {
            Asset.TOKEN_IDS: beyond_client,
            Asset.INPUTS: beyond_client if self.embeddings == "client" else self.parties(scene.stage),
            Asset.EMBEDDINGS: self.parties(scene.stage) - {self.embeddings},
            Asset.WEIGHTS: self.parties(scene.stage) - {Party.SERVER},
            Asset.ACTIVATIONS: self.parties(scene.stage),
            Asset.OUTPUTS: self.parties(scene.stage) - ({scene.receiver} if scene.outputs == Outputs.FULL else frozenset()),
            Asset.MASK: frozenset({Party.DEALER, Party.NETWORK}),
            **({_CHECK: self.parties(scene.stage) - {scene.receiver}} if self.ranges == "checked" else {}),
        }

    def breaks_under(self, scene: Scene) -> Mapping[frozenset[str], frozenset[str]]:
        if scene.stage is Stage.TRAIN:
            return training.breaks_under()

        def learned(collusion: frozenset[str], *assets: str) -> frozenset[str]:
            held = scene.receiver in collusion and scene.outputs == Outputs.FULL
            opened = {Asset.ACTIVATIONS} if held else {Asset.ACTIVATIONS, Asset.OUTPUTS}
            return frozenset({*assets, *opened})

        both, client, server = (
            frozenset({Party.CLIENT, Party.SERVER}),
            frozenset({Party.CLIENT, Party.DEALER}),
            frozenset({Party.SERVER, Party.DEALER}),
        )
        rows, tables = ((Asset.INPUTS,), (Asset.EMBEDDINGS, Asset.INPUTS)) if self.embeddings == "server" else ((), ())
        return {
            both: learned(both, *rows),
            client: learned(client, Asset.WEIGHTS, *tables),
            server: learned(server, Asset.INPUTS, Asset.TOKEN_IDS),
        }

    def remarks(self, scene: Scene) -> tuple[str, ...]:
        if scene.stage is Stage.TRAIN:
            return (*training.REMARKS, *(_CHECKED if self.ranges == "checked" else ()))
        return (
            *(_CLIENT_TABLES if self.embeddings == "client" else _SERVER_TABLES),
            "The server sees shapes, sequence length, the attention mask and timing of every request",
            "The dealer sees the shapes of every request, never a value of it",
            "Hidden states and attentions stay protected unless they are revealed by hand",
            *(_CHECKED if self.ranges == "checked" else ()),
        )

    def why_not(self, stage: Stage) -> str:
        return f"MPC does not support stage {stage}"


def _shared(asset: str, held_by: str = "") -> tuple[Give, ...]:
    """``asset`` becomes shared: each computing party that does not own it holds a share and what was opened under masks."""
    gives: list[Give] = [Establishes(Shared(asset, _SCHEME))]
    for index, party in enumerate(_COMPUTING):
        if party != held_by:
            gives += [Sees(asset, party, Share(_SCHEME, index)), Sees(asset, party, MaskedValue(_SCHEME))]
    gives += [Sees(asset, Party.DEALER, Mask(_SCHEME)), Sees(asset, Party.NETWORK, SizesAndTiming(), _TLS)]
    return tuple(gives)


def _inputs_of_the_client() -> tuple[Transition, ...]:
    """The client holds what enters the model: pixels, table rows, or embedding rows that it looked up."""
    held = (Has(Local, Asset.INPUTS, (("party", Party.CLIENT),)),)
    fix = "Let the client hold the inputs"
    count = (
        Sees(Asset.TOKEN_IDS, Party.SERVER, SizesAndTiming(), _DESCRIPTOR),
        Sees(Asset.TOKEN_IDS, Party.DEALER, SizesAndTiming(), _OFFLINE),
        Sees(Asset.TOKEN_IDS, Party.NETWORK, SizesAndTiming(), _TLS),
    )
    return (
        Transition("announce the request", Phase.SHARE, held, (*_descriptor(), *count), "the client makes the request", fix),
        Transition("share the inputs", Phase.SHARE, held, _shared(Asset.INPUTS, held_by=Party.CLIENT), _LOCAL, fix),
    )


def _rows_of_the_server() -> tuple[Transition, ...]:
    """What enters the model is looked up on shares: the client's token ids select rows of the server's tables."""
    held = (Has(Local, Asset.TOKEN_IDS, (("party", Party.CLIENT),)),)
    tables = (Has(Local, Asset.EMBEDDINGS, (("party", Party.SERVER),)),)
    fix = "Let the client hold the token ids"
    return (
        Transition("announce the request", Phase.SHARE, held, _descriptor(), "the client makes the request", fix),
        Transition(
            "mask the embedding tables",
            Phase.SHARE,
            tables,
            _shared(Asset.EMBEDDINGS, held_by=Party.SERVER),
            _LOCAL,
            "Let the server hold the embedding tables",
        ),
        Transition(
            "look up the token ids",
            Phase.SHARE,
            (*held, Has(Shared, Asset.EMBEDDINGS, (("scheme", _SCHEME),))),
            (*_shared(Asset.TOKEN_IDS, held_by=Party.CLIENT), *_shared(Asset.INPUTS)),
            "the client selects rows of a shared table by positions that it knows",
            fix,
        ),
    )


def _descriptor() -> tuple[Give, ...]:
    return (
        Sees(Asset.MASK, Party.SERVER, Plaintext(), _PUBLIC),
        Sees(Asset.MASK, Party.NETWORK, SizesAndTiming(), _TLS),
        Sees(Asset.SHAPES, Party.SERVER, Plaintext(), _PUBLIC),
        Sees(Asset.SHAPES, Party.DEALER, SizesAndTiming(), _OFFLINE),
        Sees(Asset.SHAPES, Party.NETWORK, SizesAndTiming(), _TLS),
    )
