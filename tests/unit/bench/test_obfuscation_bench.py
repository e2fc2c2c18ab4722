"""The obfuscation benchmark: its pairs, its verdict and its output."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.bench import obfuscation
from tests.bench.obfuscation import Row, alternate

EXACT = Row("m", "labels", 1.0, 1.0, 100, 100, 1e-5, 3.0, 0.1, 1.0, 1.0, 0.0)


def test_the_first_of_a_pair_changes() -> None:
    seen: list[str] = []

    def call(name: str) -> torch.Tensor:
        seen.append(name)
        return torch.randn(200, 200) @ torch.randn(200, 200)

    ratio = alternate(lambda: call("plain"), lambda: call("keyed"), pairs=3)
    assert seen == ["plain", "keyed", "keyed", "plain", "plain", "keyed", "keyed", "plain"]
    assert ratio.plain_s > 0 and ratio.cpu > 0 and ratio.wall > 0


def test_a_wrong_label_or_a_large_error_is_no_exact_row() -> None:
    assert EXACT.exact
    assert not replace(EXACT, agree=99).exact
    assert not replace(EXACT, error=2e-4).exact
    assert not replace(EXACT, error=float("nan")).exact


def test_it_prints_a_table_and_writes_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        obfuscation.main(["--models", "gpt2", "--tokens", "4", "--pairs", "2", "--json", str(tmp_path / "f.json")])
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert "GPT-2 4x256" in printed and "HEURISTIC" in printed
    (row,) = json.loads((tmp_path / "f.json").read_text())["rows"]
    assert row["exact"] and row["agree"] == row["compared"] == 16


def test_a_difference_fails_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(obfuscation, "story", lambda key, options: replace(EXACT, agree=3))
    try:
        with pytest.raises(SystemExit) as ended:
            obfuscation.main(["--models", "stories15m"])
    finally:
        torch.set_num_threads(threads)
    assert ended.value.code == 1
    assert "3.00%" in capsys.readouterr().out
