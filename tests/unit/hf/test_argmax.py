"""Policies that reveal only the index of the largest logit: outputs, generation, pipelines, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from privtensors.core import Session
from privtensors.core.recorder import MemoryRecorder
from privtensors.core.safetensor import SafeTensor
from privtensors.errors import PlaintextLeak, PolicyError
from privtensors.hf import PrivateModel, pipeline, wrap
from privtensors.policy import Policy
from tests.unit.hf.test_pipeline import TEXTS, WORDS
from tests.unit.hf.tiny import build, inputs_for, text_inputs

TECHNIQUES = ["clear", "mpc"]


def private_of(model: Any, technique: str = "clear") -> PrivateModel:
    return wrap(model, Policy(infer=[technique], outputs="argmax"), session=Session(recorder=MemoryRecorder()))


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("name", ["bert", "bert-mlm", "gpt2-classifier", "vit", "resnet"])
def test_predictions_instead_of_logits(name: str, technique: str) -> None:
    model, inputs = build(name), inputs_for(name)
    private = private_of(model, technique)
    output = private(**inputs, output_hidden_states=True)
    with torch.no_grad():
        want = model(**inputs).logits.argmax(-1)
    relevant = inputs["attention_mask"].bool() if want.dim() == 2 else torch.ones_like(want, dtype=torch.bool)
    got = output.predictions
    assert type(got) is Tensor and got.dtype == torch.int64 and got.shape == want.shape
    assert torch.equal(got[relevant], want[relevant])
    assert isinstance(output.logits, SafeTensor) and all(isinstance(h, SafeTensor) for h in output.hidden_states)
    with pytest.raises(PlaintextLeak):
        output.logits.tolist()
    (record,) = private.session.recorder.entries  # type: ignore[attr-defined]
    assert record.label == "predictions" and record.dtype == "int64" and record.receiver == "client"


@pytest.mark.parametrize("left", [False, True])
def test_the_next_token_is_that_of_the_last_attended_position(left: bool) -> None:
    model = build("gpt2")
    inputs = text_inputs("gpt2", left=left)
    output = private_of(model)(**inputs)
    with torch.no_grad():
        logits = model(**inputs).logits
    places = [6, 6 if left else 4]
    assert output.predictions.tolist() == [int(logits[i, place].argmax()) for i, place in enumerate(places)]


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("name", ["gpt2", "llama", "llama-tied"])
def test_generation_is_token_for_token_the_plain_one(name: str, technique: str) -> None:
    model = build(name)
    private = private_of(model, technique)
    inputs = text_inputs(name, left=True)
    want = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert torch.equal(private.generate(**inputs, max_new_tokens=4, do_sample=False), want)
    assert len(private.session.recorder.entries) == 4  # type: ignore[attr-defined]
    assert not isinstance(private(**inputs).logits, Tensor) or isinstance(private(**inputs).logits, SafeTensor)  # the hook is gone


def test_generation_stops_at_the_end_of_sequence_as_the_plain_one() -> None:
    model = build("gpt2")
    ids = torch.tensor([[5, 17, 33], [9, 8, 7]])
    plain = model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None)
    model.generation_config.eos_token_id = int(plain[0, 4])  # the second token of the first answer
    want = model.generate(ids, max_new_tokens=6, do_sample=False)
    assert torch.equal(private_of(model).generate(ids, max_new_tokens=6, do_sample=False), want)
    assert (want[0, 5:] == 0).all()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("do_sample", True),
        ("repetition_penalty", 1.3),
        ("no_repeat_ngram_size", 2),
        ("min_length", 9),
        ("bad_words_ids", [[7]]),
        ("output_scores", True),
        ("output_logits", True),
        ("suppress_tokens", [4]),
        ("forced_eos_token_id", 3),
        ("guidance_scale", 2.0),
    ],
)
def test_what_needs_the_logits_is_refused(option: str, value: Any) -> None:
    from transformers import GenerationConfig

    private = private_of(build("gpt2"))
    config = GenerationConfig(max_new_tokens=3, pad_token_id=0, **{option: value})
    with pytest.raises(PolicyError, match="argmax"):
        private.generate(torch.tensor([[5, 6]]), generation_config=config)
    if option == "do_sample":
        with pytest.raises(PolicyError, match="sampling needs the logits"):
            private.generate(torch.tensor([[5, 6]]), do_sample=True)
        assert private.generate(torch.tensor([[5, 6]]), generation_config=config, do_sample=False).shape == (1, 5)
        return
    assert not private.session.recorder.entries  # type: ignore[attr-defined]


def test_the_stock_generate_gets_no_tokens_by_itself() -> None:
    """Called past PrivateModel.generate it has nothing to choose from, and fails closed."""
    from privtensors.errors import PrivTensorsError

    private = private_of(build("gpt2"), "mpc")
    with pytest.raises(PrivTensorsError):
        private.model.generate(torch.tensor([[5, 6]]), max_new_tokens=2, do_sample=False)


@pytest.mark.parametrize(("name", "said"), [("bert-base", "has no logits"), ("bert", "little"), ("vit", "several labels")])
def test_models_without_one_largest_logit_are_refused(name: str, said: str) -> None:
    more: dict[str, Any] = {"bert": {"num_labels": 1}, "vit": {"problem_type": "multi_label_classification"}}.get(name, {})
    with pytest.raises(PolicyError, match=said):
        private_of(build(name, **more))


@pytest.fixture
def classify(session: Session, tmp_path: Path) -> Any:
    from transformers import BertTokenizer

    build("bert").save_pretrained(tmp_path)
    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(tmp_path)
    return pipeline("text-classification", model=tmp_path, policy=Policy(infer=["mpc"], outputs="argmax"), session=session)


def test_a_pipeline_gives_labels_without_scores(classify: Any) -> None:
    import transformers

    plain = transformers.pipeline("text-classification", model=build("bert"), tokenizer=classify.tokenizer, device="cpu")
    want = [{"label": answer["label"]} for answer in plain(TEXTS)]
    assert classify(TEXTS) == want
    assert classify(TEXTS, batch_size=3) == want
    assert classify(TEXTS[0]) == want[:1]
    assert classify(TEXTS[0], top_k=1) == [want[0]]
    for options in ({"top_k": 2}, {"top_k": None}, {"function_to_apply": "softmax"}):
        with pytest.raises(PolicyError, match="needs scores"):
            classify(TEXTS[0], **options)


def test_images_get_labels_without_scores(session: Session) -> None:
    from PIL import Image
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    image = Image.effect_noise((40, 30), 60).convert("RGB")
    policy = Policy(infer=["clear"], outputs="argmax")
    (answer,) = pipeline("image-classification", model=build("vit"), image_processor=processor, policy=policy, session=session)(image)
    assert set(answer) == {"label"} and answer["label"].startswith("LABEL_")


def test_what_is_saved_says_so(tmp_path: Path) -> None:
    private = private_of(build("bert"))
    private.save_pretrained(tmp_path)
    assert Policy.from_toml(tmp_path / "policy.toml").outputs == "argmax"
    assert "index of the largest only" in (tmp_path / "privacy_card.json").read_text()
