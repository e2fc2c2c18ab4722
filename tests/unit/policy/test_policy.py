"""Building a policy: what composes, what is refused, and that every refusal says why."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from privtensors.backends.clear.technique import Clear
from privtensors.backends.mpc.technique import MPC
from privtensors.errors import CompositionError, ParameterError, PolicyError, UnknownTechnique
from privtensors.policy import Asset, Party, Policy, Role, Technique
from privtensors.policy.forms import Plaintext
from tests.unit.policy import toys


def refused(**given: object) -> CompositionError:
    with pytest.raises(CompositionError) as caught:
        Policy(**given)  # type: ignore[arg-type]
    assert caught.value.reason and isinstance(caught.value, PolicyError)
    return caught.value


def test_names_and_objects_give_the_same_policy() -> None:
    assert Policy(infer=["mpc"]) == Policy(infer=(MPC(),)) == Policy(infer={MPC()})
    assert hash(Policy(infer=["mpc"])) == hash(Policy(infer=[MPC()]))
    assert Policy(infer=[MPC(fractional_bits=20)]) != Policy(infer=[MPC()])


def test_an_absent_stage_is_simply_absent() -> None:
    policy = Policy(infer=[MPC()])
    assert policy.train == policy.release == () and [o.stage for o in policy.outcomes] == ["infer"]
    assert policy.techniques("infer") == (MPC(),) and policy.techniques("train") == ()


def test_the_technique_that_fills_a_role_is_found() -> None:
    policy = Policy(infer=[MPC()])
    assert policy.holder("infer", Role.NONLINEAR) == MPC()
    assert policy.holder("infer", Role.SAMPLER) is None and policy.holder("train", Role.NONLINEAR) is None


def test_policy_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Policy(infer=[MPC()]).receiver = "server"  # type: ignore[misc]


def test_mpc_does_not_release() -> None:
    error = refused(release=[MPC()])
    assert "MPC does not support stage release" in str(error) and "infer, train" in error.fix
    assert (error.technique, error.stage) == ("mpc", "release")


def test_two_techniques_that_compute_are_refused() -> None:
    error = refused(infer=[MPC(), Clear()])
    assert "clear and mpc" in error.reason and "nonlinear layers" in error.reason and error.fix


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "protects nothing"),
        ({"infer": [MPC(), MPC(fractional_bits=20)]}, "listed 2 times"),
        ({"infer": [MPC]}, r"Write MPC() to make one"),
        ({"infer": MPC()}, "Put it in a list"),
        ({"infer": "mpc"}, "Put it in a list"),
        ({"infer": None}, "Put it in a list"),
        ({"infer": [3]}, "int is not a technique"),
        ({"infer": [{"technique": "mpc"}]}, "dict is not a technique"),
        ({"infer": [MPC()], "receiver": "bob"}, "client, dealer, server"),
        ({"infer": [MPC()], "receiver": "network"}, "client, dealer, server"),
        ({"infer": [MPC()], "receiver": "dealer"}, "Receivers it allows: client, server"),
        ({"infer": [MPC()], "receiver": 3}, "must be a party's name"),
        ({"train": ["clear"]}, "does not support stage train"),
        ({"release": [Clear()]}, "does not support stage release"),
    ],
)
def test_refusals_say_why_and_what_to_do(given: dict[str, object], said: str) -> None:
    error = refused(**given)
    assert said in str(error) and error.fix and error.where.startswith("policy")


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnknownTechnique, match=r"policy\.infer: no technique 'mcp'.*clear.*mpc"):
        Policy(infer=["mcp"])


@pytest.mark.parametrize(
    "bad",
    [
        {"fractional_bits": 15},
        {"fractional_bits": 21},
        {"fractional_bits": 18.0},
        {"fractional_bits": True},
        {"fractional_bits": "18"},
        {"embeddings": "dealer"},
        {"embeddings": None},
    ],
)
def test_bad_parameters_of_mpc(bad: dict[str, object]) -> None:
    with pytest.raises(ParameterError, match=r"MPC\."):
        MPC(**bad)  # type: ignore[arg-type]


def test_receiver_server_is_possible() -> None:
    policy = Policy(infer=[MPC()], receiver="server")
    view = policy.explain().view
    assert "plaintext" in {str(f) for f in view("server")["outputs"]}
    assert "plaintext" not in {str(f) for f in view("client")["outputs"]}


# The toys are shaped like the techniques to come.

INFER_ALONE = (toys.Scramble(), toys.Locked())


@pytest.mark.parametrize("technique", INFER_ALONE, ids=lambda t: t.name)
def test_future_shapes_build(technique: Technique) -> None:
    assert Policy(infer=[technique]).holder("infer", Role.LINEAR) == technique


def test_a_yielding_claim_gives_way_and_the_rest_composes() -> None:
    policy = Policy(infer=[toys.Locked(), toys.Curve()])
    assert policy.holder("infer", Role.LINEAR) == toys.Locked() and policy.holder("infer", Role.NONLINEAR) == toys.Curve()


def test_a_need_that_is_not_met_is_named_with_its_phase() -> None:
    error = refused(infer=[toys.Curve()])
    assert (error.technique, error.stage, error.phase) == ("toy-curve", "infer", "aggregate/compute")
    assert "inputs must be Encrypted" in error.reason and "continues from ciphertext" in error.reason and error.fix == "Add an encryption"


def test_noise_on_unbounded_values_is_refused() -> None:
    error = refused(train=[toys.Noise(), toys.Sum()])
    assert error.phase == "noise at the owner" and "unbounded" in error.reason


def test_noise_without_aggregation_is_refused() -> None:
    error = refused(train=[toys.Noise(), toys.Clip()])
    assert error.phase == "release" and "nothing was noised" in error.reason


def test_obfuscation_never_counts_as_encryption() -> None:
    @dataclasses.dataclass(frozen=True)
    class Follow(toys.Curve):
        """Nonlinear layers after something else did the linear ones; claims nothing firm."""

        name = "toy-follow"

        def claims(self, stage: object) -> frozenset[object]:  # type: ignore[override]
            return frozenset()

    assert "inputs must be Encrypted" in refused(infer=[toys.Scramble(), Follow()]).reason


def test_central_and_distributed_noise_leave_different_views() -> None:
    central = Policy(train=[toys.Clip(), toys.Noise(), toys.Sum()]).explain().view(Party.AGGREGATOR)
    shared = Policy(train=[toys.Clip(), toys.Noise(), toys.SecureSum()]).explain().view(Party.AGGREGATOR)
    assert {str(f) for f in central["aggregate of updates"]} == {"aggregate of 10"}  # it added the noise: it saw the sum
    assert all("noised" in str(f) for f in shared["aggregate of updates"]) and shared["aggregate of updates"]
    assert {str(f) for f in shared["client updates"]} == {"share 1 of 2"}


def test_a_promise_that_another_technique_breaks_is_refused() -> None:
    error = refused(infer=[MPC(), toys.Telemetry()])
    assert error.technique == "mpc" and "promises to hide inputs from server" in error.reason and "toy-telemetry" in error.reason


def test_two_owners_of_one_asset_are_refused() -> None:
    class Elsewhere(toys.Telemetry):
        """Wants the embedding tables at the server."""

        name = "toy-elsewhere"

        def owners(self, stage: object) -> dict[str, frozenset[str]]:  # type: ignore[override]
            return {"embedding tables": frozenset({"server"})}

    assert "embedding tables to start at" in refused(infer=[MPC(), Elsewhere()]).reason


def test_inference_that_delivers_nothing_is_refused() -> None:
    assert "delivers outputs to 'client'" in refused(infer=[toys.Telemetry()]).reason


def test_a_give_to_an_undeclared_party_is_refused() -> None:
    class Sly(toys.Telemetry):
        """Does not declare the server."""

        name = "toy-sly"

        def parties(self, stage: object) -> frozenset[str]:  # type: ignore[override]
            return frozenset({"client"})

    assert "without declaring that party" in refused(infer=[Sly()]).reason


def test_noise_persists_into_later_stages() -> None:
    policy = Policy(train=[toys.Clip(), toys.Noise(), toys.SecureSum()], infer=[MPC()])
    assert [o.stage for o in policy.outcomes] == ["train", "infer"]
    assert any(type(f).__name__ == "Noised" for f in policy.outcomes[1].state.facts)
    assert not any(type(f).__name__ == "Bounded" for f in policy.outcomes[1].state.facts)


def test_only_the_largest_index_is_revealed() -> None:
    policy = Policy(infer=[MPC()], outputs="argmax")
    assert policy.outputs == "argmax" and policy != Policy(infer=[MPC()])
    said = policy.explain()
    assert [(r.asset, r.party, r.form) for r in said.reveals] == [("outputs", "client", "index of the largest only")]
    assert Plaintext() not in said.view("client")[Asset.OUTPUTS]
    (row,) = [r for r in said.rows if (r.party, r.asset) == ("client", "outputs")]
    assert row.form.startswith("index of the largest only") and row.guarantee == "computational"
    joined = {(c.parties, "outputs" in c.assets) for c in said.collusions}
    assert (("client", "server"), True) in joined and (("client", "dealer"), True) in joined


def test_a_technique_that_opens_outputs_in_full_is_refused() -> None:
    with pytest.raises(CompositionError, match="the policy promises server the index of the largest output only, but clear gives it"):
        Policy(infer=["clear"], outputs="argmax", receiver="server")


@pytest.mark.parametrize("bad", ["logits", "", None, 3])
def test_unknown_outputs_are_refused(bad: Any) -> None:
    with pytest.raises(CompositionError, match=r"policy\.outputs.*Allowed: full, argmax"):
        Policy(infer=[MPC()], outputs=bad)


def test_outputs_are_about_inference() -> None:
    with pytest.raises(CompositionError, match="there is no infer stage"):
        Policy(train=[toys.Telemetry()], outputs="argmax")
