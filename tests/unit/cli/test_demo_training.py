"""The training inside the demo, on a tiny model of the same class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from privtensors.cli.demo_training import Batch, encode, frozen_part, train, trained_part
from privtensors.testing.assets import Review


class Words:
    """A tokenizer of words that are numbers."""

    def __call__(self, texts: Sequence[str], *, truncation: bool = False, max_length: int = 99) -> dict[str, Any]:
        return {"input_ids": [[int(word) for word in text.split()][:max_length] for text in texts]}

    def pad(self, inputs: dict[str, Any], *, return_tensors: str) -> dict[str, torch.Tensor]:
        ids = inputs["input_ids"]
        longest = max(map(len, ids))
        return {
            "input_ids": torch.tensor([row + [0] * (longest - len(row)) for row in ids]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids]),
        }


@pytest.fixture
def model() -> Any:
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=3, num_attention_heads=4, intermediate_size=24, max_position_embeddings=12
    )
    return BertForSequenceClassification(config).eval()


REVIEWS = [Review("2 5 7 9", 0, "x"), Review("3 5", 1, "x"), Review("2 5 8 9 11 4 4", 0, "x"), Review("3 5 8 9 11", 1, "x")] * 8


def batches(model: Any) -> list[Batch]:
    seen: list[int] = []
    found = frozen_part(model, Words(), REVIEWS, tokens=6, tick=seen.append)
    assert sum(seen) == len(REVIEWS) and len(model.bert.encoder.layer) == 3
    return found


def test_encode_sorts_cuts_and_keeps_track() -> None:
    pairs = encode(Words(), [review.text for review in REVIEWS[:4]], tokens=6, batch=3)
    assert [group for group, _ in pairs] == [[1, 0, 3], [2]]
    assert pairs[0][1]["attention_mask"].sum(1).tolist() == [2, 4, 5] and pairs[1][1]["input_ids"].shape == (1, 6)


def test_the_trained_part_is_the_stock_forward(model: Any) -> None:
    [(group, inputs)] = encode(Words(), [review.text for review in REVIEWS], tokens=6, batch=32)
    [batch] = batches(model)
    with torch.no_grad():
        torch.testing.assert_close(trained_part(model, batch.hidden, batch.mask), model(**inputs).logits, rtol=0, atol=1e-5)
    assert batch.labels.tolist() == [REVIEWS[index].label for index in group]


def test_training_learns_leaves_the_rest_and_repeats(model: Any) -> None:
    start = {name: value.clone() for name, value in model.state_dict().items()}
    found = batches(model) * 8
    state = torch.random.get_rng_state()
    number, accuracy = train(model, found, tick=lambda _: None)
    assert torch.equal(state, torch.random.get_rng_state())
    assert accuracy == 1.0 and not model.training
    first = {name: value.clone() for name, value in model.state_dict().items()}
    changed = {name for name in start if not torch.equal(start[name], first[name])}
    assert changed and all(name.startswith(("bert.encoder.layer.2.", "bert.pooler.", "classifier.")) for name in changed)
    assert number == sum(start[name].numel() for name in start if name.startswith(("bert.encoder.layer.2.", "bert.pooler.", "classifier.")))
    model.load_state_dict(start)
    train(model, found, tick=lambda _: None)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, first[name])
