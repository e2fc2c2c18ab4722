"""The example of a keyed server and its client runs, and its two processes agree with the plain model."""

from __future__ import annotations

import re
from pathlib import Path

from tests import warm

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "keyed_serving.py"


def test_keyed_serving() -> None:
    done = warm.run("-W", "error", str(EXAMPLE))
    assert done.returncode == 0, done.stderr
    assert "at the server: config.json, model.safetensors, privtensors.json\n" in done.stdout and done.stdout.endswith("server ended\n")
    answers = re.findall(r"^(negative|positive) ([\d.]+):", done.stdout, re.MULTILINE)
    plain = re.findall(r"the plain model says (negative|positive) ([\d.]+)$", done.stdout, re.MULTILINE)
    assert len(answers) == 2 and [label for label, _ in answers] == [label for label, _ in plain]
    assert all(abs(float(a) - float(b)) < 2e-4 for (_, a), (_, b) in zip(answers, plain, strict=True))
    for keyed, ids in re.findall(r"the server saw (\[.*\]) instead of (\[.*\])", done.stdout):
        assert keyed != ids and keyed.count(",") == ids.count(",")
    assert "Traceback" not in done.stderr and "/v1/classify 200 2 x " in done.stderr
