"""``wrap`` under ``Obfuscation``: exact answers, keyed inputs at the server, one ledger row each, and refusals before anything is spent."""

from __future__ import annotations

import copy
import io
import json
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import privtensors as pt
from privtensors.accounting import Ledger
from privtensors.core import Session
from privtensors.core.recorder import MemoryRecorder
from privtensors.errors import (
    InvalidInput,
    LedgerError,
    ObfuscationError,
    OutOfRange,
    PlaintextLeak,
    PolicyError,
    UnknownFamily,
    WrongKey,
)
from privtensors.hf.obfuscated import ObfuscatedModel
from privtensors.hf.trainable import TrainableModel
from privtensors.obfuscation.equivariant import maps_of
from privtensors.obfuscation.keys import ObfuscationKey, load_key, save_key
from tests.unit.hf.rows import reviews
from tests.unit.hf.tiny import CAUSAL, TEXT, VIT_SIZES, build, inputs_for, text_inputs

POLICY = pt.Policy(infer=[pt.Obfuscation()])
NAMES = [*TEXT, "vit"]


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "owner.key"
    save_key(path, ObfuscationKey.generate())
    return path


def wrapped(name: str, session: Session | None = None, policy: pt.Policy = POLICY, **more: Any) -> tuple[Any, ObfuscatedModel]:
    model = build(name, **more)
    private = pt.wrap(model, policy, session=session)
    assert isinstance(private, ObfuscatedModel)
    return model, private


# Exact.


@pytest.mark.parametrize("name", NAMES)
def test_plain_in_plain_out_exactly_and_one_row_per_call(name: str, session: Session) -> None:
    model, private = wrapped(name)
    inputs = inputs_for(name)
    with torch.no_grad():
        want, got = model(**inputs), private(**inputs)
    found = {k for k in want if isinstance(want[k], torch.Tensor)}
    assert type(got) is type(want) and found == {k for k in got if isinstance(got[k], torch.Tensor)} and found
    for output in found:
        assert torch.allclose(got[output], want[output], atol=1e-4) and not got[output].requires_grad
    (row,) = session.recorder.entries  # type: ignore[attr-defined]
    assert (row.backend, row.receiver, row.guarantee, row.simulated) == ("obfuscation", "client", "heuristic", True)
    assert set(row.label.split(", ")) == found and ("key id", private.key_id) in row.details


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("eos", [None, 18, [18, 62, 74, 30]])
def test_generation_is_identical(name: str, eos: Any, session: Session) -> None:
    """Also where it stops: the end of text is a plain id at the client, and another id at the server."""
    model, private = wrapped(name)
    inputs = text_inputs(name, left=True)
    for one in (model, private.model):
        one.generation_config.eos_token_id = eos
    want = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    got = private.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert torch.equal(got, want)
    assert len(session.recorder.entries) == want.shape[1] - inputs["input_ids"].shape[1]  # type: ignore[attr-defined]


def test_patches_are_back_in_their_places(session: Session) -> None:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    model: Any = ViTModel(ViTConfig(**VIT_SIZES, initializer_range=0.2)).eval()
    inputs = inputs_for("vit")
    with torch.no_grad():
        want = model(**inputs)
    got = pt.wrap(model, POLICY)(**inputs)
    assert torch.allclose(got.last_hidden_state, want.last_hidden_state, atol=1e-4)
    assert torch.allclose(got.pooler_output, want.pooler_output, atol=1e-4)


