"""What save_pretrained writes: the client's tables, the policy, the card; nothing of the server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from privtensors.accounting import Ledger
from privtensors.core import Session
from privtensors.errors import InvalidInput
from privtensors.hf import wrap
from privtensors.policy import Policy
from tests.unit.hf.tiny import build, inputs_for

POLICY = Policy(infer=["mpc"])


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama-tied", "vit"])
def test_only_the_client_s_tables_are_written(name: str, session: Session, tmp_path: Path) -> None:
    from transformers import AutoConfig

    model = build(name)
    private = wrap(model, POLICY, session=session)
    private.save_pretrained(tmp_path)
    found = {p.name for p in tmp_path.iterdir()}
    tables = {"embeddings.safetensors"} if private._fronts else set()
    assert found == {"config.json", "policy.toml", "privacy_card.json"} | tables
    if tables:
        saved = load_file(tmp_path / "embeddings.safetensors")
        assert saved and all(key.startswith(tuple(f"{f}." for f in private._fronts)) for key in saved)
        assert all(torch.equal(value, model.get_parameter(key)) for key, value in saved.items())
    assert AutoConfig.from_pretrained(tmp_path).model_type == model.config.model_type
    assert Policy.from_toml(tmp_path / "policy.toml") == POLICY


def test_the_card_holds_policy_explanation_ledger_head_and_versions(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite3")
    private = wrap(build("bert"), POLICY, session=Session(recorder=ledger))
    private(**inputs_for("bert"))
    private.save_pretrained(tmp_path / "out")
    card = json.loads((tmp_path / "out" / "privacy_card.json").read_text(encoding="utf-8"))
    assert card["ledger_head"] == str(ledger.head()) and card["ledger_head"].startswith("1:")
    assert card["explain"]["simulated"] is True and card["model"] == {"class": "BertForSequenceClassification", "family": "bert"}
    assert Policy.from_toml(card["policy"]) == POLICY
    assert set(card["versions"]) == {"privtensors", "torch", "transformers", "python"} and all(card["versions"].values())
    ledger.close()


def test_refusals(session: Session, tmp_path: Path) -> None:
    private = wrap(build("bert"), POLICY, session=session)
    with pytest.raises(InvalidInput, match="server"):
        private.save_pretrained(tmp_path, party="server")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidInput, match="folder"):
        private.save_pretrained(tmp_path / "file")
