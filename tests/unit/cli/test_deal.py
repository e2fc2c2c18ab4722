"""``privtensors deal`` and the dealer that serves from its store, by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from privtensors.cli.app import app
from tests.unit.deploy.places import write_deployment


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_deployment(tmp_path_factory.mktemp("bert"), "bert", limits="tokens = 64")


def ran(*given: object) -> Result:
    return CliRunner().invoke(app, [str(part) for part in given])


def test_what_was_made_is_printed_and_in_the_store(policy: Path, tmp_path: Path) -> None:
    done = ran("deal", policy, "--for", 2, "--tokens", "6,9", "--bundles", 2, "--out", tmp_path / "s", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["ok"] and found["bundles"] == 2 and [k["requests"] for k in found["kinds"]] == [4, 4]
    assert [k["tokens"] for k in found["kinds"]] == [6, 9]
    on_disk = sum(f.stat().st_size for f in (tmp_path / "s" / "bundles").rglob("*") if f.is_file())
    assert found["bytes"] == on_disk > 4 * sum(k["bytes_each"] for k in found["kinds"])
    assert len(list((tmp_path / "s" / "bundles").iterdir())) == 2


def test_a_table_for_people_and_the_default_place(policy: Path) -> None:
    done = ran("deal", policy, "--for", 1, "--tokens", "6", "--batch", 2, "--masked")
    assert done.exit_code == 0 and "MB each" in done.stdout and "1 bundle in" in done.stdout
    assert (policy.parent / "dealer-store" / "used.journal").exists()


def test_images_take_the_models_size(tmp_path: Path) -> None:
    policy = write_deployment(tmp_path, "vit")
    done = ran("deal", policy, "--for", 1, "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["kinds"][0]["tokens"] is None
    assert ran("deal", policy, "--for", 1, "--tokens", 5).exit_code == 1


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        (["--tokens", "6,x"], 2, "no list of lengths"),
        (["--tokens", "6,6"], 2, "no list of lengths"),
        (["--tokens", "0"], 2, "no list of lengths"),
        (["--tokens", "60", "--batch", "2"], 2, "limits.tokens: 64"),
        (["--tokens", "100000"], 1, "100000 tokens"),
        ([], 1, "tokens"),
        (["--tokens", "6", "--out", "/dev/null"], 1, "cannot be written"),
    ],
)
def test_wrong_options_are_one_line(given: list[str], code: int, message: str, policy: Path) -> None:
    done = ran("deal", policy, "--for", 1, *given)
    assert done.exit_code == code, done.output
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and message in done.stderr


def test_only_a_dealer_serves_from_a_store(policy: Path, tmp_path: Path) -> None:
    for given, message in (
        (("--as", "server", "--store", tmp_path), "only the dealer"),
        (("--as", "dealer", "--stored-only"), "there is no store"),
        (("--as", "dealer", "--stored-only", "--store", tmp_path / "s"), "used up"),
    ):
        done = ran("serve", policy, *given)
        assert done.exit_code in (1, 2) and message in done.stderr and done.stderr.strip().count("\n") == 0
