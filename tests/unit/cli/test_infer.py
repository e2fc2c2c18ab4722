"""``privtensors infer`` against services in threads: what it prepares, what it prints, what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from privtensors.cli.app import app
from tests.unit.deploy.places import running, write_deployment

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{n}" for n in range(95)))
TEXTS = ("--text", "word7 word8", "--text", "word7 word8 word9")


def ran(policy: Path, *given: object) -> Result:
    return CliRunner().invoke(app, ["infer", str(policy), *map(str, given), "--ledger", str(policy.parent / "ledger.sqlite")])


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The client's policy file of a running deployment of the tiny BERT."""
    from transformers import BertTokenizer

    folder = tmp_path_factory.mktemp("bert")
    path = write_deployment(folder, "bert")
    BertTokenizer(vocab={word: n for n, word in enumerate(WORDS)}).save_pretrained(folder / "client-model")
    with running(path) as found:
        text = path.read_text()
        for table, address in (("server", found.server.address), ("dealer", found.dealer.address)):
            text = text.replace(
                f'[deployment.{table}]\naddress = "127.0.0.1:0"', f'[deployment.{table}]\naddress = "127.0.0.1:{address[1]}"'
            )
        client = folder / "client.toml"
        client.write_text(text)
        yield client


def test_prepared_requests_are_dealt_before_the_first_is_asked(policy: Path) -> None:
    plain, ahead = (json.loads(ran(policy, *TEXTS, "--json", *more).stdout) for more in ((), ("--prepare",)))
    assert plain["prepared"] is None and [a["prepared"] for a in plain["answers"]] == [False, False]
    assert ahead["prepared"]["count"] == 2 and [a["prepared"] for a in ahead["answers"]] == [True, True]
    assert ahead["prepared"]["dealer_bytes"] == sum(a["dealer_bytes"] for a in ahead["answers"]) > 0
    assert ahead["prepared"]["seconds"] > 0
    for one, other in zip(plain["answers"], ahead["answers"], strict=True):
        assert (one["rounds"], one["bytes_sent"], one["dealer_bytes"]) == (other["rounds"], other["bytes_sent"], other["dealer_bytes"])
        assert one["label"] == other["label"]


def test_people_are_told_what_preparing_took(policy: Path) -> None:
    done = ran(policy, *TEXTS, "--prepare")
    assert done.exit_code == 0 and done.stdout.startswith("prepared 2 requests: ")
    assert done.stdout.count("MB by the dealer before, 1 forward") == 2
    plain = ran(policy, *TEXTS[:2])
    assert "prepared" not in plain.stdout and "MB by the dealer, 1 forward" in plain.stdout


def test_generation_cannot_be_prepared(policy: Path, tmp_path: Path) -> None:
    other = tmp_path / "generate.toml"
    other.write_text(policy.read_text().replace("text-classification", "text-generation"))
    done = ran(other, "--text", "word7", "--prepare")
    assert done.exit_code == 2 and "each step of a generation" in done.output


def test_tables_of_another_checkpoint_are_one_line(policy: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "client-model"
    shutil.copytree(policy.parent / "client-model", folder)
    tables = load_file(folder / "embeddings.safetensors")
    with torch.no_grad():
        next(t for name, t in tables.items() if name.endswith("word_embeddings.weight"))[9, 0] += 1.0
    save_file(tables, folder / "embeddings.safetensors", metadata={"format": "pt"})
    done = ran(policy, *TEXTS, "--model", folder, "--timeout", "5")
    assert done.exit_code == 1 and "values of the client's tables" in done.output and "save_pretrained" in done.output
