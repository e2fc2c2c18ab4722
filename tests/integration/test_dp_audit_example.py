"""The example of an audit: a claim that stands, and one that is refuted."""

from __future__ import annotations

from pathlib import Path

from tests import warm

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "audit_dp.py"


def run(*arguments: str) -> list[str]:
    done = warm.run("-W", "error", str(EXAMPLE), "--canaries", "1000", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_claim_stands() -> None:
    oracle, noise, sampler, audit = run()
    assert all(" passes: " in line for line in (oracle, noise, sampler)) and audit.endswith("the claim stands")
    assert audit.startswith("claimed ε 2 at δ 1e-06")


def test_the_planted_mistake_is_found() -> None:
    oracle, noise, sampler, audit = run("--bug")
    assert " FAILS: " in oracle and " passes: " in noise and " passes: " in sampler and audit.endswith("the claim is REFUTED")
