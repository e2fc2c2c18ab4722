"""`privtensors ledger show` and `verify`."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from privtensors.accounting import Ledger
from privtensors.cli.ledger import app
from privtensors.core.recorder import Disclosure


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(*arguments: object) -> str:
    """The one line on standard error of a command that must fail."""
    result = invoke(*arguments)
    assert result.exit_code == 1 and result.stdout == ""
    [line] = result.stderr.splitlines()
    return line


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for label in ("logits", "[red]pooler[/red]\x1b[31m"):
        ledger.record(Disclosure("mpc", (4, 2), "float32", "client", label, True, "computational"))
    ledger.append("dp.reserve", {"epsilon": 1.0})
    return ledger


def test_show(ledger: Ledger) -> None:
    result = invoke("show", "--ledger", ledger.path)
    assert result.exit_code == 0
    [first] = [line for line in result.stdout.splitlines() if "logits" in line]
    entry = ledger.entries()[0]
    for cell in ("1", entry.time[:19], "reveal", "mpc", "[4, 2]", "client", "yes", entry.hash[:12]):
        assert cell in first
    assert "[red]pooler[/red]" in result.stdout and "\x1b" not in result.stdout  # text is neither markup nor terminal control
    assert "dp.reserve" in result.stdout
    assert f"head {ledger.head()}" in result.stdout.splitlines()


def test_show_limit_and_json(ledger: Ledger) -> None:
    result = invoke("show", "--ledger", ledger.path, "--limit", 2, "--json")
    assert result.exit_code == 0
    shown = json.loads(result.stdout)
    assert shown["ok"] is True and shown["head"] == str(ledger.head()) and shown["ledger_id"] == ledger.ledger_id
    assert [entry["index"] for entry in shown["entries"]] == [2, 3]
    assert shown["entries"][1]["body"] == {"epsilon": 1.0}
    assert invoke("show", "--ledger", ledger.path, "--limit", 0).exit_code == 2


def test_show_without_rows_or_ledger(tmp_path: Path) -> None:
    assert "there is no ledger" in refused("show", "--ledger", tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
    empty = Ledger(tmp_path / "empty")
    result = invoke("show", "--ledger", empty.path)
    assert result.exit_code == 0 and f"head 0:{empty.head().hash}" in result.stdout


def test_verify(ledger: Ledger) -> None:
    result = invoke("verify", "--ledger", ledger.path)
    assert result.exit_code == 0
    assert "3 rows checked" in result.stdout and str(ledger.head()) in result.stdout and "Held against no head" in result.stdout
    old = ledger.entries()[0].head
    result = invoke("verify", "--ledger", ledger.path, "--head", old)
    assert result.exit_code == 0 and "contains the given head, row 1" in result.stdout


def test_verify_json(ledger: Ledger) -> None:
    head = str(ledger.head())
    result = invoke("verify", "--ledger", ledger.path, "--head", head, "--json")
    assert result.exit_code == 0
    expected = {"ok": True, "path": str(ledger.path), "ledger_id": ledger.ledger_id, "rows": 3, "head": head, "against": head}
    assert json.loads(result.stdout) == expected


def test_verify_names_an_edited_row(ledger: Ledger) -> None:
    connection = sqlite3.connect(ledger.path, isolation_level=None)
    connection.execute("""UPDATE entries SET body = replace(body, 'logits', 'logit5') WHERE "index" = 1""")
    connection.close()
    assert "row 1 of" in refused("verify", "--ledger", ledger.path)
    assert "row 1 of" in refused("show", "--ledger", ledger.path)
    result = invoke("verify", "--ledger", ledger.path, "--json")
    answer = json.loads(result.stdout)
    assert result.exit_code == 1 and answer["ok"] is False and answer["error"] == "LedgerCorrupt" and answer["where"].startswith("row 1 of")


def test_verify_finds_a_cut_chain_against_a_head(ledger: Ledger) -> None:
    head = ledger.head()
    connection = sqlite3.connect(ledger.path, isolation_level=None)
    connection.execute('DELETE FROM entries WHERE "index" = 3')
    connection.close()
    assert invoke("verify", "--ledger", ledger.path).exit_code == 0
    assert "ends at row 2" in refused("verify", "--ledger", ledger.path, "--head", head)


def test_verify_refuses_an_absent_ledger_a_bad_head_and_garbage(tmp_path: Path, ledger: Ledger) -> None:
    head = ledger.head()
    assert "there is no ledger" in refused("verify", "--ledger", tmp_path / "absent", "--head", head)
    assert "there is no ledger" in refused("verify", "--ledger", tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
    for bad in ("", "3", str(head)[:-1], "x" * 70):
        assert "not a ledger head" in refused("verify", "--ledger", ledger.path, "--head", bad)
    (tmp_path / "garbage").write_bytes(b"\x00\xff" * 5000)
    assert "damaged or no ledger" in refused("verify", "--ledger", tmp_path / "garbage")


def test_the_environment_names_the_ledger(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIVTENSORS_LEDGER", str(ledger.path))
    assert str(ledger.head()) in invoke("verify").stdout
    monkeypatch.setenv("PRIVTENSORS_LEDGER", str(ledger.path) + ".absent")
    assert "there is no ledger" in refused("verify")


@pytest.mark.parametrize("verb", ["show", "verify", "export", "budget", "settle"])
def test_help_has_an_example(verb: str) -> None:
    result = invoke(verb, "--help")
    text = " ".join(result.stdout.split())
    assert result.exit_code == 0 and f"Example: privtensors ledger {verb} " in text and "--json" in text
