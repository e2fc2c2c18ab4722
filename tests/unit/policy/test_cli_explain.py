"""``privtensors explain``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from privtensors.cli.explain import explain
from privtensors.errors import PolicyError, PolicyFileError, UsageError


@pytest.fixture
def app() -> typer.Typer:
    found = typer.Typer()
    found.command()(explain)
    return found


@pytest.fixture
def policy_file(tmp_path: Path) -> str:
    path = tmp_path / "policy.toml"
    path.write_text('version = 1\n[[infer]]\ntechnique = "mpc"\n')
    return str(path)


def test_table(app: typer.Typer, policy_file: str) -> None:
    result = CliRunner().invoke(app, [policy_file])
    assert result.exit_code == 0 and "SIMULATED" in result.output and "masks it made" in result.output


def test_json_with_collusion(app: typer.Typer, policy_file: str) -> None:
    given = [policy_file, "--collude", "server,dealer", "--deployment", "deployed", "--json"]
    data = json.loads(CliRunner().invoke(app, given).stdout)
    assert data["deployment"] == "deployed" and data["collude"] == ["server", "dealer"]
    again = json.loads(CliRunner().invoke(app, [policy_file, "--collude", "dealer", "--collude", "server", "--json"]).stdout)
    assert again["joined"] == data["joined"]


@pytest.mark.parametrize(
    ("given", "error"),
    [(["--collude", "eve"], PolicyError), (["--deployment", "cloud"], UsageError)],
)
def test_mistakes_are_typed(app: typer.Typer, policy_file: str, given: list[str], error: type[Exception]) -> None:
    result = CliRunner().invoke(app, [policy_file, *given])
    assert result.exit_code != 0 and isinstance(result.exception, error)


def test_missing_file(app: typer.Typer, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [str(tmp_path / "absent.toml")])
    assert result.exit_code != 0 and isinstance(result.exception, PolicyFileError)
