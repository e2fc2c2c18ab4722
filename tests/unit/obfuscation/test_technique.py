"""``Obfuscation``: the suite of every technique, what ``explain()`` says of each party, and parameters that hold no secret."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

import privtensors as pt
from privtensors.errors import ParameterError, PolicyFileError
from privtensors.obfuscation.keys import ObfuscationKey
from privtensors.obfuscation.technique import KEY, Obfuscation
from privtensors.policy import Asset, Guarantee, Stage, Technique
from privtensors.policy.forms import Key, ObfuscatedValue, Plaintext
from privtensors.testing.technique_suite import TechniqueSuite

SECRET = ObfuscationKey(bytes(range(1, 33))).secret


class TestObfuscation(TechniqueSuite):
    bad_parameters = (
        {"scheme": "rot13"},
        {"scheme": None},
        {"key": ""},
        {"key": " "},
        {"key": "a\nb"},
        {"key": SECRET.hex()},
        {"key": SECRET},
    )

    @pytest.fixture
    def technique(self) -> Technique:
        return Obfuscation()


class TestObfuscationWithAKeyFile(TestObfuscation):
    @pytest.fixture
    def technique(self) -> Technique:
        return Obfuscation("equivariant", key="keys/reviews.json")


class TestSentinel(TestObfuscation):
    @pytest.fixture
    def technique(self) -> Technique:
        return Obfuscation("sentinel")


def test_it_is_heuristic_and_has_no_backend() -> None:
    assert Obfuscation.guarantee is Guarantee.HEURISTIC and Obfuscation.backend is None and Obfuscation.stages == {Stage.INFER}
    assert pt.Obfuscation is Obfuscation


@pytest.mark.parametrize("deployment", ["simulated", "deployed"])
def test_who_sees_what_under_the_equivariant_scheme(deployment: str) -> None:
    found = pt.Policy(infer=[Obfuscation()]).explain(deployment=deployment)  # type: ignore[arg-type]
    keyed = frozenset({ObfuscatedValue(KEY)})
    server = found.view("server")
    for asset in (Asset.TOKEN_IDS, Asset.INPUTS, Asset.EMBEDDINGS, Asset.WEIGHTS, Asset.ACTIVATIONS, Asset.OUTPUTS):
        assert server[asset] == keyed, asset
    assert server[Asset.MASK] == server[Asset.SHAPES] == {Plaintext()} and not server[Asset.KEYS]
    assert found.view("client")[Asset.KEYS] == {Key(KEY)} and Plaintext() in found.view("client")[Asset.OUTPUTS]
    for row in found.rows:
        if row.party == "server" and row.form == "obfuscated":
            assert row.guarantee == "heuristic" and "recovers the key" in row.assumption
    if deployment == "deployed":
        network = found.view("network")
        assert network[Asset.TOKEN_IDS] == network[Asset.OUTPUTS] == keyed
        assert not network[Asset.WEIGHTS] and not network[Asset.ACTIVATIONS] and not network[Asset.KEYS]


def test_who_sees_what_under_the_sentinel_scheme() -> None:
    """Only the embedding is keyed there, and nothing may suggest more."""
    server = pt.Policy(infer=[Obfuscation("sentinel")]).explain().view("server")
    assert server[Asset.TOKEN_IDS] == server[Asset.EMBEDDINGS] == server[Asset.INPUTS] == {ObfuscatedValue(KEY)}
    assert server[Asset.ACTIVATIONS] == server[Asset.OUTPUTS] == server[Asset.WEIGHTS] == {Plaintext()}


@pytest.mark.parametrize("scheme", ["equivariant", "sentinel"])
def test_whoever_has_the_key_and_the_view_of_the_server_reads_everything(scheme: str) -> None:
    joined = pt.Policy(infer=[Obfuscation(scheme)]).explain(collude={"client", "server"}).joined  # type: ignore[arg-type]
    assert all(row.form.startswith(("plaintext", "key")) for row in joined)


@pytest.mark.parametrize("scheme", ["equivariant", "sentinel"])
def test_it_says_whom_it_stops_and_whom_it_does_not(scheme: str) -> None:
    text = " ".join(str(pt.Policy(infer=[Obfuscation(scheme)]).explain(deployment="deployed")).split())  # type: ignore[arg-type]
    for said in (
        "stops a reader of traffic or logs who lacks the weights",
        "does not stop a server that holds the transformed weights of an open model: it recovers the key",
        "It is no encryption and no differential privacy",
        "frequencies and known texts",
        "heuristic",
    ):
        assert said in text, said


def test_policies_hold_the_path_and_never_the_key() -> None:
    technique = Obfuscation(key="keys/reviews.json")
    policy = pt.Policy(infer=[technique])
    assert 'key = "keys/reviews.json"' in policy.to_toml() and pt.Policy.from_toml(policy.to_toml()) == policy
    assert {f.name for f in dataclasses.fields(technique)} == {"scheme", "key"}
    import base64

    for secret in (SECRET.hex(), SECRET.hex().upper(), base64.b64encode(SECRET).decode(), base64.urlsafe_b64encode(SECRET).decode()):
        with pytest.raises(ParameterError) as refused:
            Obfuscation(key=secret)
        assert secret not in str(refused.value)
        with pytest.raises(PolicyFileError) as in_a_file:
            pt.Policy.from_toml(f'version = 1\n[[infer]]\ntechnique = "obfuscation"\nkey = "{secret}"\n')
        assert secret not in str(in_a_file.value)
    with pytest.raises(TypeError):
        Obfuscation("equivariant", "keys/reviews.json")  # type: ignore[misc]


def test_importing_the_technique_is_light() -> None:
    code = (
        "import sys, privtensors as pt; pt.Policy(infer=[pt.Obfuscation()]).explain();"
        "assert not {'torchvision', 'transformers', 'tokenizers', 'sqlite3'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
