"""The suite passes for the built-ins and for a sound plugin, and catches planted violations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from privtensors.backends.clear.technique import Clear
from privtensors.backends.mpc.technique import MPC
from privtensors.errors import CompositionError
from privtensors.policy import Asset, Guarantee, Scene, Stage, Technique
from privtensors.policy.forms import Plaintext
from privtensors.policy.state import Sees, Transition
from privtensors.testing.technique_suite import TechniqueSuite
from tests.unit.policy import toys


class TestMPC(TechniqueSuite):
    bad_parameters = ({"fractional_bits": 15}, {"fractional_bits": 21}, {"embeddings": "dealer"})

    @pytest.fixture
    def technique(self) -> Technique:
        return MPC()


class TestMPCWithServerAsReceiver(TestMPC):
    receiver = "server"


class TestMPCWithTablesOfTheServer(TestMPC):
    @pytest.fixture
    def technique(self) -> Technique:
        return MPC(embeddings="server")


class TestMPCWithTablesOfTheServerAsReceiver(TestMPCWithTablesOfTheServer):
    receiver = "server"


class TestMPCWithTheLargestIndexOnly(TestMPC):
    outputs = "argmax"


class TestMPCWithTheLargestIndexForTheServer(TestMPC):
    receiver = "server"
    outputs = "argmax"


class TestClear(TechniqueSuite):
    @pytest.fixture
    def technique(self) -> Technique:
        return Clear()


@pytest.mark.usefixtures("installed")
class TestScramble(TechniqueSuite):
    """A sound plugin."""

    @pytest.fixture
    def technique(self) -> Technique:
        return toys.Scramble()


@dataclass(frozen=True)
class Leaky(toys.Scramble):
    """Promises to hide token ids from the server and sends them all the same."""

    name: ClassVar[str] = "toy-leaky"

    def transitions(self, scene: Scene) -> tuple[Transition, ...]:
        first, *rest = super().transitions(scene)
        leak = Sees(Asset.TOKEN_IDS, "server", Plaintext())
        return (Transition(first.name, first.phase, first.needs, (*first.gives, leak), first.reason), *rest)


@dataclass(frozen=True)
class Boastful(toys.Scramble):
    """Does not declare that client and server together hold the activations."""

    name: ClassVar[str] = "toy-boastful"

    def breaks_under(self, scene: Scene) -> Mapping[frozenset[str], frozenset[str]]:
        return {}


@dataclass(frozen=True)
class Modest(toys.Scramble):
    """Declares a collusion that breaks nothing more."""

    name: ClassVar[str] = "toy-modest"

    def breaks_under(self, scene: Scene) -> Mapping[frozenset[str], frozenset[str]]:
        return {frozenset({"client", "server"}): frozenset({Asset.ACTIVATIONS, "secrets of the state"})}


@dataclass(frozen=True)
class Vague(toys.Scramble):
    name: ClassVar[str] = "toy-vague"
    assumptions: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True)
class Hollow(toys.Scramble):
    """Claims a guarantee and hides nothing."""

    name: ClassVar[str] = "toy-hollow"

    def hidden_from(self, scene: Scene) -> Mapping[str, frozenset[str]]:
        return {}


@dataclass(frozen=True)
class Lax(toys.Scramble):
    """Takes any number of rounds."""

    name: ClassVar[str] = "toy-lax"
    rounds: int = 1


@dataclass(frozen=True)
class Mumbling(toys.Scramble):
    """Has needs and gives no reason."""

    name: ClassVar[str] = "toy-mumbling"

    def transitions(self, scene: Scene) -> tuple[Transition, ...]:
        first, *rest = super().transitions(scene)
        return (Transition(first.name, first.phase, first.needs, first.gives), *rest)


@dataclass(frozen=True)
class Everywhere(toys.Scramble):
    """Says that it supports training, where it cannot stand."""

    name: ClassVar[str] = "toy-everywhere"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.INFER, Stage.TRAIN})

    def owners(self, stage: Stage) -> Mapping[str, frozenset[str]]:
        return {Asset.WEIGHTS: frozenset()} if stage is Stage.TRAIN else super().owners(stage)


class Soft(toys.Scramble):
    """Forgot the dataclass decorator."""

    name: ClassVar[str] = "toy-soft"


class Strict(TechniqueSuite):
    bad_parameters = ({"rounds": 0},)


CAUGHT: list[tuple[Technique, Callable[[Any, Technique], None]]] = [
    (Leaky(), TechniqueSuite.test_policy_builds_in_supported_stages),
    (Boastful(), TechniqueSuite.test_collusions_are_as_declared),
    (Modest(), TechniqueSuite.test_collusions_are_as_declared),
    (Vague(), TechniqueSuite.test_states_guarantee_and_assumptions),
    (Vague(), TechniqueSuite.test_is_documented),
    (Hollow(), TechniqueSuite.test_protection_comes_with_a_promise),
    (Lax(), TechniqueSuite.test_bad_parameters_are_refused),
    (Mumbling(), TechniqueSuite.test_transitions_are_typed),
    (Everywhere(), TechniqueSuite.test_policy_builds_in_supported_stages),
    (Soft(), TechniqueSuite.test_is_a_frozen_dataclass),
]


@pytest.mark.parametrize(("technique", "check"), CAUGHT, ids=lambda x: getattr(x, "name", None) or x.__name__)
def test_planted_violations_are_caught(technique: Technique, check: Callable[[Any, Technique], None]) -> None:
    with pytest.raises((AssertionError, CompositionError, pytest.fail.Exception)):
        check(Strict() if isinstance(technique, Lax) else TechniqueSuite(), technique)


def test_the_sound_original_passes_the_same_checks() -> None:
    for _, check in CAUGHT:
        check(TechniqueSuite(), toys.Scramble())


def test_an_unregistered_technique_is_caught() -> None:
    with pytest.raises(Exception, match="no technique 'toy-scramble'"):
        TechniqueSuite().test_name_is_registered(toys.Scramble())


def test_guarantees_are_ordered_weakest_first() -> None:
    assert next(iter(Guarantee)) is Guarantee.NONE and all(g.meaning for g in Guarantee)
