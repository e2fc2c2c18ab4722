"""The benchmark of private training: each contender's step on a tiny model, its rows, targets and exit codes."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from privtensors.testing.dp_models import families
from privtensors.testing.dp_oracle import ExactnessRow
from tests.bench import __main__ as bench
from tests.bench import dp, dp_exactness
from tests.bench.dp_engines import worker
from tests.bench.dp_engines.contender import ROLES, Row, Step, measured, paired, with_extra_peak
from tests.bench.dp_engines.report import judge
from tests.bench.dp_engines.settings import SETTINGS, Limits, Setting
from tests.bench.dp_engines.steppers import Opacus, Ours
from tests.bench.peers.environment import NotMeasured

SMOKE = SETTINGS["smoke"]
LOAD = {"do": "load", "setting": "smoke", "threads": 1}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """A worker sets torch's threads for its process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def small(rows: int = 4) -> Any:
    """A trial of the tiny model."""
    return SMOKE.trial(SMOKE.model(), {name: torch.from_numpy(array[:rows]) for name, array in SMOKE.batch().items()})


def test_batches_are_the_same_for_everybody_and_padded_at_the_end() -> None:
    batch, again = SMOKE.batch(), SMOKE.batch()
    assert all(np.array_equal(batch[name], again[name]) for name in batch)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    assert ids.shape == mask.shape == (8, 16) and batch["labels"].shape == (8,)
    assert (ids[mask == 0] == 0).all() and (ids[mask == 1] >= 3).all() and ids.max() < 500
    assert (np.diff(mask, axis=1) <= 0).all() and mask[0].all() and (mask.sum(1) >= 8).all() and not mask.all()
    language = SETTINGS["gpt2"].batch()
    assert set(language) == {"input_ids", "attention_mask"} and language["attention_mask"].all()


@pytest.mark.filterwarnings("ignore")  # Opacus's
@pytest.mark.parametrize("role", [role for role in ROLES if role != "plain"])
def test_every_private_contender_steps_with_noise_and_is_exact_without(role: str) -> None:
    handle = worker.handler(role)
    assert handle(dict(LOAD), SMOKE.batch())[0] == {"parameters": sum(p.numel() for p in SMOKE.model().parameters())}
    step = handle({"do": "step"}, {})[0]
    assert 0 < step["noise_cpu_s"] < step["cpu_s"] and 0 < step["noise_wall_s"] < step["wall_s"]
    assert handle({"do": "exactness"}, {})[0]["relative"] < 1e-5
    assert handle({"do": "facts"}, {})[0]["facts"]


def test_the_non_private_contender_steps_without_noise() -> None:
    handle = worker.handler("plain")
    handle(dict(LOAD), SMOKE.batch())
    step = handle({"do": "step"}, {})[0]
    assert step["noise_cpu_s"] == 0.0 and step["cpu_s"] > 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [lambda trial: Ours(trial, "auto"), lambda trial: Opacus(trial, "ghost")], ids=["ours", "ghost"])
def test_a_step_changes_every_weight_by_noise(make: Callable[[Any], Any]) -> None:
    """An id that is in no example gets a gradient from noise alone, and AdamW moves by the learning rate whatever its size."""
    trial = small()
    before = {name: p.detach().clone() for name, p in trial.model.named_parameters()}
    make(trial).step()
    for name, parameter in trial.model.named_parameters():
        moved = (parameter.detach() != before[name]).float().mean()
        assert moved > 0.9 or "bias" in name or "LayerNorm" in name, name
        assert parameter.grad is None, name


@pytest.mark.parametrize("damage", [lambda g: 1.001 * g, torch.zeros_like], ids=["scaled", "nothing"])
def test_a_wrong_sum_shows_as_an_error(damage: Callable[[Tensor], Tensor]) -> None:
    trial = small()
    ours = Ours(trial, "auto")
    exact = ours.sums

    def damaged(*args: Any) -> Mapping[str, Tensor]:
        return {name: damage(gradient) for name, gradient in exact(*args).items()}

    ours.sums = damaged  # type: ignore[method-assign]
    assert worker.exactness(ours, SMOKE, trial)["relative"] > 5e-4


