"""``privtensors audit obfuscation`` on a user's own folders, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from privtensors.audit.obfuscation import ObfuscationAudit, Verdict
from privtensors.audit.obfuscation.attack import Attacker
from privtensors.audit.obfuscation.verdict import Outcome, Row
from privtensors.cli import audit_subjects
from privtensors.cli.app import app
from privtensors.obfuscation import sentinel
from privtensors.obfuscation.convert import convert
from tests.unit.obfuscation.models import build, save

LINES = ("a film to remember", "the plot was a film", "the film was to remember", "a plot to remember the film", "was the film a plot")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["audit", "obfuscation", *arguments])


@pytest.fixture
def folders(tmp_path: Path) -> Callable[[str], list[str]]:
    text = tmp_path / "texts.txt"
    text.write_text("\n".join(f"{line} {again}" for line in LINES for again in LINES), encoding="utf-8")

    def made(scheme: str) -> list[str]:
        plain = save(tmp_path / "plain", *build("bert"))
        if scheme == "equivariant":
            convert(plain, client=tmp_path / "client", server=tmp_path / "server")
        else:
            sentinel.convert(plain, tmp_path / "server", client_dir=tmp_path / "client", compat=scheme == "compat")
        places = ["--client", str(tmp_path / "client"), "--server", str(tmp_path / "server"), "--base", str(plain)]
        return [*places, "--text", str(text), "--volumes", "20,100"]

    return made


@pytest.mark.parametrize("scheme", ["equivariant", "hardened"])
def test_own_folders(scheme: str, folders: Callable[[str], list[str]]) -> None:
    result = run(*folders(scheme), "--json")
    assert result.exit_code == 0, (result.stdout, result.stderr, result.exception)
    answer = json.loads(result.stdout)
    assert answer["ok"] and answer["faults"] == []
    server = [one for one in answer["verdicts"] if one["attacker"] == "server"]
    assert [one["outcome"] for one in server] == ["fails"]
    assert {one["volume"] for one in answer["verdicts"] if one["attacker"] == "reader"} == {20, 100}
    if scheme == "equivariant":
        assert answer["utility"][0]["fidelity"] > 0.9999


def test_the_tables_and_a_requirement_that_fails(folders: Callable[[str], list[str]], tmp_path: Path) -> None:
    picture = tmp_path / "recovery.svg"
    result = run(*folders("equivariant"), "--require", "server", "--plot", str(picture))
    assert result.exit_code == 1, (result.stderr, result.exception)
    for said in ("sorted row", "known plaintext", "contest", "verdict", "does not stop", "heuristic", "controls   pass", "required"):
        assert said in result.stdout, said
    assert picture.is_file()


def test_the_published_construction_has_no_key_to_judge_by(folders: Callable[[str], list[str]]) -> None:
    result = run(*folders("compat"))
    assert result.exit_code == 1 and "keeps no key to judge by" in result.stderr


@pytest.mark.parametrize(
    "wrong",
    [
        ["--client", "here"],
        ["--client", "here", "--server", "there"],
        ["--volumes", "many"],
        ["--noise", "-1"],
        ["--require", "nobody"],
        ["--plot", "picture.txt"],
        ["--text", "/no/such/file", "--base", "/no/such/folder"],
    ],
    ids=" ".join,
)
def test_bad_options_are_one_line(wrong: list[str]) -> None:
    result = run(*wrong)
    lines = [line for line in result.stderr.splitlines() if " s  " not in line]
    assert result.exit_code in (1, 2) and len(lines) == 1 and lines[0].startswith("error: "), result.stderr


def test_nothing_is_downloaded_for_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privtensors.testing.assets.installed", lambda name: None)
    result = run()
    assert result.exit_code == 1 and "pip install 'privtensors[demo]'" in result.stderr


def test_a_failed_control_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Row("vocabulary", 0.0, Attacker.SERVER, "row", None, 0.5, 0.5, 0.1)
    verdict = Verdict("vocabulary", 0.0, Attacker.SERVER, None, "row", 0.5, 0.5, Outcome.FAILS)
    monkeypatch.setattr(audit_subjects, "prepared", lambda request, stages: ObfuscationAudit((row,), (), 0.0, {}, (verdict,), ("blind",)))
    result = run()
    assert result.exit_code == 1 and "CONTROL    FAILS: blind" in result.stdout
    monkeypatch.setattr(audit_subjects, "prepared", lambda request, stages: ObfuscationAudit((row,), (), 0.0, {}, (verdict,), ()))
    assert run().exit_code == 0
