"""``privtensors backends``: the support matrix is read from the kernel tables."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

from privtensors.backends.clear.backend import ClearBackend
from privtensors.cli import backends as command
from privtensors.core.optable import BY_NAME, OPS
from privtensors.errors import RegistryError, UsageError


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    app = typer.Typer()
    app.command()(command.backends)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *options: CliRunner().invoke(app, list(options))


def test_table_names_every_row_and_backend(run) -> None:  # type: ignore[no-untyped-def]
    result = run()
    assert result.exit_code == 0
    assert all(op.name in result.output for op in OPS) and "guarantee none" in result.output and "toy" in result.output


def test_json(run) -> None:  # type: ignore[no-untyped-def]
    facts = json.loads(run("--json").output)
    assert facts["operations"]["add"]["backends"]["clear"] == ["S", "PS", "SP", "SS"]
    assert facts["operations"]["erf"]["backends"]["toy"] == []
    assert facts["backends"]["clear"]["guarantee"] == "none"


def test_markdown_holds_the_built_in_backends_only(run) -> None:  # type: ignore[no-untyped-def]
    lines = run("--markdown").output.splitlines()
    assert lines[0].startswith("| operation | kind | clear |") and "toy" not in lines[0]
    assert "| `detach` | shape | yes |" in "\n".join(lines) and len(lines) == len(OPS) + 5


def test_cells() -> None:
    def cell(op: str, *kinds: str) -> str:
        backend = SimpleNamespace(kernels={(op, k): None for k in kinds})
        return command.cell(BY_NAME[op], command.operand_patterns(BY_NAME[op], backend))

    assert cell("mm") == "no"
    assert cell("mm", "AP") == "SP"
    assert cell("mm", "AP", "PA") == "PS SP"
    assert cell("mm", "AP", "AA") == "yes"
    assert cell("add", "A") == "S"
    assert cell("cat", "A") == cell("addmm", "ABA") == cell("detach") == "yes"


def test_a_broken_plugin_hides_no_other(run, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    def load(name: str) -> object:
        if name == "toy":
            raise RegistryError("cannot be loaded", where="toy", fix="reinstall it")
        return ClearBackend

    monkeypatch.setattr(command, "backend_class", load)
    assert "toy cannot be used" in run().output
    assert "toy" in json.loads(run("--json").output)["broken"]


def test_contradictory_options(run) -> None:  # type: ignore[no-untyped-def]
    assert isinstance(run("--json", "--markdown").exception, UsageError)


def test_readme_holds_the_matrix() -> None:
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    start, end = readme.find(command.START), readme.find(command.END)
    assert 0 <= start < end, f"README.md needs {command.START} … {command.END}"
    block = readme[start + len(command.START) : end].strip()
    assert block == command.markdown(), (
        "README.md is out of date: paste the output of `privtensors backends --markdown` between the comments"
    )
