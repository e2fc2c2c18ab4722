"""Request descriptors: round trips, what is malformed, and what the dealer gets."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from privtensors.deploy.descriptor import Descriptor, describe
from privtensors.errors import FrameError, InvalidInput
from privtensors.hf.families import family_of

BERT, GPT2 = family_of("bert"), family_of("gpt2")
IDS = torch.tensor([[5, 6, 7], [8, 9, 0]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])
TEXT = Descriptor((("input_ids", (2, 3)),), ("111", "110"))
PIXELS = Descriptor((("pixel_values", (2, 3, 32, 32)),))


@pytest.mark.parametrize(
    "descriptor",
    [
        TEXT,
        PIXELS,
        Descriptor((("input_ids", (1, 1)),), ("11111",), ((4,),), 1, cache=3, past=4),
        Descriptor((("input_ids", (2, 3)), ("position_ids", (1, 3)), ("token_type_ids", (2, 3)))),
    ],
)
def test_round_trip(descriptor: Descriptor) -> None:
    assert Descriptor.decode(descriptor.encode()) == descriptor


def changed(**parts: Any) -> bytes:
    body = json.loads(TEXT.encode()) | parts
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[" * 100_000,
        b"\xff\xfe",
        TEXT.encode() + b" ",
        json.dumps(json.loads(TEXT.encode()), indent=1).encode(),
        changed(more=1),
        changed(format=2),
        changed(shapes={}),
        changed(shapes={"input_ids": [2]}),
        changed(shapes={"input_ids": [0, 3]}),
        changed(shapes={"input_ids": [2, -3]}),
        changed(shapes={"input_ids": [2, 1 << 40]}),
        changed(shapes={"input_ids": [2.0, 3]}),
        changed(shapes={"input_ids": [2, True]}),
        changed(shapes={"input_ids": [2, 3], "labels": [2]}),
        changed(shapes={"input_ids": [2, 3], "pixel_values": [1, 3, 8, 8]}),
        changed(shapes={"input_ids": [2, 3], "token_type_ids": [2, 4]}),
        changed(mask=["111"]),
        changed(mask=["111", "11"]),
        changed(mask=["111", "000"]),
        changed(mask=["111", "112"]),
        changed(mask=["111", 111]),
        changed(mask="111111"),
        changed(positions=[[0, 1]]),
        changed(positions=[[0, 1, -2]]),
        changed(positions=[[0, 1, 1e9]]),
        changed(past=4),
        changed(cache=-1),
        changed(logits_to_keep=True),
    ],
)
def test_what_is_malformed_is_a_typed_error(data: bytes) -> None:
    with pytest.raises(FrameError, match="malformed"):
        Descriptor.decode(data)


def test_what_the_client_describes() -> None:
    inputs = {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": torch.zeros_like(IDS), "return_dict": True}
    found = describe(inputs, BERT, cache=0, past=0)
    assert found == Descriptor((("input_ids", (2, 3)), ("token_type_ids", (2, 3))), ("111", "110"))
    assert "5" not in str(found.encode()).replace("65535", "")  # no id


def test_positions_are_public_only_where_the_server_reads_them() -> None:
    positions = torch.tensor([[2, 0, 1]])
    with_positions = {"input_ids": IDS, "attention_mask": MASK, "position_ids": positions}
    assert describe(with_positions, BERT, cache=0, past=0).positions is None
    assert describe(with_positions, GPT2, cache=0, past=0).positions == ((2, 0, 1),)
    with pytest.raises(InvalidInput, match="not consecutive"):
        describe({"input_ids": IDS, "position_ids": positions}, GPT2, cache=0, past=0)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [({"output_attentions": True}, "task outputs"), ({"logits_to_keep": torch.tensor([0])}, "last places")],
)
def test_what_a_deployment_does_not_do(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        describe({"input_ids": IDS, **inputs}, GPT2, cache=0, past=0)


def test_the_dealer_sees_whether_something_is_masked_but_not_what() -> None:
    one, other = Descriptor(TEXT.shapes, ("110", "111")), Descriptor(TEXT.shapes, ("011", "101"))
    assert one.for_dealer(causal=True) == other.for_dealer(causal=True) == Descriptor(TEXT.shapes, ("110", "110"))
    assert Descriptor(TEXT.shapes, ("111", "111")).for_dealer(causal=False).mask is None
    placed = Descriptor((("input_ids", (1, 2)),), ("0111",), ((1, 2),), cache=1, past=2).for_dealer(causal=True)
    assert placed.positions == ((2, 3),) and placed.mask == ("1110",)
    assert one.for_dealer(causal=True).for_dealer(causal=True) == one.for_dealer(causal=True)


def test_sizes_and_keys() -> None:
    assert TEXT.tokens == 6 and PIXELS.tokens == 2 * 4
    step = Descriptor((("input_ids", (2, 1)),), cache=7, past=4)
    assert step.tokens == 10
    assert step.key() == Descriptor((("input_ids", (2, 1)),), cache=2, past=4).key() != TEXT.key()


def test_stand_ins_tell_padding_from_the_rest_and_nothing_else() -> None:
    class Config:
        pad_token_id = 0

    arguments = TEXT.arguments(Config(), GPT2, None)
    assert arguments["input_ids"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert arguments["attention_mask"].tolist() == MASK.tolist() and arguments["use_cache"] is False
    assert PIXELS.arguments(Config(), BERT, None)["pixel_values"].is_meta
