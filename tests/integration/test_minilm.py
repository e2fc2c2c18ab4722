"""MiniLM with its real weights on secret shares, against the plain model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from privtensors.core import SafeTensor, Session
from privtensors.core.recorder import MemoryRecorder
from privtensors.errors import AssetRefused, AssetUnavailable
from privtensors.hf import PrivateModel, wrap
from privtensors.policy import Policy
from privtensors.testing.assets import SKIP_REASON, minilm_path

SENTENCES = (
    "The parcel came two days late and the box was torn, but the lamp inside works.",
    "ok then",
    "Please send the signed contract back to our Zurich office before Friday, or the discount of 12.5% lapses.",
)


@pytest.fixture(scope="module")
def minilm() -> tuple[Any, Any, PrivateModel]:
    from transformers import AutoModel, AutoTokenizer

    try:
        path = minilm_path()
    except AssetRefused:
        raise
    except AssetUnavailable as error:
        pytest.skip(f"{SKIP_REASON}: {error}")
    model = AutoModel.from_pretrained(path).eval()
    private = wrap(model, Policy(infer=["mpc"]), session=Session(recorder=MemoryRecorder()))
    return AutoTokenizer.from_pretrained(path), model, private


def error_of(minilm: tuple[Any, Any, PrivateModel], texts: list[str]) -> float:
    tokenizer, model, private = minilm
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        plain = model(**inputs)
    output = private(**inputs)
    assert (output.pooler_output - plain.pooler_output).abs().max() < 0.02
    difference = (output.last_hidden_state - plain.last_hidden_state)[inputs["attention_mask"].bool()]
    assert plain.last_hidden_state.abs().max() > 1
    return float(difference.abs().max())


@pytest.mark.parametrize("index", range(len(SENTENCES)))
def test_one_sentence(minilm: tuple[Any, Any, PrivateModel], index: int) -> None:
    assert error_of(minilm, [SENTENCES[index]]) <= 0.02


def test_batch_with_padding(minilm: tuple[Any, Any, PrivateModel]) -> None:
    private = minilm[2]
    before = len(private.session.recorder.entries)  # type: ignore[attr-defined]
    assert error_of(minilm, list(SENTENCES)) <= 0.02
    assert len(private.session.recorder.entries) == before + 1  # type: ignore[attr-defined]


def test_what_is_protected(minilm: tuple[Any, Any, PrivateModel]) -> None:
    plain = {key for key, p in minilm[2].model.named_parameters() if not isinstance(p, SafeTensor)}
    assert plain and all(key.startswith("embeddings.") for key in plain)
