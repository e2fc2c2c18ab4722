"""What the dealer deals for depends on the descriptor alone: not on what was traced before, not on the real mask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from privtensors.deploy.descriptor import Descriptor, describe
from privtensors.deploy.parts import hollow
from privtensors.deploy.programs import Programs, Traced
from privtensors.hf.families import family_of
from privtensors.policy import Policy
from tests.unit.deploy.places import TASKS
from tests.unit.hf.tiny import CAUSAL, TEXT, build, text_inputs

POLICY = Policy(infer=["mpc"])
MASKS = (
    ("1111111", "1111100"),
    ("1111111", "0011111"),
    ("1000000", "1000000"),
    ("1111111", "1111111"),
    ("0000001", "1111111"),
    ("1010101", "1111111"),
)


def programs(name: str) -> Iterator[Programs]:
    model = build(name)
    hollow(model, family_of(model.config.model_type))
    found = Programs(model, POLICY, POLICY.infer[0])
    yield found
    found.close()


def text(*, masked: bool = False, tokens: int = 7, batch: int = 2) -> Descriptor:
    mask = tuple("1" * (tokens - 1) + "0" for _ in range(batch)) if masked else None
    return Descriptor((("input_ids", (batch, tokens)),), mask)


def views(name: str) -> tuple[Descriptor, Descriptor]:
    """Two forwards that differ."""
    if name in TEXT:
        return text(masked=True), text(tokens=5)
    return Descriptor((("pixel_values", (2, 3, 32, 32)),)), Descriptor((("pixel_values", (1, 3, 32, 32)),))


@pytest.mark.parametrize("name", TASKS)
def test_a_program_does_not_depend_on_what_was_traced_before(name: str) -> None:
    # A weight opened by the first forward and remembered would be missing from the program of a session that begins with the second.
    first, second = views(name)
    digests = []
    for order in ((first, second, first), (second, first, second)):
        for found in programs(name):
            traced: dict[str, str] = {}
            for view in order:
                found._kept.clear()
                digest = found.find(view, None).result().program.digest
                assert traced.setdefault(view.key(), digest) == digest
            digests.append(traced)
    assert digests[0] == digests[1]
    assert digests[0][first.key()] != digests[0][second.key()]


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "gpt2-classifier"])
@pytest.mark.parametrize("mask", MASKS)
def test_the_dealers_mask_needs_the_same_randomness_as_the_real_one(name: str, mask: tuple[str, ...]) -> None:
    real = Descriptor((("input_ids", (2, 7)),), mask)
    for found in programs(name):
        view = real.for_dealer(causal=family_of(build(name).config.model_type).decoder)
        assert found.find(view, None).result().program.digest == found.find(real, None).result().program.digest


@pytest.mark.parametrize("name", CAUSAL)
def test_steps_of_a_generation_go_on_from_each_other(name: str) -> None:
    for found in programs(name):
        shape = (("input_ids", (1, 4)),)
        prefill = Descriptor(shape, cache=1)
        step = Descriptor((("input_ids", (1, 1)),), cache=1, past=4)
        start = found.find(prefill, None).result()
        after = found.find(step, start).result()
        again = found.find(Descriptor(shape, cache=9), None).result()
        assert again is start and start.past == 4 and after.past == 5
        found._kept.clear()
        # The same step traced twice from one cache: extending the first copy left the second as it was.
        repeated: Traced = found.find(step, start).result()
        assert repeated is not after and repeated.program.digest == after.program.digest


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize("left", [False, True])
def test_the_client_describes_what_the_server_reads(name: str, left: bool) -> None:
    inputs: dict[str, Any] = text_inputs(name, left=left)
    family = family_of(build(name).config.model_type)
    found = Descriptor.decode(describe(inputs, family, cache=0, past=0).encode())
    arguments = found.arguments(build(name).config, family, None)
    assert torch.equal(arguments["attention_mask"], inputs["attention_mask"])
    assert arguments["input_ids"].shape == inputs["input_ids"].shape
    assert not torch.equal(arguments["input_ids"], inputs["input_ids"])
