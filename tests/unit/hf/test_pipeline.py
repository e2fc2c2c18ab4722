"""pipeline: transformers' calling convention and return types, with a private model inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from privtensors.core import Session
from privtensors.errors import InvalidInput, UnknownFamily
from privtensors.hf import pipeline, wrap
from privtensors.policy import Policy
from tests.unit.hf.tiny import build

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "a", "very", "the", "was", "plot"]
TEXTS = ["a very good film", "the plot was bad", "film"]


@pytest.fixture
def tokenizer() -> Any:
    from transformers import BertTokenizer

    return BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Any) -> Path:
    build("bert").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def same(got: Any, want: Any) -> bool:
    """Equal structure and labels, scores within 0.01."""
    if isinstance(want, list):
        return isinstance(got, list) and len(got) == len(want) and all(same(g, w) for g, w in zip(got, want, strict=True))
    return set(got) == {"label", "score"} and got["label"] == want["label"] and abs(got["score"] - want["score"]) < 0.01


@pytest.mark.parametrize("task", ["text-classification", "sentiment-analysis"])
def test_text_classification_from_a_folder(session: Session, folder: Path, task: str) -> None:
    import transformers

    want = transformers.pipeline(task, model=str(folder), device="cpu")
    got = pipeline(task, model=folder)
    assert type(got) is type(want)
    for arguments, options in (
        ((TEXTS[0],), {}),
        ((TEXTS,), {}),
        ((TEXTS,), {"batch_size": 3}),
        ((TEXTS,), {"top_k": 2}),
        ((TEXTS[0],), {"top_k": None}),
        (("good " * 20,), {"truncation": True, "max_length": 8}),
        (({"text": TEXTS[0], "text_pair": TEXTS[1]},), {}),
    ):
        assert same(got(*arguments, **options), want(*arguments, **options)), (arguments, options)
    assert got.private.policy == Policy(infer=["mpc"])


def test_one_ledger_row_per_forward(session: Session, folder: Path) -> None:
    classify = pipeline("text-classification", model=str(folder), session=session)
    classify(TEXTS, batch_size=3)
    assert len(session.recorder.entries) == 1  # type: ignore[attr-defined]
    classify(TEXTS)
    assert len(session.recorder.entries) == 4  # type: ignore[attr-defined]


def test_feature_extraction_with_a_loaded_model(session: Session, tokenizer: Any) -> None:
    import transformers

    model = build("bert-base")
    want = transformers.pipeline("feature-extraction", model=model, tokenizer=tokenizer, device="cpu")(TEXTS)
    extract = pipeline("feature-extraction", model=model, tokenizer=tokenizer, policy=Policy(infer=["clear"]))
    got = extract(TEXTS)
    for mine, plain in zip(got, want, strict=True):
        torch.testing.assert_close(torch.tensor(mine), torch.tensor(plain), rtol=1e-4, atol=1e-5)
    assert type(extract(TEXTS[0], return_tensors=True)) is torch.Tensor
    assert type(model.bert if hasattr(model, "bert") else model) is type(extract.model)


def test_image_classification(session: Session) -> None:
    import transformers
    from PIL import Image
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    image = Image.effect_noise((40, 30), 60).convert("RGB")
    model = build("vit")
    want = transformers.pipeline("image-classification", model=model, image_processor=processor, device="cpu")(image)
    got = pipeline("image-classification", model=model, image_processor=processor)(image)
    assert same(got, want)


def test_a_private_model_keeps_its_policy(session: Session, tokenizer: Any) -> None:
    private = wrap(build("bert"), Policy(infer=["clear"]), session=session)
    classify = pipeline("text-classification", model=private, tokenizer=tokenizer)
    assert classify.private is private
    assert set(classify(TEXTS[0])[0]) == {"label", "score"}
    with pytest.raises(InvalidInput, match="already"):
        pipeline("text-classification", model=private, tokenizer=tokenizer, policy=Policy(infer=["mpc"]))


def test_refusals(session: Session, folder: Path, tokenizer: Any) -> None:
    with pytest.raises(InvalidInput, match="feature-extraction, image-classification"):
        pipeline("text-generation", model=folder)
    with pytest.raises(InvalidInput, match="no model"):
        pipeline("text-classification")
    with pytest.raises(InvalidInput, match="CPU"):
        pipeline("text-classification", model=folder, device="cuda")
    model = build("bert")
    model.config.model_type = "t5"
    with pytest.raises(UnknownFamily):
        pipeline("text-classification", model=model, tokenizer=tokenizer)