def test_positional_arguments_token_types_and_cache(session: Session) -> None:
    model, private = wrapped("bert")
    inputs = text_inputs("bert")
    types = torch.zeros_like(inputs["input_ids"])
    types[:, 4:] = 1
    with torch.no_grad():
        want = model(inputs["input_ids"], inputs["attention_mask"], types).logits
    assert torch.allclose(private(inputs["input_ids"], inputs["attention_mask"], types).logits, want, atol=1e-4)
    causal, answering = wrapped("gpt2")
    ids = text_inputs("gpt2")["input_ids"][:1]
    first = answering(input_ids=ids[:, :4], use_cache=True)
    again = answering(input_ids=ids[:, 4:], past_key_values=first.past_key_values, use_cache=True)
    with torch.no_grad():
        assert torch.allclose(again.logits, causal(input_ids=ids).logits[:, 4:], atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2-classifier", "roberta"])
def test_padding_is_found_under_its_keyed_id(name: str, session: Session) -> None:
    model, private = wrapped(name)
    ids = text_inputs(name)["input_ids"]
    with torch.no_grad():
        want = model(input_ids=ids, attention_mask=(ids != model.config.pad_token_id).long()).logits
    assert torch.allclose(private(input_ids=ids, attention_mask=(ids != model.config.pad_token_id).long()).logits, want, atol=1e-4)
    alone = private(input_ids=ids[1:, :5]).logits
    assert torch.allclose(alone[0], private(input_ids=ids, attention_mask=(ids != model.config.pad_token_id).long()).logits[1], atol=1e-4)


def test_bfloat16_and_several_labels(session: Session) -> None:
    model = build("bert", num_labels=5).to(torch.bfloat16)
    private, inputs = pt.wrap(model, POLICY), text_inputs("bert")
    with torch.no_grad():
        want = model(**inputs).logits
    got = private(**inputs).logits
    assert got.dtype == torch.bfloat16 and torch.allclose(got, want, atol=0.1)


# What the server is given.


def test_the_server_sees_keyed_ids_and_no_plain_weight(session: Session, key_file: Path) -> None:
    model, private = wrapped("bert", policy=pt.Policy(infer=[pt.Obfuscation(key=str(key_file))]))
    vocabulary, labels = maps_of(model, load_key(key_file))
    assert vocabulary is not None and labels is not None
    seen: list[torch.Tensor] = []
    private.model.get_input_embeddings().register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    private.model.classifier.register_forward_hook(lambda _m, _a, out: seen.append(out.clone()))
    inputs = text_inputs("bert")
    answer = private(**inputs).logits
    ids, logits = seen
    assert torch.equal(ids, vocabulary.encode(inputs["input_ids"])) and not torch.equal(ids, inputs["input_ids"])
    assert torch.equal(labels.decode_logits(logits), answer)
    assert type(private.model) is type(model) and private.model.num_parameters() == model.num_parameters()
    plain = dict(model.named_parameters())
    moved = {name for name, p in private.model.named_parameters() if not torch.equal(p, plain[name])}
    assert {name for name in plain if name.endswith("weight") and "LayerNorm" not in name and "classifier" not in name} <= moved
    assert private.config.pad_token_id == int(vocabulary.keyed[0]) and not any(p.requires_grad for p in private.model.parameters())


def test_pixels_are_keyed_at_the_client(session: Session) -> None:
    _, private = wrapped("vit")
    seen: list[torch.Tensor] = []
    private.model.vit.embeddings.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    pixels = inputs_for("vit")["pixel_values"]
    private(pixel_values=pixels)
    (sent,) = seen
    assert sent.shape == pixels.shape and not torch.allclose(sent, pixels) and torch.allclose(sent.norm(), pixels.norm(), rtol=1e-4)


def test_the_model_given_is_left_as_it_is(session: Session) -> None:
    model = build("gpt2")
    before, config = copy.deepcopy(model.state_dict()), model.config.to_dict()
    pt.wrap(model, POLICY)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and model.config.to_dict() == config
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_each_wrapping_draws_a_key_and_a_file_gives_the_same(session: Session, key_file: Path) -> None:
    ids = {wrapped("bert")[1].key_id for _ in range(3)}
    policy = pt.Policy(infer=[pt.Obfuscation(key=str(key_file))])
    assert len(ids) == 3 and {wrapped("bert", policy=policy)[1].key_id for _ in range(2)} == {load_key(key_file).id}


def test_it_says_simulated_and_heuristic(session: Session, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "privtensors"):
        _, private = wrapped("gpt2")
    assert "SIMULATED" in caplog.text
    text = " ".join(str(private.explain()).split())
    for said in ("SIMULATED", "heuristic", "lacks the weights", "recovers the key", private.key_id, "once per token", "no encryption"):
        assert said in text, said
    assert private.key_id in repr(private)


# Refused.


@pytest.mark.parametrize("wanted", ["output_hidden_states", "output_attentions"])
def test_insides_are_refused_because_they_are_in_the_keyed_basis(wanted: str, session: Session) -> None:
    _, private = wrapped("bert", attention="eager")
    inputs = text_inputs("bert")
    with pytest.raises(InvalidInput, match="keyed basis"):
        private(**inputs, **{wanted: True})
    setattr(private.model.config, wanted, True)
    with pytest.raises(InvalidInput, match="keyed basis"):
        private(**inputs)
    assert not session.recorder.entries  # type: ignore[attr-defined]
    assert private(**inputs, **{wanted: False}).logits.shape == (2, 2)


def test_bad_requests(session: Session) -> None:
    _, private = wrapped("bert")
    ids = text_inputs("bert")["input_ids"]
    with pytest.raises(OutOfRange, match="the vocabulary"):
        private(input_ids=ids + 95)
    for bad in ({"input_ids": ids.float()}, {}, {"input_ids": ids, "labels": torch.zeros(2)}, {"inputs_embeds": torch.zeros(1, 1, 32)},
                {"input_ids": ids, "return_dict": False}):  # fmt: skip
        with pytest.raises(InvalidInput):
            private(**bad)
    private.model.train()
    with pytest.raises(InvalidInput, match="evaluation mode"):
        private(input_ids=ids)


def test_no_answer_without_a_ledger_row(session: Session) -> None:
    class Full:
        def record(self, disclosure: object) -> None:
            raise LedgerError("disk full", where="ledger")

    _, private = wrapped("bert", session=Session(recorder=Full()))
    with pytest.raises(LedgerError):
        private(**text_inputs("bert"))


@pytest.mark.parametrize("name", ["resnet", "mobilenet_v2"])
def test_unknown_families(name: str, session: Session) -> None:
    with pytest.raises(UnknownFamily):
        pt.wrap(build(name), POLICY)


def test_bad_keys_schemes_and_models(session: Session, tmp_path: Path, key_file: Path) -> None:
    def policy(**terms: Any) -> pt.Policy:
        return pt.Policy(infer=[pt.Obfuscation(**terms)])

    model = build("bert")
    with pytest.raises(PolicyError, match="sentinel"):
        pt.wrap(model, policy(scheme="sentinel"))
    with pytest.raises(WrongKey, match="no key file"):
        pt.wrap(model, policy(key=str(tmp_path / "missing")))
    save_key(tmp_path / "locked", ObfuscationKey.generate(), passphrase="x")
    with pytest.raises(WrongKey, match="passphrase"):
        pt.wrap(model, policy(key=str(tmp_path / "locked")))
    key_file.chmod(0o644)
    with pytest.raises(WrongKey, match="chmod 600"):
        pt.wrap(model, policy(key=str(key_file)))
    with torch.no_grad():
        model.classifier.weight[0, 0] = float("nan")
    with pytest.raises(InvalidInput, match="NaN"):
        pt.wrap(model, POLICY)
    _, private = wrapped("bert")
    with pytest.raises(InvalidInput, match="wrapped already"):
        pt.wrap(private, POLICY)  # type: ignore[arg-type]


def test_a_deployment_of_backends_points_to_the_keyed_server(session: Session) -> None:
    from privtensors.hf.wrap import computing_technique

    with pytest.raises(PolicyError, match="privtensors convert"):
        computing_technique(POLICY)
    with pytest.raises(PolicyError, match="train stage is not DP"):
        wrapped("bert")[1].fit(reviews())
    with pytest.raises(InvalidInput, match="no backend"):
        pt.protect(torch.zeros(2), "obfuscation")
    with pytest.raises(InvalidInput, match="device"):
        wrapped("bert", session=DeviceSession())


class DeviceSession(Session):
    """A session on a device, without needing one."""

    def __init__(self) -> None:
        super().__init__(recorder=MemoryRecorder())
        self.device = torch.device("cuda")


def test_the_key_does_not_leave_with_the_model(session: Session, tmp_path: Path) -> None:
    _, private = wrapped("bert")
    secret = private._key.secret
    for leave in (copy.deepcopy, pickle.dumps, lambda model: torch.save(model, io.BytesIO())):
        with pytest.raises(PlaintextLeak, match="folder for each"):
            leave(private.model)
    with pytest.raises(PlaintextLeak, match="two folders"):
        private.model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    text = repr(private) + repr(private.model) + repr(vars(private)) + str(list(private.model._forward_hooks.values()))
    assert secret.hex() not in text and repr(secret)[2:-1] not in text


# Pipelines and folders.

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "a", "very", "the", "was", "plot"]
TEXTS = ["a very good film", "the plot was bad", "film"]


