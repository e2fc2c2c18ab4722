"""A keyed model as two processes: a server with transformed weights, and this client, which keeps the key, the tokenizer and the labels.

Run it with ``python examples/keyed_serving.py``. It needs ``pip install 'privtensors[hf]'``; a small random model is made, whose answers
mean nothing, or give a folder with a model and its tokenizer: ``python examples/keyed_serving.py --model FOLDER``.

Heuristic protection: it stops who reads the traffic or the logs and lacks the weights, not a server that has an open model's weights.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification, BertTokenizer

from privtensors.deploy import KeyedClient
from privtensors.obfuscation.convert import convert

TEXTS = ["The film was wonderful, a story to remember.", "A terrible, boring movie."]
WORDS = ("a", "the", "film", "movie", "was", "is", "to", "remember", "wonderful", "terrible", "boring", "not", "very", "story", ",", ".")


def small_model() -> tuple[object, object]:
    """A random BERT with a vocabulary of a few words."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    labels = {0: "negative", 1: "positive"}
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    config = BertConfig(vocab_size=len(words), id2label=labels, label2id={label: n for n, label in labels.items()}, **sizes)
    return BertForSequenceClassification(config).eval(), BertTokenizer(vocab={word: n for n, word in enumerate(words)})


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path)
    given = parser.parse_args()
    if given.model is None:
        model, tokenizer = small_model()
    else:
        model, tokenizer = (
            AutoModelForSequenceClassification.from_pretrained(given.model).eval(),
            AutoTokenizer.from_pretrained(given.model),
        )

    with tempfile.TemporaryDirectory() as place:
        client, server = Path(place) / "client", Path(place) / "server"
        made = convert(model, tokenizer, client=client, server=server)
        print(f"converted in {made.seconds:.1f} s under key {made.key_id}; largest difference of a logit {made.error:.1g}")
        print("at the server:", ", ".join(sorted(path.name for path in server.iterdir())))

        command = [sys.executable, "-m", "privtensors", "serve", "--keyed", str(server), "--listen", "127.0.0.1:0"]
        service = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            greeting = service.stdout.readline()
            print("server:", greeting.strip())
            asks = KeyedClient(client, greeting.split()[-1])
            keyed = AutoTokenizer.from_pretrained(client)  # the stock class: what it gives is what the server sees
            for text, answer in zip(TEXTS, asks.classify(TEXTS), strict=True):
                print(f"{answer.label} {answer.score:.4f}: {text}")
                print("   the server saw", json.dumps(keyed(text)["input_ids"]), "instead of", json.dumps(tokenizer(text)["input_ids"]))
                with torch.no_grad():
                    plain = model(**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1)
                print(f"   the plain model says {model.config.id2label[int(plain.argmax())]} {float(plain.max()):.4f}")
        finally:
            service.send_signal(signal.SIGTERM)
            output, _ = service.communicate(timeout=30)
        print("server:", output.strip())
        return service.returncode


if __name__ == "__main__":
    sys.exit(main())
