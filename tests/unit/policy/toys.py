"""Toy techniques shaped like those to come: they show that the machinery takes them without change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from privtensors.errors import ParameterError
from privtensors.policy import Asset, Claim, Guarantee, Party, Phase, Role, Scene, Stage, Technique, Transition
from privtensors.policy.facts import Aggregated, Bounded, Encrypted, Local, Noised, Obfuscated, Sampled, Shared
from privtensors.policy.forms import Aggregate, Ciphertext, Key, ObfuscatedValue, Plaintext, Share
from privtensors.policy.state import AnyOf, Establishes, Has, Lacks, Opens, Sees

CLIENT, SERVER, NETWORK, AGGREGATOR = Party.CLIENT, Party.SERVER, Party.NETWORK, Party.AGGREGATOR


@dataclass(frozen=True)
class Toy(Technique):
    """Base of the toys."""

    guarantee: ClassVar[Guarantee] = Guarantee.COMPUTATIONAL
    assumptions: ClassVar[tuple[str, ...]] = ("toys are trusted",)
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.TRAIN})

    def parties(self, stage: Stage) -> frozenset[str]:
        return frozenset({CLIENT, AGGREGATOR})

    def hidden_from(self, scene: Scene) -> Mapping[str, frozenset[str]]:
        return {}


@dataclass(frozen=True)
class Poisson(Toy):
    """Samples records at random."""

    name: ClassVar[str] = "toy-poisson"

    def claims(self, stage: Stage) -> frozenset[Claim]:
        return frozenset({Claim(Role.SAMPLER)})

    def transitions(self, scene: Scene) -> tuple[Transition, ...]:
        return (
            Transition(
                "sample records",
                Phase.SAMPLE,
                (Has(Local, Asset.EXAMPLES),),
                (Establishes(Sampled(Asset.EXAMPLES, 0.01, frozenset({AGGREGATOR}))),),
                "only the owner can sample",
            ),
        )


@dataclass(frozen=True)
class Clip(Toy):
    """Bounds each client's update."""

    name: ClassVar[str] = "toy-clip"

    def transitions(self, scene: Scene) -> tuple[Transition, ...]:
        return (Transition("clip", Phase.BOUND, gives=(Establishes(Bounded(Asset.UPDATES, 1.0, "client", True)),)),)


@dataclass(frozen=True)
class Sum(Toy):
    """Sums client updates in plain at the aggregator."""

    name: ClassVar[str] = "toy-sum"
    clients: int = 10

    def check(self) -> None:
        if self.clients < 2:
            raise ParameterError("must be at least 2", where="Sum.clients")

    def claims(self, stage: Stage) -> frozenset[Claim]:
        return frozenset({Claim(Role.AGGREGATOR)})

    def transitions(self, scene: Scene) -> tuple[Transition, ...]:
        gives = (
            Sees(Asset.UPDATES, AGGREGATOR, Plaintext()),
            Establishes(Aggregated(Asset.AGGREGATE, self.clients)),
            Sees(Asset.AGGREGATE, AGGREGATOR, Aggregate(self.clients)),
        )
        return (
            Transition("sum", Phase.COMPUTE, gives=gives),
            Transition("publish", Phase.REVEAL, (Has(Aggregated, Asset.AGGREGATE),), (Opens(Asset.AGGREGATE, CLIENT, "round"),), "no sum"),
        )


@dataclass(frozen=True)
class SecureSum(Sum):
    """Sums client updates under shares: the aggregator sees only the sum."""

    name: ClassVar[str] = "toy-secure-sum"

    def transitions(self, scene: Scene) -> tuple[Transition, ...]:
        share = (Establishes(Shared(Asset.UPDATES, "toy-secagg")), Sees(Asset.UPDATES, AGGREGATOR, Share("toy-secagg", 0)))
        return (
            Transition("share the updates", Phase.SHARE, gives=share),
            Transition(
                "sum shares",
                Phase.COMPUTE,
                (Has(Shared, Asset.UPDATES),),
                (Establishes(Aggregated(Asset.AGGREGATE, self.clients)),),
                "updates are summed under shares",
            ),
            Transition(
                "open the sum",
                Phase.REVEAL,
                (AnyOf((Has(Shared, Asset.UPDATES), Has(Encrypted, Asset.UPDATES))),),
                (Opens(Asset.AGGREGATE, AGGREGATOR, "round"), Opens(Asset.AGGREGATE, CLIENT, "round")),
                "only a protected sum can be opened",
            ),
        )

    def hidden_from(self, scene: Scene) -> Mapping[str, frozenset[str]]:
        return {Asset.UPDATES: frozenset({AGGREGATOR})}