@pytest.fixture
def tokenizer() -> Any:
    from transformers import BertTokenizer

    return BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})


def test_pipeline_and_both_folders(session: Session, tmp_path: Path, tokenizer: Any) -> None:
    import transformers

    model = build("bert", id2label={0: "dull", 1: "great"}, label2id={"dull": 0, "great": 1})
    want = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")(TEXTS, top_k=None)
    classify: Any = pt.pipeline("text-classification", model=model, tokenizer=tokenizer, policy=POLICY)
    got = classify(TEXTS, top_k=None)
    for mine, theirs in zip(got, want, strict=True):
        assert [entry["label"] for entry in mine] == [entry["label"] for entry in theirs]
        assert all(abs(a["score"] - b["score"]) < 1e-4 for a, b in zip(mine, theirs, strict=True))
    private = classify.private
    private.save_pretrained(tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"client", "server", "policy.toml", "privacy_card.json"}
    server = b"".join(p.read_bytes() for p in (tmp_path / "out" / "server").rglob("*") if p.is_file())
    assert b"great" not in server and b"film" not in server and private._key.secret.hex().encode() not in server
    card = (tmp_path / "out" / "privacy_card.json").read_text()
    assert json.loads(card)["policy"] == POLICY.to_toml() and "recovers the key" in card and private._key.secret.hex() not in card

    # The published use: stock classes on both sides, and the label key at the client.
    from privtensors.obfuscation.convert import load_client

    client = load_client(tmp_path / "out" / "client")
    encoded = transformers.AutoTokenizer.from_pretrained(tmp_path / "out" / "client")(TEXTS, padding=True, return_tensors="pt")
    served = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "server")
    with torch.no_grad():
        logits = served(**encoded).logits
    plain = tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert client.labels is not None
    assert torch.allclose(client.labels.decode_logits(logits), private(**plain).logits, atol=1e-4)


