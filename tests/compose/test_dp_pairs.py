"""DP, which has a mandatory parameter, with every other registered technique, in every stage: it works, or is refused with a reason."""

from __future__ import annotations

import pytest

from privtensors import DP, Policy
from privtensors.errors import CompositionError
from privtensors.policy import Stage, Technique, resolve
from privtensors.policy.technique import registered, required

WORKS = "works"
OTHERS = [name for name in registered() if name != "dp" and not required(resolve(name))]
EXPECTED = {
    ("train", "clear"): "does not support stage",
    ("train", "mpc"): "mpc promises to hide",  # nobody computes clipped gradients on shares yet
    ("infer", "clear"): "DP does not support stage infer",
    ("infer", "mpc"): "DP does not support stage infer",
    ("release", "clear"): "does not support stage",
    ("release", "mpc"): "does not support stage",
    ("train", "obfuscation"): "never counts as differential privacy",
    ("infer", "obfuscation"): "DP does not support stage infer",
    ("release", "obfuscation"): "a release must be NOISED",
}


def technique() -> DP:
    return DP(epsilon=3.0, dataset="reviews")


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("stage", list(Stage))
def test_pair(stage: Stage, other: str) -> None:
    ours = resolve(other).__module__.startswith("privtensors.")
    expected = EXPECTED[stage.value, other] if ours else ""
    members: list[Technique | str] = [technique(), other]
    try:
        explained = str(Policy(**{stage.value: members}).explain())
    except CompositionError as refused:
        assert expected != WORKS and expected in refused.reason and refused.fix and refused.stage == stage
        with pytest.raises(CompositionError) as again:
            Policy(**{stage.value: members[::-1]})
        assert str(again.value) == str(refused)
    else:
        assert explained and expected in ("", WORKS)


@pytest.mark.parametrize("other", [name for name in OTHERS if name in ("clear", "mpc", "obfuscation")])
def test_trained_with_dp_and_served_by(other: str) -> None:
    policy = Policy(train=[technique()], infer=[other])
    assert "noised (eps 3" in str(policy.explain()) and Policy.from_toml(policy.to_toml()) == policy


def test_twice_in_one_stage() -> None:
    with pytest.raises(CompositionError, match="listed 2 times"):
        Policy(train=[technique(), DP(epsilon=1.0, dataset="reviews")])
