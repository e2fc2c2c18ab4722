"""Every pair of registered techniques, in every stage: it works, or it is refused for a stated reason."""

from __future__ import annotations

from itertools import combinations_with_replacement

import pytest

from privtensors.errors import CompositionError
from privtensors.policy import Policy, Stage, resolve
from privtensors.policy.technique import registered, required

PAIRS = [
    (stage, first, second)
    for stage in Stage
    for first, second in combinations_with_replacement(registered(), 2)
    if not required(resolve(first)) and not required(resolve(second))
]

# What is known to compose or not, and why. A pair missing here fails the test: whoever adds a technique says what it composes with.
EXPECTED = {
    ("infer", "clear", "mpc"): "both claim to compute",
    ("infer", "clear", "clear"): "listed 2 times",
    ("infer", "mpc", "mpc"): "listed 2 times",
    **{
        (stage, a, b): "does not support stage"
        for stage in ("train", "release")
        for a, b in (("clear", "clear"), ("clear", "mpc"), ("mpc", "mpc"))
    },
    ("train", "mpc", "mpc"): "listed 2 times",
    ("infer", "clear", "obfuscation"): "both claim to compute",
    ("infer", "mpc", "obfuscation"): "the heuristic one never counts as the other",
    ("infer", "obfuscation", "obfuscation"): "listed 2 times",
    ("train", "mpc", "obfuscation"): "never counts as differential privacy",
    ("release", "mpc", "obfuscation"): "does not support stage",
    **{
        (stage, a, "obfuscation"): "does not support stage"
        for stage, a in (("train", "clear"), ("train", "obfuscation"), ("release", "clear"), ("release", "obfuscation"))
    },
}
WORKS = "works"


@pytest.mark.parametrize(("stage", "first", "second"), PAIRS)
def test_pair(stage: Stage, first: str, second: str) -> None:
    ours = all(resolve(name).__module__.startswith("privtensors.") for name in (first, second))
    expected = EXPECTED[stage.value, first, second] if ours else EXPECTED.get((stage.value, first, second), "")
    if not ours and not expected:
        works_or_says_why(stage, first, second)
        return
    chosen = {stage.value: [first, second]}
    if expected == WORKS:
        assert str(Policy(**chosen).explain())
        return
    with pytest.raises(CompositionError) as refused:
        Policy(**chosen)
    assert expected in refused.value.reason and refused.value.fix and refused.value.stage == stage
    with pytest.raises(CompositionError) as again:
        Policy(**{stage.value: [second, first]})
    assert str(again.value) == str(refused.value)


def works_or_says_why(stage: Stage, first: str, second: str) -> None:
    """For plugins that happen to be installed: either outcome will do, a bare crash will not."""
    try:
        assert str(Policy(**{stage.value: [first, second]}).explain())
    except CompositionError as refused:
        assert refused.reason and refused.stage == stage


def test_single_techniques() -> None:
    for name in registered():
        cls = resolve(name)
        for stage in Stage if not required(cls) else ():
            if stage in cls.stages:
                assert Policy(**{stage.value: [name]}).techniques(stage)
