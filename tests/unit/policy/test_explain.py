"""Who sees what."""

from __future__ import annotations

import json

import pytest

from privtensors.backends.clear.technique import Clear
from privtensors.backends.mpc.technique import MPC
from privtensors.errors import PolicyError
from privtensors.policy import Explanation, Policy
from tests.unit.policy import toys

MPC_POLICY = Policy(infer=[MPC()])


def cell(explanation: Explanation, party: str, asset: str) -> str:
    (row,) = [r for r in explanation.rows if (r.party, r.asset) == (party, asset)]
    return row.form


def joined(*parties: str) -> dict[str, str]:
    return {row.asset: row.form for row in MPC_POLICY.explain(collude=parties).joined}


@pytest.mark.parametrize(
    ("party", "asset", "form"),
    [
        ("client", "token ids", "plaintext"),
        ("client", "inputs", "plaintext"),
        ("client", "embedding tables", "plaintext"),
        ("client", "model weights", "masked values; share 1 of 2"),
        ("client", "activations", "masked values; share 1 of 2"),
        ("client", "outputs", "plaintext"),
        ("server", "model weights", "plaintext"),
        ("server", "token ids", "sizes and timing only"),
        ("server", "embedding tables", "nothing"),
        ("server", "inputs", "masked values; share 2 of 2"),
        ("server", "activations", "masked values; share 2 of 2"),
        ("server", "outputs", "masked values; share 2 of 2"),
        ("server", "attention mask", "plaintext"),
        ("server", "shapes and timing", "plaintext"),
        ("dealer", "inputs", "masks it made"),
        ("dealer", "activations", "masks it made"),
        ("dealer", "shapes and timing", "sizes and timing only"),
        ("dealer", "attention mask", "nothing"),
        ("network", "inputs", "sizes and timing only"),
        ("network", "outputs", "sizes and timing only"),
        ("network", "embedding tables", "nothing"),
    ],
)
def test_who_sees_what_under_mpc(party: str, asset: str, form: str) -> None:
    assert cell(MPC_POLICY.explain(deployment="deployed"), party, asset) == form


def test_every_row_of_mpc_states_class_and_assumption() -> None:
    for row in MPC_POLICY.explain(deployment="deployed").rows:
        assert row.guarantee in ("computational", "-") and row.assumption
        assert row.guarantee == "-" or row.form != "plaintext"


def test_clear_protects_nothing() -> None:
    explanation = Policy(infer=[Clear()]).explain()
    (row,) = [r for r in explanation.rows if (r.party, r.asset) == ("server", "token ids")]
    assert (row.form, row.guarantee) == ("plaintext", "none")


def test_collusions() -> None:
    assert {joined("server", "dealer")[a] for a in ("token ids", "inputs", "activations", "outputs", "model weights")} == {"plaintext"}
    assert {joined("client", "dealer")[a] for a in ("model weights", "activations", "outputs")} == {"plaintext"}
    assert joined("client", "server")["activations"] == "plaintext"
    assert joined("server", "network")["inputs"] == "masked values; share 2 of 2"
    assert joined("dealer", "network")["inputs"] == "masks it made"
    assert joined("client")["activations"] == "masked values; share 1 of 2"
    assert MPC_POLICY.explain().joined == ()


def test_the_smallest_breaking_collusions_are_computed() -> None:
    found = {c.parties: set(c.assets) for c in MPC_POLICY.explain().collusions}
    assert found == {
        ("client", "server"): {"activations"},
        ("client", "dealer"): {"model weights", "activations"},
        ("server", "dealer"): {"token ids", "inputs", "activations", "outputs"},
    }


def test_simulated_is_said_and_has_no_network() -> None:
    simulated, deployed = MPC_POLICY.explain(), MPC_POLICY.explain(deployment="deployed")
    assert "SIMULATED: one process holds every party's view" in str(simulated) and simulated.to_dict()["simulated"] is True
    assert "SIMULATED" not in str(deployed) and deployed.to_dict()["simulated"] is False
    assert {r.party for r in simulated.rows} == {"client", "server", "dealer"}
    assert {r.party for r in deployed.rows} == {"client", "server", "dealer", "network"}


def test_reveals_tables_and_shapes_are_said() -> None:
    text = str(MPC_POLICY.explain())
    for said in (
        "outputs to client: plaintext, one ledger row per forward",
        "The client holds the embedding tables",
        "Hidden states and attentions stay protected",
        "The server sees shapes, sequence length, the attention mask and timing",
        "computational",
        "dealer and any computing party together see",
    ):
        assert said in text


@pytest.mark.parametrize("collude", [(), ("server", "dealer"), ("client", "server", "dealer", "network")])
@pytest.mark.parametrize("deployment", ["simulated", "deployed"])
def test_table_fits_a_hundred_columns(collude: tuple[str, ...], deployment: str) -> None:
    policies = [MPC_POLICY, Policy(infer=[Clear()]), Policy(train=[toys.Clip(), toys.Noise(), toys.SecureSum()], infer=[MPC()])]
    for policy in policies:
        text = str(policy.explain(collude=collude if policy is MPC_POLICY else (), deployment=deployment))  # type: ignore[arg-type]
        assert text and max(map(len, text.splitlines())) <= 100
        assert not any(line != line.rstrip() for line in text.splitlines())


def test_to_dict_is_json() -> None:
    data = json.loads(json.dumps(MPC_POLICY.explain(collude={"server", "dealer"}).to_dict()))
    assert data["collude"] == ["server", "dealer"] and data["receiver"] == "client"
    assert {"stage", "party", "asset", "form", "guarantee", "assumption"} == set(data["rows"][0])
    assert data["reveals"] == [
        {"stage": "infer", "asset": "outputs", "party": "client", "form": "plaintext", "ledger": "one ledger row per forward"}
    ]
    assert data["promises"][0]["parameters"] == {
        "fractional_bits": "18",
        "embeddings": "client",
        "ranges": "saturate",
        "diagnose": "False",
    }


def test_view_is_exact_and_refuses_strangers() -> None:
    explanation = MPC_POLICY.explain()
    assert {str(f) for f in explanation.view("server")["inputs"]} == {"share 2 of 2", "masked values"}
    assert explanation.view("server")["embedding tables"] == frozenset()
    assert explanation.view("server", stage="infer") == explanation.view("server")
    with pytest.raises(PolicyError, match="Parties: client, server, dealer"):
        explanation.view("network")
    with pytest.raises(PolicyError, match="in stage train"):
        explanation.view("server", stage="train")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"collude": {"eve"}}, "unknown party 'eve'.*client, server, dealer, network"),
        ({"collude": "dealer"}, "not one string"),
        ({"deployment": "cloud"}, "simulated, deployed"),
    ],
)
def test_bad_questions(given: dict[str, object], said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        MPC_POLICY.explain(**given)  # type: ignore[arg-type]


def test_stages_are_told_apart() -> None:
    explanation = Policy(train=[toys.Clip(), toys.Noise(), toys.SecureSum()], infer=[MPC()]).explain()
    assert {r.stage for r in explanation.rows} == {"train", "infer"}
    text = str(explanation)
    assert text.index("train: toy-clip, toy-noise") < text.index("infer: mpc")
    assert "statistical" in text and "noised (eps 3, delta 1e-05, per client" in " ".join(text.split())
