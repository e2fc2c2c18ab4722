"""What counts as a success of the demo, its JSON and its printed form."""

from __future__ import annotations

import dataclasses
import json

import pytest

from privtensors.cli.demo_result import LOGIT_TOLERANCE, Answer, Cost, Job, LedgerVerdict, Training
from privtensors.cli.demo_show import show
from privtensors.policy import Policy

ANSWER = Answer("a fine film<br /><br />really\x1b[2J", "good", 9, False, "good", "good", 0.9, 0.9, 2.0, 0.001, (0.0, 2.0), (0.0, 2.001))
LONG = dataclasses.replace(ANSWER, text="word " * 300 + "the end", truncated=True)


def job(*answers: Answer, rows: int = 1) -> Job:
    cost = Cost(1, 1.0, 2.0, 5.5, 283, 61_200_000, 208_000_000)
    return Job(
        model="MiniLM",
        model_class="BertForSequenceClassification",
        parameters=22_713_986,
        max_tokens=64,
        training=Training(2000, 1_923_074, 3, 0.9, 20.0, 40.0),
        check_texts=200,
        check_accuracy=0.8,
        answers=answers,
        setup=cost,
        forwards=cost,
        ledger=LedgerVerdict("/data/ledger.sqlite", 7, rows, "7:" + "ab" * 32),
        explanation=Policy(infer=["mpc"]).explain(),
        simulated=True,
    )


def flipped(margin: float, error: float) -> Answer:
    return dataclasses.replace(ANSWER, private="bad", plain_margin=margin, logit_error=error)


def test_agreement_is_a_success() -> None:
    found = job(ANSWER)
    assert found.failures() == () and found.flips == () and found.accuracy("plain") == 1.0


@pytest.mark.parametrize(("margin", "error", "fails"), [(0.019, 0.01, False), (0.02, 0.01, True), (0.5, 0.01, True)])
def test_a_flip_needs_a_small_margin(margin: float, error: float, fails: bool) -> None:
    found = job(ANSWER, flipped(margin, error))
    assert len(found.flips) == 1 and bool(found.failures()) is fails
    assert not fails or "flipped from good to bad" in found.failures()[0]


def test_the_largest_error_of_all_texts_counts() -> None:
    assert job(flipped(0.03, 0.01), dataclasses.replace(ANSWER, logit_error=0.02)).failures() == ()


@pytest.mark.parametrize("error", [LOGIT_TOLERANCE * 1.01, float("nan"), float("inf")])
def test_a_large_error_fails_even_without_a_flip(error: float) -> None:
    assert any("largest logit error" in f for f in job(dataclasses.replace(ANSWER, logit_error=error)).failures())


def test_the_ledger_must_hold_every_forward() -> None:
    assert "2 reveals of this run for 1 forwards" in job(ANSWER, rows=2).failures()[0]


def test_json() -> None:
    data = json.loads(json.dumps(job(ANSWER, flipped(1.0, 0.01)).to_dict(), allow_nan=False))
    assert data["ok"] is False and len(data["failures"]) == 1 and data["simulated"] is True
    assert data["summary"]["agreeing_texts"] == 1 and data["summary"]["texts"] == 2
    assert data["cost"]["forwards"]["bytes_sent_per_party"] == 61_200_000 and data["training"]["seconds"] == 20.0
    assert data["ledger"]["head"].startswith("7:") and data["who_sees_what"]["simulated"] is True


def test_unknown_labels_give_no_accuracy() -> None:
    assert job(dataclasses.replace(ANSWER, label=None)).accuracy("private") is None


@pytest.mark.parametrize("width", [80, 100])
def test_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    show(job(ANSWER, LONG, flipped(1.0, 0.01)), 42.0)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    assert "\x1b" not in out and "<br" not in out and "the end" in out
    assert "2 of 3 private answers equal the plain ones" in out and "SIMULATED" in out and "7:" + "ab" * 32 in out
    assert "masks it made" in out and "If server and dealer collude" in out
    assert len([line for line in out.splitlines() if "good" in line]) == 3  # one line a text


def test_many_texts_are_cut_but_flips_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    show(job(*[ANSWER] * 199, flipped(1.0, 0.01)), 42.0)
    out = capsys.readouterr().out
    assert "and 175 more; --json has all of them" in out and "bad" in out
