"""``wrap`` under ``Obfuscation`` with real weights: embeddings of MiniLM and a story of stories15M, as the plain models give them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import privtensors as pt
from privtensors.core import Session
from privtensors.core.recorder import MemoryRecorder
from privtensors.errors import AssetRefused, AssetUnavailable
from privtensors.testing.assets import SKIP_REASON, minilm_path, stories15m

POLICY = pt.Policy(infer=[pt.Obfuscation()])
TEXTS = ["The parcel came two days late, but the lamp inside works.", "ok then", "Send the contract to Zurich before Friday."]


def asset(load: Callable[[], Any]) -> Any:
    try:
        return load()
    except AssetRefused:
        raise
    except AssetUnavailable as error:
        pytest.skip(f"{SKIP_REASON}: {error}")


def test_minilm_gives_the_same_embeddings() -> None:
    from transformers import AutoModel, AutoTokenizer

    path = asset(minilm_path)
    model = AutoModel.from_pretrained(path).eval()
    inputs = AutoTokenizer.from_pretrained(path)(TEXTS, padding=True, return_tensors="pt")
    private = pt.wrap(model, POLICY, session=Session(recorder=MemoryRecorder()))
    with torch.no_grad():
        plain = model(**inputs)
    got = private(**inputs)
    assert float((got.last_hidden_state - plain.last_hidden_state).abs().max()) <= 1e-4 < float(plain.last_hidden_state.abs().max())
    assert float((got.pooler_output - plain.pooler_output).abs().max()) <= 1e-4


def test_stories15m_tells_the_same_story() -> None:
    model = asset(stories15m)
    session = Session(recorder=MemoryRecorder())
    private = pt.wrap(model, POLICY, session=session)
    ids = torch.tensor([[1, 9038, 2501, 263, 931]])  # "Once upon a time", after the beginning of text
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 24, "do_sample": False}
    want, got = model.generate(ids, **options), private.generate(ids, **options)  # type: ignore[arg-type]
    assert torch.equal(got, want) and want.shape[1] > ids.shape[1]
    assert len(session.recorder.entries) == want.shape[1] - ids.shape[1]  # type: ignore[attr-defined]
