"""``Obfuscation`` with every other technique, in every stage: it works, or is refused with the reason. It counts as nothing stronger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest

from privtensors import DP, MPC, Obfuscation, Policy
from privtensors.errors import CompositionError
from privtensors.policy import Asset, Guarantee, Party, Phase, Scene, Stage, Technique, Transition
from privtensors.policy.facts import Encrypted, Fact, Noised, Shared
from privtensors.policy.forms import NoisedValue, ObfuscatedValue, Plaintext
from privtensors.policy.state import Has, Opens, Sees

SCHEMES: tuple[Literal["equivariant", "sentinel"], ...] = ("equivariant", "sentinel")
WORKS = "works"
TRAIN, RELEASE = "never counts as differential privacy", "a release must be NOISED"
HEURISTIC = "the heuristic one never counts as the other"
EXPECTED = {
    ("train", "clear"): "does not support stage",
    ("train", "mpc"): TRAIN,
    ("train", "dp"): TRAIN,
    ("infer", "clear"): "both claim to compute",
    ("infer", "mpc"): HEURISTIC,
    ("infer", "dp"): "DP does not support stage infer",
    ("release", "clear"): "does not support stage",
    ("release", "mpc"): "does not support stage",
    ("release", "dp"): RELEASE,
}


def other(name: str) -> Technique | str:
    return DP(epsilon=3.0, dataset="reviews") if name == "dp" else name


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("stage", "name"), EXPECTED)
def test_in_one_stage(stage: str, name: str, scheme: Literal["equivariant", "sentinel"]) -> None:
    members = [Obfuscation(scheme), other(name)]
    with pytest.raises(CompositionError) as refused:
        Policy(**{stage: members})
    assert EXPECTED[stage, name] in refused.value.reason and refused.value.fix and refused.value.stage == stage
    with pytest.raises(CompositionError) as again:
        Policy(**{stage: members[::-1]})
    assert str(again.value) == str(refused.value)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_twice_in_one_stage(scheme: Literal["equivariant", "sentinel"]) -> None:
    with pytest.raises(CompositionError, match="listed 2 times"):
        Policy(infer=[Obfuscation(), Obfuscation(scheme, key="other.json")])


@pytest.mark.parametrize("stage", ["train", "release"])
def test_alone_it_trains_and_releases_nothing(stage: str) -> None:
    with pytest.raises(CompositionError) as refused:
        Policy(**{stage: [Obfuscation()]})
    assert (TRAIN if stage == "train" else RELEASE) in refused.value.reason and refused.value.technique == "obfuscation"


def test_no_receiver_without_the_key_and_no_reduced_outputs() -> None:
    with pytest.raises(CompositionError, match="cannot reveal outputs to receiver 'server'"):
        Policy(infer=[Obfuscation()], receiver="server")
    with pytest.raises(CompositionError, match="index of the largest output only"):
        Policy(infer=[Obfuscation()], outputs="argmax")


# Across stages.


@pytest.mark.parametrize("scheme", SCHEMES)
def test_trained_with_dp_and_served_obfuscated(scheme: Literal["equivariant", "sentinel"]) -> None:
    """Each keeps its own promise: noise for the training data, a heuristic for the inputs, and neither stands for the other."""
    policy = Policy(train=[DP(epsilon=3.0, dataset="reviews")], infer=[Obfuscation(scheme)])
    assert Policy.from_toml(policy.to_toml()) == policy
    found = policy.explain()
    assert [(p.stage, p.technique, p.guarantee) for p in found.promises] == [
        ("train", "dp", "statistical"), ("infer", "obfuscation", "heuristic"),
    ]  # fmt: skip
    public = found.view("public", stage="train")["trained weights"]
    assert any(isinstance(form, NoisedValue) for form in public) and not any(isinstance(form, ObfuscatedValue) for form in public)
    seen = found.view("server", stage="infer")
    assert not any(isinstance(form, NoisedValue) for forms in seen.values() for form in forms), "inputs are not noised by training"


def test_released_with_dp_beside_obfuscated_serving() -> None:
    found = Policy(infer=[Obfuscation()], release=[DP(unit="row", dataset="reviews", bounds=(0.0, 1.0))]).explain()
    assert {p.technique: p.guarantee for p in found.promises} == {"obfuscation": "heuristic", "dp": "statistical"}


def test_trained_on_shares_and_served_obfuscated_says_what_each_is() -> None:
    found = Policy(train=[MPC()], infer=[Obfuscation()]).explain()
    assert {p.technique: p.guarantee for p in found.promises} == {"mpc": "computational", "obfuscation": "heuristic"}
    served = [row for row in found.rows if row.stage == "infer" and row.party == "server" and row.form == "obfuscated"]
    assert served and {row.guarantee for row in served} == {"heuristic"}


# Whatever else needs noise, shares or a ciphertext is not served by obfuscation.


@dataclass(frozen=True)
class Consumer(Technique):
    """Forwards an asset to an analyst, if it is protected by something stronger."""

    name: ClassVar[str] = "toy-consumer"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.INFER})
    guarantee: ClassVar[Guarantee] = Guarantee.COMPUTATIONAL
    assumptions: ClassVar[tuple[str, ...]] = ("toys are trusted",)

    asset: str = Asset.TOKEN_IDS
    wants: str = "Encrypted"

    def parties(self, stage: Stage) -> frozenset[str]:
        return frozenset({Party.CLIENT, Party.SERVER, "analyst"})

    def transitions(self, scene: Scene) -> tuple[Transition, ...]:
        kinds: dict[str, type[Fact]] = {"Encrypted": Encrypted, "Shared": Shared, "Noised": Noised}
        return (Transition("forward it", Phase.RELEASE, (Has(kinds[self.wants], self.asset),), (), "it must be protected", "Protect it"),)

    def hidden_from(self, scene: Scene) -> Mapping[str, frozenset[str]]:
        return {self.asset: frozenset({"analyst"})}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("wants", ["Encrypted", "Shared", "Noised"])
@pytest.mark.parametrize("asset", [Asset.TOKEN_IDS, Asset.EMBEDDINGS, Asset.WEIGHTS, Asset.OUTPUTS])
def test_obfuscated_meets_no_stronger_need(asset: str, wants: str, scheme: Literal["equivariant", "sentinel"]) -> None:
    with pytest.raises(CompositionError) as refused:
        Policy(infer=[Obfuscation(scheme), Consumer(str(asset), wants)])
    assert f"{asset} must be {wants}" in refused.value.reason and refused.value.technique == "toy-consumer"


@dataclass(frozen=True)
class Shower(Consumer):
    """Gives the server a plain copy of what obfuscation hides."""

    name: ClassVar[str] = "toy-shower"

    def transitions(self, scene: Scene) -> tuple[Transition, ...]:
        return (Transition("show it", Phase.COMPUTE, (), (Sees(self.asset, Party.SERVER, Plaintext()),)),)


@pytest.mark.parametrize("asset", [Asset.TOKEN_IDS, Asset.INPUTS, Asset.OUTPUTS, Asset.ACTIVATIONS])
def test_what_it_hides_no_other_technique_may_show(asset: str) -> None:
    with pytest.raises(CompositionError, match=f"obfuscation promises to hide {asset} from server"):
        Policy(infer=[Obfuscation(), Shower(str(asset))])


@dataclass(frozen=True)
class Early(Consumer):
    """Opens the token ids themselves to the analyst."""

    name: ClassVar[str] = "toy-early"

    def transitions(self, scene: Scene) -> tuple[Transition, ...]:
        return (Transition("open them", Phase.REVEAL, (), (Opens(Asset.TOKEN_IDS, "analyst"),)),)

    def hidden_from(self, scene: Scene) -> Mapping[str, frozenset[str]]:
        return {}


def test_what_is_opened_after_obfuscation_comes_out_obfuscated_not_noised() -> None:
    view = Policy(infer=[Obfuscation(), Early()]).explain().view("analyst")[Asset.TOKEN_IDS]
    assert {type(form) for form in view} == {ObfuscatedValue}
