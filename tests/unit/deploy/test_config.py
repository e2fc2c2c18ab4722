"""The table [deployment]: what it says, and that every mistake names file, key and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from privtensors.deploy.config import Deployment, ServiceLimits, parse_address
from privtensors.errors import PolicyError, PolicyFileError
from privtensors.policy import Policy
from tests.unit.deploy.places import POLICY

GOOD = POLICY.format(task="text-classification", policy="", server=7001, dealer=7002, limits="idle_s = 5\nclients = 3")


def load(folder: Path, text: str) -> Deployment:
    path = folder / "policy.toml"
    path.write_text(text, encoding="utf-8")
    return Deployment.load(path)


def test_it_is_read_and_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    found = load(tmp_path, GOOD)
    assert (found.task, found.server, found.dealer) == ("text-classification", ("127.0.0.1", 7001), ("127.0.0.1", 7002))
    assert found.keys == tmp_path / "keys" and found.models["server"] == tmp_path / "model"
    assert found.clients == ("client", "other")
    assert found.limits == ServiceLimits(idle_s=5.0, clients=3, threads=1)
    assert found.address("dealer") == found.dealer


def test_the_policy_itself_ignores_it(tmp_path: Path) -> None:
    found = load(tmp_path, GOOD)
    assert found.policy == Policy.from_toml(GOOD) == Policy(infer=["mpc"])
    assert "deployment" not in found.policy.to_toml()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[deployment]", "[place]", "unknown key 'place'.*deployment"),
        ('task = "text-classification"', 'task = "sorting"', "deployment.task: unknown task 'sorting'.*text-classification"),
        ('task = "text-classification"', "", "deployment.task: is missing"),
        ('task = "text-classification"', "task = 3", "deployment.task: must be a string"),
        ('keys = "keys"', 'key = "keys"', r"\[deployment\]: unknown key 'key'.*Allowed: task, keys"),
        ('address = "127.0.0.1:7001"', 'address = "7001"', "deployment.server.address.*HOST:PORT"),
        ('address = "127.0.0.1:7001"', 'address = "host:port"', "deployment.server.address.*HOST:PORT"),
        ('address = "127.0.0.1:7001"', 'address = "host:70000"', "deployment.server.address.*HOST:PORT"),
        ('clients = ["client", "other"]', "clients = []", "deployment.server.clients"),
        ('clients = ["client", "other"]', 'clients = ["client", "client"]', "deployment.server.clients"),
        ('clients = ["client", "other"]', 'clients = ["dealer"]', "deployment.server.clients"),
        ("idle_s = 5", "idle_s = 0", "deployment.limits.idle_s.*from 0.1 to 3600"),
        ("idle_s = 5", "idle_s = inf", "deployment.limits.idle_s"),
        ("idle_s = 5", "idle_s = nan", "deployment.limits.idle_s"),
        ("clients = 3", "clients = 2.5", "deployment.limits.clients.*a whole number"),
        ("clients = 3", "clients = true", "deployment.limits.clients"),
        ("clients = 3", "sessions = 3", r"\[deployment.limits\]: unknown key 'sessions'.*clients"),
        ("version = 1", 'version = 1\nreceiver = "server"', "client only"),
    ],
)
def test_mistakes_name_file_key_and_what_is_allowed(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(PolicyFileError, match=f"policy.toml.*{message}"):
        load(tmp_path, GOOD.replace(old, new))


def test_a_file_without_the_table_says_so(tmp_path: Path) -> None:
    with pytest.raises(PolicyFileError, match=r"table \[deployment\] is missing"):
        load(tmp_path, Policy(infer=["mpc"]).to_toml())
    with pytest.raises(PolicyFileError, match=r"\[deployment.client\]: is missing"):
        load(tmp_path, Policy(infer=["mpc"]).to_toml() + '[deployment]\ntask = "fill-mask"\n')


def test_a_policy_that_no_party_can_compute_apart_is_refused(tmp_path: Path) -> None:
    from privtensors.deploy.rooms import deployed_technique

    with pytest.raises(PolicyError, match="parties of its own"):
        deployed_technique(Policy(infer=["clear"]))


def test_addresses() -> None:
    assert parse_address("[::1]:80") == ("::1", 80)
    with pytest.raises(PolicyFileError, match="HOST:PORT"):
        parse_address("localhost")