def test_saving_needs_a_processor_the_client_and_free_places(session: Session, tmp_path: Path, tokenizer: Any) -> None:
    _, private = wrapped("bert")
    with pytest.raises(InvalidInput, match="tokenizer"):
        private.save_pretrained(tmp_path / "out")
    with pytest.raises(InvalidInput, match="server"):
        private.save_pretrained(tmp_path / "out", party="server", processor=tokenizer)
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match="file"):
        private.save_pretrained(tmp_path / "file", processor=tokenizer)
    assert not (tmp_path / "out").exists()
    private.save_pretrained(tmp_path / "out", processor=tokenizer)
    with pytest.raises(ObfuscationError, match="not empty"):
        private.save_pretrained(tmp_path / "out", processor=tokenizer)


# Trained with differential privacy, served obfuscated: one policy.


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Session]:
    with Ledger(tmp_path / "ledger.sqlite") as opened, Session(recorder=opened) as made:
        yield made


def test_trained_under_dp_and_served_obfuscated(ledger: Session, tmp_path: Path, tokenizer: Any) -> None:
    policy = pt.Policy(train=[pt.DP(noise_multiplier=1.0, dataset="reviews")], infer=[pt.Obfuscation()])
    model = build("bert").train()
    private = pt.wrap(model, policy)
    assert isinstance(private, TrainableModel)
    inputs = text_inputs("bert")
    before = private(**inputs).logits
    key_id = private.served.key_id  # type: ignore[attr-defined]
    result = private.fit(reviews(), steps=2, batch_size=8, progress=False)
    assert result.steps == 2
    after = private(**inputs).logits
    with torch.no_grad():
        want = model.eval()(**inputs).logits
    assert torch.allclose(after, want, atol=1e-4) and not torch.allclose(after, before, atol=1e-3), "converted from the trained weights"
    assert private.served.key_id == key_id, "one key per wrapping"  # type: ignore[attr-defined]
    text = " ".join(str(private.explain()).split())
    assert "noised (eps" in text and "obfuscated" in text and "recovers the key" in text
    model.train()
    private.served.save_pretrained(tmp_path / "out", processor=tokenizer)  # type: ignore[call-arg]
    assert len(json.loads((tmp_path / "out" / "privacy_card.json").read_text())["training"]) == 1


def test_what_cannot_be_served_is_refused_before_training(ledger: Session, tmp_path: Path) -> None:
    """A run spends privacy: a key that is missing, or a family without a transform, must not be found after it."""
    train = [pt.DP(epsilon=3.0, dataset="reviews")]
    with pytest.raises(WrongKey):
        pt.wrap(build("bert"), pt.Policy(train=train, infer=[pt.Obfuscation(key=str(tmp_path / "missing"))]))
    with pytest.raises(UnknownFamily):
        pt.wrap(build("resnet"), pt.Policy(train=train, infer=[pt.Obfuscation()]))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")  # PEFT asks transformers for it
def test_adapters_are_merged_into_a_copy(session: Session) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(build("bert"), LoraConfig(task_type="SEQ_CLS", target_modules=["query"], init_lora_weights=False)).eval()
    private, inputs = pt.wrap(model, POLICY), text_inputs("bert")
    with torch.no_grad():
        want = model(**inputs).logits
    assert torch.allclose(private(**inputs).logits, want, atol=1e-4)
    assert any("lora" in name for name, _ in model.named_parameters())
