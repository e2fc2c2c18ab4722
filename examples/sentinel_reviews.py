"""Fine-tune a model on keyed text (SentinelLMs), ask it with keyed text, and see what a server with the weights gets back.

Run it with ``python examples/sentinel_reviews.py [REVIEWS]``. It needs ``pip install 'privtensors[demo]' accelerate``.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from privtensors.obfuscation import sentinel
from privtensors.obfuscation.sentinel.words import specials_of
from privtensors.obfuscation.vocabulary import Vocabulary
from privtensors.testing.assets import minilm_path, movie_reviews, split_reviews

SHOWN = 3


def data(count: int) -> sentinel.LocalData:
    """Short reviews with the labels negative and positive."""
    split = split_reviews([review for review in movie_reviews() if review.source == "rotten_tomatoes"])
    train, held_out = (
        tuple(sentinel.Example(one.text, "positive" if one.label else "negative") for one in part)
        for part in (split.train[:count], split.test[: max(SHOWN, count // 4)])
    )
    return sentinel.LocalData(train, held_out, ("negative", "positive"))


def main(count: int) -> None:
    reviews = data(count)
    with tempfile.TemporaryDirectory() as folder:
        made = sentinel.convert(minilm_path(), Path(folder) / "keyed")
        print("\n".join(f"note: {remark}" for remark in made.remarks))
        options = sentinel.TrainingOptions(epochs=1, batch_size=16, learning_rate=1e-4, max_seq_length=48)
        tuned = sentinel.finetune(made.server, reviews, Path(folder) / "tuned", options=options)
        assert tuned.server is not None and tuned.client is not None
        print(f"accuracy on {tuned.eval_examples} held-out reviews: {tuned.metrics['accuracy']:.2f}\n")

        owner = sentinel.load_owner(tuned.client)  # the owner: key, plain tokenizer, names of the labels
        tokenizer = AutoTokenizer.from_pretrained(tuned.server)  # the server: stock classes, keyed words, numbered labels
        model = AutoModelForSequenceClassification.from_pretrained(tuned.server)
        print("SIMULATED: one process holds every party's view.")
        for example in reviews.evaluation[:SHOWN]:
            keyed = owner.encode(str(example.text))
            with torch.no_grad():
                answer = owner.read(model(**tokenizer(keyed, return_tensors="pt", truncation=True)).logits[0])
            print(f"sent    {keyed[:66]}…")
            print(f"answer  {answer.label} {answer.confidence:.2f} (labelled {example.label}): {str(example.text)[:60]}")

        assert owner.key is not None
        public = AutoModel.from_pretrained(minilm_path())
        ids = Vocabulary.from_key(owner.key, public.config.vocab_size, fixed=specials_of(owner.tokenizer).values()).keyed
        found = sentinel.recover(public, model, ids, sample=200)
        print("\nWhat a server with these weights and the open model gets back (share of tokens):")
        print(f"  neighbour differences {found.neighbour_differences:.3f}, sorted rows {found.sorted_row:.3f}, axes {found.spectral:.3f}")
        print(f"  hidden units put in order by LayerNorm and positions: {found.aligned:.3f}")
        print("Heuristic: keep the weights away from whom it is to stop.")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000)
