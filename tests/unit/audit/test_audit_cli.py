"""`privtensors audit dp`."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from privtensors.audit import table
from privtensors.audit.planted import planted_bugs
from privtensors.audit.setup import Setup
from privtensors.audit.table import RIGHT, BugRow, Schedule
from privtensors.audit.trainers import train_by
from privtensors.cli.app import app

SMALL = ("--canaries", "300", "--steps", "20", "--rate", "0.3", "--epsilon", "1.5")


def test_a_claim_that_stands() -> None:
    result = CliRunner().invoke(app, ["audit", "dp", *SMALL])
    assert result.exit_code == 0, result.stderr
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line.strip()}
    assert "ε 1.5" in lines["claimed"] and lines["verdict"].endswith("the claim stands")
    assert "refutes the claim for it" in lines["control"] and float(lines["control"].split("at least ")[1].split(":")[0]) > 1.5
    assert all("passes" in lines[name] for name in ("oracle", "noise", "sampler"))


def test_json() -> None:
    result = CliRunner().invoke(app, ["audit", "dp", *SMALL, "--no-control", "--json"])
    answer = json.loads(result.stdout)
    assert result.exit_code == 0 and answer["ok"] and answer["control"] is None
    audit = answer["audit"]
    assert audit["lower_bound"] <= audit["claim"]["epsilon"] == pytest.approx(1.5, abs=0.01)
    assert audit["outcomes"][0]["guesses"] == 60 and [one["detector"] for one in answer["checks"]] == ["oracle", "noise", "sampler"]


def test_a_refuted_claim_exits_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    unclipped = planted_bugs()[0].plant(Setup())

    def broken(promise, options, ledger):  # type: ignore[no-untyped-def]
        return train_by(unclipped, promise, options, ledger)

    monkeypatch.setattr("privtensors.audit.trainers.train_by_fit", broken)
    result = CliRunner().invoke(app, ["audit", "dp", *SMALL, "--no-control"])
    assert result.exit_code == 1 and "the claim is REFUTED" in result.stdout


def test_an_audit_that_could_not_have_refuted_anything_fails() -> None:
    result = CliRunner().invoke(app, ["audit", "dp", "--canaries", "20", "--steps", "5", "--rate", "0.3"])
    assert result.exit_code == 1 and "CANNOT refute" in result.stdout and "the claim stands" in result.stdout


@pytest.mark.parametrize("wrong", [["--rate", "0"], ["--guesses", "7"], ["--confidence", "1"], ["--delta", "0.1"], ["--epsilon", "-1"]])
def test_bad_options_are_one_line(wrong: list[str]) -> None:
    result = CliRunner().invoke(app, ["audit", "dp", *wrong, "--canaries", "20", "--steps", "2", "--no-control"])
    assert result.exit_code in (1, 2) and len(result.stderr.splitlines()) == 1 and result.stderr.startswith("error: ")


def test_the_bug_table_and_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    found = table.Finding("oracle", False, "off", 0.4, 1e-4)
    fine = tuple(table.Finding(name, True, "fine", 0.5, 1e-4) for name in table.DETECTORS)
    rows = (BugRow(RIGHT, "", (), fine), BugRow("no clipping", "never", ("oracle",), (found, *fine[1:])))
    assert [row.as_expected for row in rows] == [True, True]
    monkeypatch.setattr(table, "bug_table", lambda advance: rows)
    result = CliRunner().invoke(app, ["audit", "dp", "--bugs"])
    assert result.exit_code == 0 and "FOUND (0.4)" in result.stdout and "nobody" in result.stdout
    missed = (BugRow("no clipping", "never", ("audit",), (found, *fine[1:])),)
    monkeypatch.setattr(table, "bug_table", lambda advance: missed)
    result = CliRunner().invoke(app, ["audit", "dp", "--bugs", "--json"])
    assert result.exit_code == 1 and json.loads(result.stdout)["ok"] is False


@pytest.mark.slow
def test_the_whole_table() -> None:
    assert all(row.as_expected for row in table.bug_table())
    assert Schedule().noise_multiplier() == pytest.approx(3.4317, abs=0.01)
