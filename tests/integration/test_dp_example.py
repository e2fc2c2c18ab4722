"""The example of released statistics runs, and its errors are those of its noise."""

from __future__ import annotations

import re
from pathlib import Path

from tests import warm

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "release_statistics.py"


def test_release_statistics() -> None:
    done = warm.run("-W", "error", str(EXAMPLE))
    assert done.returncode == 0, done.stderr
    relative = {line[:24].strip(): float(line.rsplit(" ", 1)[1]) for line in done.stdout.splitlines() if "largest error" in line}
    assert len(relative) == 5
    # Six standard deviations of each noise, by its ε, its sensitivity and its truth; 0 would mean that there is none.
    for name, most in (("means", 0.2), ("histogram of radius", 0.3), ("patients per diagnosis", 0.2), ("sums per diagnosis", 0.4)):
        assert (0 if name == "patients per diagnosis" else 1e-6) <= relative[name] < most, name  # counts are rounded
    refused = re.findall(r"refused, .*: (\w+)", done.stdout)
    assert refused == ["UnboundedSensitivity", "UnsupportedOp", "BudgetExceeded"]
    assert "5 releases of ε 0.5 each: PLD ε 1.8" in done.stdout
