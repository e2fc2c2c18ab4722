"""Inputs are checked before anything is protected; messages never hold an id."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from privtensors.core import Session
from privtensors.core.recorder import MemoryRecorder
from privtensors.errors import InvalidInput, OutOfRange
from privtensors.hf import PrivateModel, wrap
from privtensors.policy import Policy
from tests.unit.hf.tiny import build, pixel_inputs, text_inputs

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def private() -> dict[str, PrivateModel]:
    names = ("bert", "roberta", "gpt2", "gpt2-classifier", "vit", "resnet")
    models = {}
    for name in names:
        positions = {"max_position_embeddings": 16} if name in ("bert", "roberta") else {}
        models[name] = wrap(build(name, **positions), Policy(infer=["clear"]), session=Session(recorder=MemoryRecorder()))
    return models


def put(name: str, value: Any) -> Change:
    return lambda inputs: inputs.__setitem__(name, value)


def write(name: str, index: tuple[int, ...], value: float) -> Change:
    return lambda inputs: inputs[name].__setitem__(index, value)


TEXT_FAULTS: list[tuple[Change, type[Exception], str]] = [
    (write("input_ids", (0, 3), 100), OutOfRange, r"input_ids: 1 values lie outside 0\.\.99 .*\(0, 3\)"),
    (write("input_ids", (1, 0), -1), OutOfRange, "outside"),
    (lambda i: put("input_ids", i["input_ids"].float())(i), InvalidInput, "dtype int64, got float32"),
    (lambda i: put("input_ids", i["input_ids"][0])(i), InvalidInput, "batch dimension"),
    (lambda i: put("input_ids", i["input_ids"].tolist())(i), InvalidInput, "got list"),
    (put("input_ids", torch.zeros(0, 7, dtype=torch.long)), InvalidInput, "empty"),
    (put("input_ids", torch.zeros(2, 0, dtype=torch.long)), InvalidInput, "empty"),
    (put("input_ids", None), InvalidInput, "missing"),
    (put("input_ids", torch.zeros(1, 7, dtype=torch.long, device="meta")), InvalidInput, "on meta"),
    (lambda i: i.update(input_ids=torch.ones(1, 17, dtype=torch.long), attention_mask=None), OutOfRange, "17 tokens.*16 positions"),
    (put("attention_mask", torch.ones(2, 6)), InvalidInput, r"\(2, 6\), not \(2, 7\)"),
    (write("attention_mask", (0, 0), 2), InvalidInput, "other than 0 and 1"),
    (put("attention_mask", torch.full((2, 7), float("nan"))), InvalidInput, "other than 0 and 1"),
    (put("attention_mask", torch.tensor([[1] * 7, [0] * 7])), InvalidInput, "row 1 attends to nothing"),
    (put("token_type_ids", torch.full((2, 7), 2)), OutOfRange, "token types"),
    (put("token_type_ids", torch.zeros(2, 6, dtype=torch.long)), InvalidInput, "not that of input_ids"),
    (put("position_ids", torch.full((1, 7), 16)), OutOfRange, "positions"),
    (put("labels", torch.zeros(2, dtype=torch.long)), InvalidInput, "labels"),
    (put("inputs_embeds", torch.zeros(2, 7, 32)), InvalidInput, "not supported.*attention_mask"),
    (put("encoder_hidden_states", torch.zeros(2, 7, 32)), InvalidInput, "not supported"),
    (put("pixel_values", torch.zeros(2, 3, 32, 32)), InvalidInput, "not supported"),
    (put("return_dict", False), InvalidInput, "to_tuple"),
]


@pytest.mark.parametrize(("change", "error", "message"), TEXT_FAULTS, ids=[str(i) for i in range(len(TEXT_FAULTS))])
def test_text(private: dict[str, PrivateModel], change: Change, error: type[Exception], message: str) -> None:
    model = private["bert"]
    inputs: dict[str, Any] = text_inputs("bert")
    change(inputs)
    ops = model.session.meter.ops.total()
    with pytest.raises(error, match=message) as caught:
        model(**inputs)
    assert model.session.meter.ops.total() == ops, "something ran before the check"
    assert not any(str(t) in str(caught.value) for t in ("tensor(", "Traceback"))


def test_a_message_tells_where_not_which(private: dict[str, PrivateModel]) -> None:
    inputs = text_inputs("bert")
    inputs["input_ids"][0, 3] = 31337
    with pytest.raises(OutOfRange) as caught:
        private["bert"](**inputs)
    assert "31337" not in str(caught.value) and "(0, 3)" in str(caught.value)


def test_roberta_has_fewer_positions_than_rows(private: dict[str, PrivateModel]) -> None:
    ids = torch.full((1, 14), 7)
    assert private["roberta"](input_ids=ids).logits.shape == (1, 2)
    with pytest.raises(OutOfRange, match=r"15 tokens.*14 positions"):
        private["roberta"](input_ids=torch.full((1, 15), 7))


def test_positional_arguments_are_those_of_the_stock_class(private: dict[str, PrivateModel]) -> None:
    inputs = text_inputs("bert")
    by_name = private["bert"](**inputs).logits
    torch.testing.assert_close(private["bert"](inputs["input_ids"], inputs["attention_mask"]).logits, by_name)
    torch.testing.assert_close(
        private["bert"](input_ids=inputs["input_ids"].int(), attention_mask=inputs["attention_mask"].bool()).logits, by_name
    )


def _repeat_padding(inputs: dict[str, Tensor]) -> None:
    inputs["input_ids"][0, 6] = 0  # the padding token, attended to


@pytest.mark.parametrize(
    "change", [_repeat_padding, lambda inputs: inputs.pop("attention_mask")], ids=["padding used as a token", "no mask"]
)
def test_the_place_of_the_last_token_must_be_public(private: dict[str, PrivateModel], change: Change) -> None:
    inputs = text_inputs("gpt2-classifier")
    private["gpt2-classifier"](**inputs)
    change(inputs)
    with pytest.raises(InvalidInput, match="its place would tell"):
        private["gpt2-classifier"](**inputs)


PIXEL_FAULTS: list[tuple[Change, type[Exception], str]] = [
    (write("pixel_values", (0, 1, 2, 3), float("nan")), InvalidInput, r"NaN.*\(0, 1, 2, 3\)"),
    (write("pixel_values", (0, 1, 2, 3), float("inf")), InvalidInput, "infinite"),
    (put("pixel_values", torch.zeros(2, 1, 32, 32)), InvalidInput, "height, width"),
    (put("pixel_values", torch.zeros(3, 32, 32)), InvalidInput, "height, width"),
    (put("pixel_values", torch.zeros(2, 3, 32, 32, dtype=torch.uint8)), InvalidInput, "float"),
    (put("pixel_values", torch.zeros(0, 3, 32, 32)), InvalidInput, "empty"),
    (put("pixel_values", torch.zeros(2, 3, 16, 32)), InvalidInput, r"\(16, 32\).*\(32, 32\)"),
    (put("interpolate_pos_encoding", True), InvalidInput, "interpolation"),
    (put("input_ids", torch.zeros(2, 7, dtype=torch.long)), InvalidInput, "not supported"),
]


@pytest.mark.parametrize(("change", "error", "message"), PIXEL_FAULTS, ids=[str(i) for i in range(len(PIXEL_FAULTS))])
def test_pixels(private: dict[str, PrivateModel], change: Change, error: type[Exception], message: str) -> None:
    inputs: dict[str, Any] = pixel_inputs()
    change(inputs)
    with pytest.raises(error, match=message):
        private["vit"](**inputs)


def test_convolutions_take_other_sizes(private: dict[str, PrivateModel]) -> None:
    assert private["resnet"](pixel_values=torch.zeros(1, 3, 64, 64)).logits.shape == (1, 2)


def test_generate_refuses(private: dict[str, PrivateModel]) -> None:
    from transformers import GenerationConfig

    with pytest.raises(InvalidInput, match="does not generate"):
        private["bert"].generate(torch.ones(1, 3, dtype=torch.long))
    with pytest.raises(InvalidInput, match="beams"):
        private["gpt2"].generate(torch.ones(1, 3, dtype=torch.long), generation_config=GenerationConfig(num_beams=2))
    with pytest.raises(OutOfRange, match="vocabulary"):
        private["gpt2"].generate(torch.full((1, 3), 100), max_new_tokens=1)
