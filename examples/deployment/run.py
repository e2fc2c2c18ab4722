"""Three processes on this machine: a server with a model, a dealer, and a client that has a review classified.

Run: python examples/deployment/run.py [--model FOLDER] [--text TEXT]

Without --model a small random BERT is made, whose answers mean nothing: it shows the parts and takes seconds. On three hosts
the same commands run there, with addresses in policy.toml.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification, BertTokenizer

import privtensors as pt

WORDS = ("a", "the", "film", "movie", "was", "is", "to", "remember", "wonderful", "terrible", "boring", "not", "very", "story")


def make_model(folder: Path) -> None:
    """A random BERT with a vocabulary of a few words."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    BertTokenizer(vocab={word: n for n, word in enumerate(words)}).save_pretrained(folder)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    labels = {0: "negative", 1: "positive"}
    config = BertConfig(vocab_size=len(words), id2label=labels, label2id={label: n for n, label in labels.items()}, **sizes)
    BertForSequenceClassification(config).save_pretrained(folder)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def prepare(place: Path, model: Path | None) -> Path:
    """What each party needs, in one folder; the policy file's path."""
    if model is None:
        make_model(place / "model")
    else:
        shutil.copytree(model, place / "model")
    # The client gets the embedding tables and the tokenizer, and nothing else of the model.
    plain = AutoModelForSequenceClassification.from_pretrained(place / "model")
    pt.wrap(plain, pt.Policy(infer=["clear"]), progress=False).save_pretrained(place / "client-model")
    AutoTokenizer.from_pretrained(place / "model").save_pretrained(place / "client-model")
    text = (Path(__file__).parent / "policy.toml").read_text()
    for port in ("7001", "7002"):
        text = text.replace(f":{port}", f":{free_port()}")
    (place / "policy.toml").write_text(text)
    return place / "policy.toml"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path)
    parser.add_argument("--text", default="The film was wonderful, a story to remember.")
    given = parser.parse_args()
    command = [sys.executable, "-m", "privtensors"]
    with tempfile.TemporaryDirectory() as folder:
        policy = prepare(Path(folder), given.model)
        subprocess.run([*command, "keys", "init", str(policy)], check=True)
        services = [subprocess.Popen([*command, "serve", str(policy), "--as", role]) for role in ("dealer", "server")]
        try:
            return subprocess.run([*command, "infer", str(policy), "--timeout", "120", "--text", given.text]).returncode
        finally:
            for service in services:
                service.send_signal(signal.SIGTERM)
            for service in services:
                service.wait(30)


if __name__ == "__main__":
    sys.exit(main())
