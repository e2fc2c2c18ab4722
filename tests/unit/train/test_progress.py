"""What a run shows: steps, ε, time. And what it reports."""

from __future__ import annotations

import json
import math

import pytest

from privtensors.train.calibration import Plan
from privtensors.train.progress import progress_bar
from privtensors.train.result import Evaluation, FitResult

PLAN = Plan(2.0, 0.1, 10.0, 4, 1.0, 1e-5, 0.1)


def test_the_bar_shows_steps_and_epsilon(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(PLAN, 4, True) as advance:
        for step in range(1, 5):
            advance(step)
    shown = capsys.readouterr().err
    assert "training privately" in shown and "4/4" in shown and f"ε {PLAN.epsilon(4):.2f}" in shown and "loss" not in shown


def test_no_bar_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(PLAN, 4, None) as advance:
        advance(4)
    assert capsys.readouterr().err == ""


def test_a_result_is_json_and_text() -> None:
    result = FitResult(
        "reviews", "example", 100, 4, 4, 0.0, 1.0, 0.1, 10, math.inf, 1e-5, math.inf, "declassified", None, "1:ab", (("", "gram"),), 1.5,
        (Evaluation(4, {"loss": 0.5}),),
    )  # fmt: skip
    facts = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert facts["epsilon"] == facts["target"] == "inf" and facts["evaluations"] == [{"step": 4, "figures": {"loss": 0.5}}]
    assert str(result).startswith("4 of 4 steps in 1.5 s: ε inf at δ 1e-05 per example of 'reviews'") and "1:ab" in str(result)
