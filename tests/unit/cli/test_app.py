"""The command itself: verbs, help, and how errors come out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import privtensors
from privtensors.cli.app import OneLineErrors, app
from privtensors.cli.text import one_line, printable
from privtensors.errors import PolicyError, UsageError

VERBS = ("demo", "explain", "convert", "serve", "deal", "infer", "train", "backends", "keys", "ledger", "audit")


def failing(error: BaseException) -> typer.Typer:
    """A program with the error handling of ours and one verb that raises."""
    found = typer.Typer(cls=OneLineErrors, pretty_exceptions_enable=False)

    @found.callback()
    def root(debug: bool = False) -> None: ...

    @found.command()
    def verb() -> None:
        raise error

    return found


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0 and result.stdout == f"privtensors {privtensors.__version__}\n"


def test_help_lists_what_is_built_and_nothing_else() -> None:
    result = CliRunner().invoke(app, ["--help"])
    listed = result.stdout.partition("Commands:")[2].partition("Example:")[0]
    assert result.exit_code == 0
    assert [line.split()[0] for line in listed.splitlines() if line.strip() and line[2] != " "] == list(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    result = CliRunner().invoke(app, [verb, "--help"])
    shown = " ".join(result.stdout.split())
    if verb == "ledger":  # its examples are those of its verbs
        shown += " ".join(CliRunner().invoke(app, [verb, "show", "--help"]).stdout.split())
    if verb == "keys":
        shown += " ".join(CliRunner().invoke(app, [verb, "init", "--help"]).stdout.split())
    assert result.exit_code == 0 and f"Example: privtensors {verb}" in shown


@pytest.mark.parametrize("given", [["train"], ["--nope"], ["demo", "--reviews", "0"], ["demo", "--reviews", "many"]])
def test_a_wrong_command_line_ends_with_2(given: list[str]) -> None:
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 2 and result.stdout == "" and "Error" in result.stderr


def test_an_error_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["explain", str(tmp_path / "absent.toml")])
    assert result.exit_code == 1 and result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("error: ") and "absent.toml" in line and "Traceback" not in result.stderr


@pytest.mark.parametrize(("error", "code"), [(PolicyError("a\nb\x1b[2J", where="w", fix="f"), 1), (UsageError("a b", where="w"), 2)])
def test_exit_codes_and_control_characters(error: Exception, code: int) -> None:
    result = CliRunner().invoke(failing(error), ["verb"])
    assert result.exit_code == code and len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: w: a b") and "\x1b" not in result.stderr


def test_debug_shows_the_traceback() -> None:
    result = CliRunner().invoke(failing(PolicyError("no")), ["--debug", "verb"])
    assert result.exit_code == 1 and "Traceback" in result.stderr and result.stderr.splitlines()[-1] == "error: no"


def test_debug_by_environment(tmp_path: Path) -> None:
    given = ["explain", str(tmp_path / "absent.toml")]
    assert "Traceback" in CliRunner().invoke(app, given, env={"PRIVTENSORS_DEBUG": "1"}).stderr
    assert "Traceback" not in CliRunner().invoke(app, given, env={"PRIVTENSORS_DEBUG": "0"}).stderr


def test_interrupt_ends_with_130_and_one_line() -> None:
    result = CliRunner().invoke(failing(KeyboardInterrupt()), ["verb"])
    assert result.exit_code == 130 and result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("interrupted")


def test_a_mistake_of_ours_keeps_its_traceback() -> None:
    result = CliRunner().invoke(failing(ZeroDivisionError()), ["verb"])
    assert result.exit_code == 1 and isinstance(result.exception, ZeroDivisionError)


def test_as_a_module() -> None:
    command = [sys.executable, "-m", "privtensors", "explain", "absent.toml"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 1 and result.stdout == "" and result.stderr.startswith("error: absent.toml")


def test_text_for_a_terminal() -> None:
    assert printable("a\x1b[31mb\u202e") == "a�[31mb�"
    assert one_line(" a\n\tb ") == "a b"