@dataclass(frozen=True)
class Noise(Toy):
    """Adds noise at the owners where the sum is shared, at the aggregator otherwise."""

    name: ClassVar[str] = "toy-noise"
    guarantee: ClassVar[Guarantee] = Guarantee.STATISTICAL
    epsilon: float = 3.0

    def check(self) -> None:
        if self.epsilon <= 0:
            raise ParameterError("must be positive", where="Noise.epsilon")

    def claims(self, stage: Stage) -> frozenset[Claim]:
        return frozenset({Claim(Role.NOISER)})

    def transitions(self, scene: Scene) -> tuple[Transition, ...]:
        bounded = Has(Bounded, Asset.UPDATES)
        noised = Establishes(Noised(Asset.AGGREGATE, self.epsilon, 1e-5, "client", "zero-out", AGGREGATOR))
        return (
            Transition(
                "bound what is noised", Phase.NOISE_OWNER, (bounded,), (), "noise on unbounded values protects nobody", "Add a clip"
            ),
            Transition(
                "add the shares' noise up",
                Phase.COMPUTE,
                (Has(Shared, Asset.UPDATES), Has(Aggregated, Asset.AGGREGATE)),
                (noised,),
                optional=True,
            ),
            Transition(
                "add noise centrally",
                Phase.NOISE_CENTRAL,
                (bounded, Has(Aggregated, Asset.AGGREGATE, (("weights", "uniform"),)), Lacks(Noised, Asset.AGGREGATE)),
                (noised,),
                optional=True,
            ),
            Transition("release", Phase.RELEASE, (Has(Noised, Asset.AGGREGATE),), (), "nothing was noised", "Add an aggregation"),
        )


@dataclass(frozen=True)
class Scramble(Toy):
    """Obfuscates the model and runs it at the server: heuristic."""

    name: ClassVar[str] = "toy-scramble"
    guarantee: ClassVar[Guarantee] = Guarantee.HEURISTIC
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.INFER})

    def parties(self, stage: Stage) -> frozenset[str]:
        return frozenset({CLIENT, SERVER})

    def claims(self, stage: Stage) -> frozenset[Claim]:
        return frozenset({Claim(Role.LINEAR), Claim(Role.NONLINEAR)})

    def owners(self, stage: Stage) -> Mapping[str, frozenset[str]]:
        return {Asset.WEIGHTS: frozenset({CLIENT}), Asset.EMBEDDINGS: frozenset({CLIENT}), Asset.KEYS: frozenset()}

    def transitions(self, scene: Scene) -> tuple[Transition, ...]:
        form = ObfuscatedValue("passkey")
        at_server = tuple(Sees(a, SERVER, form) for a in (Asset.TOKEN_IDS, Asset.WEIGHTS, Asset.EMBEDDINGS))
        computed = tuple(Sees(a, SERVER, form) for a in (Asset.ACTIVATIONS, Asset.OUTPUTS))
        return (
            Transition(
                "scramble",
                Phase.SHARE,
                (Has(Local, Asset.WEIGHTS),),
                (Establishes(Obfuscated(Asset.WEIGHTS, CLIENT, "passkey")), Sees(Asset.KEYS, CLIENT, Key("passkey")), *at_server),
                "the owner scrambles what it holds",
            ),
            Transition("run the scrambled model", Phase.COMPUTE, gives=computed),
            Transition("unscramble the outputs", Phase.REVEAL, gives=(Opens(Asset.OUTPUTS, CLIENT),)),
        )

    def hidden_from(self, scene: Scene) -> Mapping[str, frozenset[str]]:
        return {a: frozenset({SERVER}) for a in (Asset.TOKEN_IDS, Asset.WEIGHTS, Asset.EMBEDDINGS, Asset.ACTIVATIONS, Asset.OUTPUTS)}

    def breaks_under(self, scene: Scene) -> Mapping[frozenset[str], frozenset[str]]:
        return {frozenset({CLIENT, SERVER}): frozenset({Asset.ACTIVATIONS})}


