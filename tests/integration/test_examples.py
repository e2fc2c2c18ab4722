"""The examples run as they stand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from privtensors.errors import AssetRefused, AssetUnavailable
from privtensors.testing.assets import SKIP_REASON, minilm_path, movie_reviews

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(name: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", str(EXAMPLES / name)], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "SIMULATED" in done.stdout
    return done.stdout


def test_wrap_any_model() -> None:
    out = run("wrap_any_model.py")
    error = float(out.split("largest error ")[1].split()[0])
    assert error < 0.02 and "SafeTensor(backend='mpc'" in out and "continued on shares: [" in out


def test_classify_reviews() -> None:
    try:
        minilm_path(), movie_reviews()
    except AssetRefused:
        raise
    except AssetUnavailable as error:
        pytest.skip(f"{SKIP_REASON}: {error}")
    out = run("classify_reviews.py")
    answers = [line for line in out.splitlines() if line.startswith(("negative", "positive"))]
    assert len(answers) == 3 and all("labelled" in line for line in answers)


def test_every_example_is_run() -> None:
    assert {p.name for p in EXAMPLES.glob("*.py")} <= {"wrap_any_model.py", "classify_reviews.py"}