class Tied(nn.Module):
    """An embedding that is the head too: what Opacus's ghost clipping refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(50, 8), nn.Linear(8, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return SimpleNamespace(logits=self.head(self.embedding(input_ids)))


@pytest.mark.filterwarnings("ignore")
def test_what_opacus_cannot_train_is_told_in_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting("smoke", "tied", Tied, "language", 4, 6, 50, 0)
    monkeypatch.setattr(worker, "SETTINGS", {"smoke": setting})
    ghost, ours = worker.handler("ghost"), worker.handler("ours")
    for handle in (ghost, ours):
        handle(dict(LOAD), setting.batch())
    assert ghost({"do": "step"}, {})[0] == {"refused": "NotImplementedError: Parameter tying is not supported with Ghost Clipping"}
    ours({"do": "step"}, {})
    assert ours({"do": "exactness"}, {})[0]["relative"] < 1e-5


def steps(*cpu: float) -> list[Step]:
    return [Step(c, 2 * c, c / 10, c / 5) for c in cpu]


def test_ratios_are_of_steps_in_the_same_turn() -> None:
    """A machine that is twice as slow in one turn changes no ratio."""
    plain, ghost = steps(1, 2, 1), steps(2, 4, 2)
    row = measured(Row("s", "ours", "us"), steps(1.2, 2.4, 1.3), plain, ghost)
    assert (row.steps, row.cpu_s, row.wall_s, row.noise_cpu_s) == (3, 1.3, 2.6, pytest.approx(0.13))
    assert row.cpu_ratio == row.wall_ratio == pytest.approx(1.2) and row.ghost_cpu_ratio == pytest.approx(0.6)
    assert paired(plain, [], lambda s: s.cpu_s) is None, "the other dropped out"
    assert measured(Row("s", "plain", "non-private"), plain, plain, []).noise_cpu_s is None


def test_verdicts_and_memory() -> None:
    peaks = [Row("s", "plain", "non-private", peak_mib=1000.0), Row("s", "ours", "us", peak_mib=1150.0), Row("s", "hooks", "Opacus hooks")]
    rows = with_extra_peak(peaks)
    assert [row.extra_peak for row in rows] == [0.0, pytest.approx(0.15), None]
    us = replace(rows[1], cpu_ratio=1.2, wall_ratio=1.5, error=2e-5)
    setting = replace(SMOKE, limits=Limits(cpu=1.3, wall=1.4, ghost=0.7, memory=0.1))
    found = {verdict.what: verdict for verdict in judge(setting, us)}
    assert {what: verdict.met for what, verdict in found.items()} == {
        "CPU seconds over the non-private step's": True,
        "wall seconds over the non-private step's": False,
        "extra peak memory": False,
        "error without noise, against the oracle": False,
    }, "and nothing about ghost clipping, which was not measured"
    assert found["extra peak memory"].got == "+15.0 %" and "50 %" in found["extra peak memory"].margin
    ghost = judge(setting, replace(us, ghost_cpu_ratio=0.63))
    assert [verdict.got for verdict in ghost if "ghost" in verdict.what] == ["0.63 x"]


class FakeContender:
    """Steps on paper."""

    broken: Mapping[str, str] = {}
    refuses: Mapping[str, str] = {}

    def __init__(self, role: str, setting: Setting, batch: Any, threads: int) -> None:
        self.role, self.name, self.refused, self.closed = role, ROLES[role], "", False

    def set_up(self, say: Callable[[str], None]) -> None:
        if self.role in self.broken:
            raise NotMeasured(self.broken[self.role])

    def run(self, turn: int) -> Step:
        if self.role in self.refuses:
            self.refused = self.refuses[self.role]
            raise NotMeasured(self.refused)
        return steps({"plain": 1.0, "ghost": 2.0}.get(self.role, 1.25))[0]

    def finish(self, row: Row) -> Row:
        return replace(row, peak_mib=100.0, error=1e-7, worst=1e-6, facts=(f"a fact about {self.name}",))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> type[FakeContender]:
    made = type("Made", (FakeContender,), {})
    monkeypatch.setattr(dp, "Contender", made)
    monkeypatch.setattr(dp, "keep_to", lambda _cores: None)
    return made


def test_whole_run(fakes: type[FakeContender], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fakes.refuses = {"ghost": "no tying"}
    file = tmp_path / "numbers.json"
    dp.main(["--settings", "minilm-64,gpt2", "--vs", "opacus", "--steps", "2", "--json", str(file)])
    out = capsys.readouterr().out
    assert "Opacus ghost cannot train this model: no tying" in out and "a fact about us" in out and "1.25 x" in out
    stated = json.loads(file.read_text())
    assert [(row["setting"], row["role"]) for row in stated["rows"]] == [(s, r) for s in ("minilm-64", "gpt2") for r in ROLES]
    assert {name: [v["met"] for v in found] for name, found in stated["targets"].items()} == {
        "minilm-64": [True, True, True, True],
        "gpt2": [False, True],
    }
    assert stated["versions"]["opacus"] and stated["rows"][1]["cpu_ratio"] == 1.25


def test_without_peers_opacus_is_not_started(fakes: type[FakeContender], capsys: pytest.CaptureFixture[str]) -> None:
    dp.main(["--settings", "smoke", "--steps", "1"])
    assert "Opacus" not in capsys.readouterr().out


@pytest.mark.parametrize("role", ["plain", "ours", "hooks"])
def test_one_that_cannot_be_measured_is_in_the_table_and_in_the_exit_code(
    fakes: type[FakeContender], role: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fakes.broken = {role: "no memory"}
    with pytest.raises(SystemExit) as end:
        dp.main(["--settings", "minilm-64", "--vs", "opacus", "--steps", "1"])
    assert end.value.code == 1
    out = capsys.readouterr().out
    assert f"{ROLES[role]}: not measured: no memory" in out and "Opacus ghost" in out


@pytest.mark.parametrize("arguments", [["--settings", "bert"], ["--steps", "0"], ["--threads", "3"], ["--vs", "spu"]])
def test_bad_options(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        dp.main(arguments)
    assert end.value.code == 2 and arguments[0] in capsys.readouterr().err


@pytest.mark.slow
def test_in_processes_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dp, "keep_to", lambda _cores: None)
    file = tmp_path / "numbers.json"
    dp.main(["--settings", "smoke", "--vs", "opacus", "--steps", "1", "--threads", "1", "--json", str(file)])
    rows = json.loads(file.read_text())["rows"]
    assert [row["role"] for row in rows] == list(ROLES) and not any(row["reason"] or row["refused"] for row in rows)
    assert all(row["error"] < 1e-5 and row["noise_cpu_s"] > 0 for row in rows[1:])
    assert all(row["peak_mib"] is None or row["peak_mib"] >= row["loaded_mib"] > 1 for row in rows)
    assert "book" in capsys.readouterr().out


def test_exactness_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    arguments = ["--engines", "auto,loop", "--families", "BERT", "--families", "GPT-2 LM, tied", "--batches", "2", "--json", str(file)]
    dp_exactness.main(arguments)
    out = capsys.readouterr().out
    assert "GPT-2 LM, tied" in out and "bookkeeping" in out
    rows = json.loads(file.read_text())["rows"]
    assert [(row["family"], row["asked"]) for row in rows] == [(f, e) for f in ("BERT", "GPT-2 LM, tied") for e in ("auto", "loop")]
    assert all(row["error"] < 1e-5 for row in rows)


def test_exactness_table_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answers = {
        "auto": ExactnessRow("BERT", "loop", 1e-3, 1e-2, 0.1),
        "loop": ExactnessRow("BERT", "BoundingError", float("nan"), float("nan"), 0.0),
        "opacus": ExactnessRow("BERT", "UnboundedParameter", float("nan"), float("nan"), 0.0),
    }
    monkeypatch.setattr(dp_exactness, "exactness", lambda family, *, engine, batches, seed: answers[engine])
    with pytest.raises(SystemExit) as end:
        dp_exactness.main(["--engines", "auto,loop,opacus", "--families", "BERT"])
    assert end.value.code == 1
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "BERT: the engine is loop instead of bookkeeping",
        "BERT: loop: error 1.0e-03",
        "BERT: refused (BoundingError)",
    ]
    assert families()["BERT"].engine == "bookkeeping"


def test_names_on_the_command_line_have_hyphens(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(sys, "argv", ["bench", "dp-exactness", "--batches", "2"])
    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(main=lambda argv: asked.extend([name, *argv])))
    assert bench.main() == 0 and asked == ["tests.bench.dp_exactness", "--batches", "2"]
    monkeypatch.setattr(sys, "argv", ["bench", "dp_engines"])
    assert bench.main() == 2