@dataclass(frozen=True)
class Locked(Toy):
    """The client encrypts inputs; the server computes linear layers on ciphertext."""

    name: ClassVar[str] = "toy-locked"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.INFER})

    def parties(self, stage: Stage) -> frozenset[str]:
        return frozenset({CLIENT, SERVER})

    def claims(self, stage: Stage) -> frozenset[Claim]:
        return frozenset({Claim(Role.LINEAR), Claim(Role.NONLINEAR, yields=True)})

    def transitions(self, scene: Scene) -> tuple[Transition, ...]:
        locked = Ciphertext("toy", "client's key")
        steps = [
            Transition(
                "encrypt",
                Phase.SHARE,
                (Has(Local, Asset.INPUTS),),
                (
                    Establishes(Encrypted(Asset.INPUTS, "toy", CLIENT)),
                    Sees(Asset.INPUTS, SERVER, locked),
                    Sees(Asset.KEYS, CLIENT, Key("client's key")),
                ),
                "the owner encrypts",
            ),
            Transition(
                "multiply", Phase.COMPUTE, (Has(Encrypted, Asset.INPUTS),), (Sees(Asset.ACTIVATIONS, SERVER, locked),), "on ciphertext"
            ),
        ]
        if Role.NONLINEAR in scene.roles:
            steps.append(Transition("decrypt", Phase.REVEAL, gives=(Sees(Asset.OUTPUTS, SERVER, locked), Opens(Asset.OUTPUTS, CLIENT))))
        return tuple(steps)

    def hidden_from(self, scene: Scene) -> Mapping[str, frozenset[str]]:
        return {Asset.INPUTS: frozenset({SERVER}), Asset.ACTIVATIONS: frozenset({SERVER})}

    def breaks_under(self, scene: Scene) -> Mapping[frozenset[str], frozenset[str]]:
        return {frozenset({CLIENT, SERVER}): frozenset({Asset.ACTIVATIONS})}


@dataclass(frozen=True)
class Curve(Toy):
    """Computes nonlinear layers only, on what another technique encrypted."""

    name: ClassVar[str] = "toy-curve"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.INFER})

    def parties(self, stage: Stage) -> frozenset[str]:
        return frozenset({CLIENT, SERVER})

    def claims(self, stage: Stage) -> frozenset[Claim]:
        return frozenset({Claim(Role.NONLINEAR), Claim(Role.LINEAR, yields=True)})

    def transitions(self, scene: Scene) -> tuple[Transition, ...]:
        return (
            Transition("bend", Phase.COMPUTE, (Has(Encrypted, Asset.INPUTS),), (), "it continues from ciphertext", "Add an encryption"),
            Transition("hand out", Phase.REVEAL, gives=(Opens(Asset.OUTPUTS, CLIENT),)),
        )


@dataclass(frozen=True)
class Telemetry(Toy):
    """Sends inputs to the server in plain: undoes what others promise."""

    name: ClassVar[str] = "toy-telemetry"
    guarantee: ClassVar[Guarantee] = Guarantee.NONE
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.INFER})

    def parties(self, stage: Stage) -> frozenset[str]:
        return frozenset({CLIENT, SERVER})

    def transitions(self, scene: Scene) -> tuple[Transition, ...]:
        return (Transition("log the inputs", Phase.COMPUTE, gives=(Sees(Asset.INPUTS, SERVER, Plaintext()),)),)
