"""convert, rotate, load_client: folders that stock classes load, whole or not there, with nothing plain at the server."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from privtensors.errors import FileFormatError, InvalidInput, ObfuscationError, UnknownFamily, UnpairedFolders, WrongKey
from privtensors.obfuscation.convert import convert, load_client, rotate
from privtensors.obfuscation.folders import check_pair, check_weights
from privtensors.obfuscation.keys import ObfuscationKey, save_key
from privtensors.obfuscation.vocabulary import Vocabulary
from tests.unit.obfuscation.models import NAMES, TEXT_FAMILIES, TEXTS, build, build_vit, save
from tests.unit.obfuscation.searched import findings

KEY = ObfuscationKey(bytes(range(7, 39)))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "client", tmp_path / "server"


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_a_classifier_answers_as_before(family: str, folders: tuple[Path, Path], tmp_path: Path) -> None:
    model, tokenizer = build(family)
    source = save(tmp_path / "plain", model, tokenizer)
    converted = convert(source, client=folders[0], server=folders[1])
    tokenizer, client = AutoTokenizer.from_pretrained(source), load_client(folders[0])
    served = AutoModelForSequenceClassification.from_pretrained(folders[1])
    assert type(served) is type(model) and served.num_parameters() == model.num_parameters() == converted.parameters
    keyed = AutoTokenizer.from_pretrained(folders[0])
    for texts in (TEXTS, TEXTS[:1], TEXTS[1:]):  # padded where there are two
        with torch.no_grad():
            plain = model(**_as_inputs(model, tokenizer(texts, padding=len(texts) > 1, return_tensors="pt"))).logits
            answer = served(**_as_inputs(model, keyed(texts, padding=len(texts) > 1, return_tensors="pt"))).logits
        torch.testing.assert_close(client.decode_logits(answer), plain, atol=1e-4, rtol=0)
    assert client.manifest.labels == tuple(NAMES.values()) and converted.labels == 3 and converted.error is not None
    assert converted.error < 1e-4 and check_pair(*folders) and check_weights(folders[1]).key_id == client.key.id == converted.key_id


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_generated_text_is_the_same(family: str, tied: bool, folders: tuple[Path, Path]) -> None:
    model, tokenizer = build(family, "LMHeadModel" if family == "gpt2" else "ForCausalLM", tie_word_embeddings=tied)
    model.tie_weights()
    model.generation_config.suppress_tokens = [5, 6]
    model.generation_config.bad_words_ids = [[8], [9, 10]]
    convert(model, tokenizer, client=folders[0], server=folders[1])
    client, served = load_client(folders[0]), AutoModelForCausalLM.from_pretrained(folders[1])
    assert client.vocabulary is not None
    options = {"max_new_tokens": 12, "do_sample": False}
    for text in TEXTS:
        plain = model.generate(**_as_inputs(model, tokenizer(text, return_tensors="pt")), **options)
        keyed = served.generate(**_as_inputs(model, client.tokenizer(text, return_tensors="pt")), **options)
        assert torch.equal(client.vocabulary.decode(keyed), plain)
        assert client.tokenizer.decode(keyed[0]) == tokenizer.decode(plain[0])


def test_hidden_states_come_back_to_the_client(folders: tuple[Path, Path]) -> None:
    model, tokenizer = build("bert", "Model")
    converted = convert(model, tokenizer, client=folders[0], server=folders[1])
    client, served = load_client(folders[0]), transformers.AutoModel.from_pretrained(folders[1])
    with torch.no_grad():
        pairs = ((model, tokenizer), (served, client.tokenizer))
        plain, answer = (one(**tokens(TEXTS, padding=True, return_tensors="pt")) for one, tokens in pairs)
    torch.testing.assert_close(client.decode_hidden(answer.last_hidden_state).float(), plain.last_hidden_state, atol=1e-4, rtol=0)
    torch.testing.assert_close(client.decode_pooled(answer.pooler_output).float(), plain.pooler_output, atol=1e-4, rtol=0)
    assert converted.labels == 0 and converted.error is not None and client.labels is None
    with pytest.raises(InvalidInput, match="neither labels nor vocabulary"):
        client.decode_logits(torch.zeros(2, 3))
    with pytest.raises(InvalidInput, match="the width 24"):
        client.decode_hidden(torch.zeros(2, 3))
    with pytest.raises(InvalidInput, match="takes text"):
        client.key_pixels(torch.zeros(1, 3, 16, 16))


def test_images(folders: tuple[Path, Path], tmp_path: Path) -> None:
    model, processor = build_vit()
    convert(save(tmp_path / "plain", model, processor), client=folders[0], server=folders[1])
    client, served = load_client(folders[0]), transformers.AutoModelForImageClassification.from_pretrained(folders[1])
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        plain, answer = model(pixels).logits, served(client.key_pixels(pixels)).logits
    torch.testing.assert_close(client.decode_logits(answer), plain, atol=1e-4, rtol=0)
    assert client.image_processor.size["height"] == 16 and client.vocabulary is None and client.tokenizer is None
    rotate(*folders)
    client, served = load_client(folders[0]), transformers.AutoModelForImageClassification.from_pretrained(folders[1])
    with torch.no_grad():
        answer = served(client.key_pixels(pixels)).logits
    torch.testing.assert_close(client.decode_logits(answer), plain, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_rotation(family: str, folders: tuple[Path, Path]) -> None:
    model, tokenizer = build(family)
    first = convert(model, tokenizer, client=folders[0], server=folders[1], key=KEY)
    old = (folders[1] / "model.safetensors").read_bytes()
    second = rotate(*folders)
    assert second.key_id != first.key_id and (folders[1] / "model.safetensors").read_bytes() != old
    assert (second.parameters, second.rows, second.labels, second.dtype) == (first.parameters, first.rows, first.labels, first.dtype)
    client, served = load_client(folders[0]), AutoModelForSequenceClassification.from_pretrained(folders[1])
    assert client.vocabulary is not None and client.key.id == second.key_id
    expected = tokenizer(TEXTS[1])["input_ids"]
    assert client.tokenizer(TEXTS[1])["input_ids"] == client.vocabulary.encode(torch.tensor(expected)).tolist()
    assert client.tokenizer.decode(client.tokenizer(TEXTS[1])["input_ids"]) == tokenizer.decode(expected)
    with torch.no_grad():
        plain = model(**_as_inputs(model, tokenizer(TEXTS[1], return_tensors="pt"))).logits
        answer = served(**_as_inputs(model, client.tokenizer(TEXTS[1], return_tensors="pt"))).logits
    torch.testing.assert_close(client.decode_logits(answer), plain, atol=1e-4, rtol=0)
    check_pair(*folders)


def test_rotation_gives_what_a_conversion_under_the_new_key_gives(folders: tuple[Path, Path], tmp_path: Path) -> None:
    model, tokenizer = build("llama")
    convert(model, tokenizer, client=folders[0], server=folders[1])
    rotate(*folders, key=KEY)
    convert(model, tokenizer, client=tmp_path / "c", server=tmp_path / "s", key=KEY)
    assert (folders[0] / "tokenizer.json").read_text() == (tmp_path / "c" / "tokenizer.json").read_text()
    assert (folders[1] / "config.json").read_text() == (tmp_path / "s" / "config.json").read_text()
    assert sorted(p.name for p in folders[0].iterdir()) == sorted(p.name for p in (tmp_path / "c").iterdir())


def test_a_passphrase_wraps_the_key_through_rotation(folders: tuple[Path, Path]) -> None:
    model, tokenizer = build("bert")
    convert(model, tokenizer, client=folders[0], server=folders[1], key=KEY, passphrase="open sesame")
    assert KEY.secret.hex() not in (folders[0] / "key.json").read_text()
    with pytest.raises(WrongKey, match="passphrase"):
        load_client(folders[0])
    with pytest.raises(WrongKey):
        rotate(*folders, passphrase="open barley")
    rotate(*folders, passphrase="open sesame")
    assert load_client(folders[0], passphrase="open sesame").key != KEY
    with pytest.raises(WrongKey, match="passphrase"):
        load_client(folders[0])


def test_rotation_to_the_same_key(folders: tuple[Path, Path]) -> None:
    convert(*build("bert"), client=folders[0], server=folders[1], key=KEY)
    with pytest.raises(WrongKey, match="the new key is the old one"):
        rotate(*folders, key=KEY)


def test_mismatched_folders(folders: tuple[Path, Path], tmp_path: Path) -> None:
    model, tokenizer = build("bert")
    convert(model, tokenizer, client=folders[0], server=folders[1])
    other = tmp_path / "other client", tmp_path / "other server"
    convert(model, tokenizer, client=other[0], server=other[1])
    before = _bytes(tmp_path)
    for client, server in ((folders[0], other[1]), folders[::-1], (folders[0], folders[0])):
        with pytest.raises(UnpairedFolders):
            rotate(client, server)
    with pytest.raises(UnpairedFolders, match="server folder"):
        load_client(folders[1])
    assert _bytes(tmp_path) == before


def test_a_key_that_is_not_the_folders(folders: tuple[Path, Path], tmp_path: Path) -> None:
    convert(*build("bert"), client=folders[0], server=folders[1])
    key = folders[0] / "key.json"
    key.unlink()
    with pytest.raises(WrongKey, match="no key file"):
        load_client(folders[0])
    save_key(key, KEY)
    with pytest.raises(WrongKey, match=f"{KEY.id} is not that of the folder"):
        load_client(folders[0])
    key.chmod(0o644)
    with pytest.raises(WrongKey, match="others than its owner"):
        load_client(folders[0])
    for length in (0, 16, 31, 33):
        with pytest.raises(WrongKey, match="32 bytes"):
            ObfuscationKey(bytes(length))


def test_a_plain_tokenizer_copied_over_the_keyed_one(folders: tuple[Path, Path]) -> None:
    """It would send plain ids."""
    model, tokenizer = build("bert")
    convert(model, tokenizer, client=folders[0], server=folders[1])
    tokenizer.save_pretrained(folders[0])
    with pytest.raises(FileFormatError, match=r"tokenizer\.json is not the one that was written"):
        load_client(folders[0])


def test_weights_changed_since(folders: tuple[Path, Path]) -> None:
    convert(*build("bert"), client=folders[0], server=folders[1])
    with (folders[1] / "model.safetensors").open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"\x00\x00\x80\x3f\x00\x00\x80\x3f")
    with pytest.raises(FileFormatError, match="weights are not those"):
        rotate(*folders)


def test_unknown_family(folders: tuple[Path, Path], tmp_path: Path) -> None:
    transformers.T5Config(d_model=8, num_layers=1, architectures=["T5Model"]).save_pretrained(tmp_path / "plain")
    with pytest.raises(UnknownFamily, match="t5"):
        convert(tmp_path / "plain", client=folders[0], server=folders[1])
    assert not folders[0].exists() and not folders[1].exists()


@pytest.mark.parametrize("architectures", [None, ["BertModel", "BertForMaskedLM"], ["Tokenizer"], ["os.system"], ["BertConfig"]])
def test_an_architecture_that_is_none(architectures: Any, folders: tuple[Path, Path], tmp_path: Path) -> None:
    source = save(tmp_path / "plain", *build("bert"))
    config = json.loads((source / "config.json").read_text()) | {"architectures": architectures}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnknownFamily, match=r"classes, so the task is unknown|is no model class"):
        convert(source, client=folders[0], server=folders[1])


def test_weights_that_would_be_drawn_at_random(folders: tuple[Path, Path], tmp_path: Path) -> None:
    source = save(tmp_path / "plain", *build("bert", "Model"))
    config = json.loads((source / "config.json").read_text()) | {"architectures": ["BertForSequenceClassification"]}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(ObfuscationError, match=r"lacks classifier.* and 1 more"):
        convert(source, client=folders[0], server=folders[1])


def test_a_pickle_is_not_read(folders: tuple[Path, Path], tmp_path: Path) -> None:
    model, tokenizer = build("bert")
    source = save(tmp_path / "plain", model, tokenizer)
    (source / "model.safetensors").unlink()
    torch.save(model.state_dict(), source / "pytorch_model.bin")
    with pytest.raises(InvalidInput, match="no model can be loaded"):
        convert(source, client=folders[0], server=folders[1])


@pytest.mark.parametrize("gone", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_without_a_file(gone: str, folders: tuple[Path, Path], tmp_path: Path) -> None:
    source = save(tmp_path / "plain", *build("bert"))
    for path in source.iterdir():
        if path.name in (gone, gone.replace("tokenizer.json", "tokenizer_config.json")):
            path.unlink()
    with pytest.raises((InvalidInput, UnknownFamily), match="plain"):
        convert(source, client=folders[0], server=folders[1])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plain"]


def test_more_tokens_than_rows(folders: tuple[Path, Path], tmp_path: Path) -> None:
    model, tokenizer = build("gpt2")
    tokenizer.add_tokens(["one more"])
    with pytest.raises(ObfuscationError, match="resize_token_embeddings"):
        convert(model, tokenizer, client=folders[0], server=folders[1])
    assert not any(tmp_path.iterdir())
    model.resize_token_embeddings(len(tokenizer))
    convert(model, tokenizer, client=folders[0], server=folders[1])


def test_no_fast_form(folders: tuple[Path, Path]) -> None:
    with pytest.raises(ObfuscationError, match="no fast form"):
        convert(build("bert")[0], transformers.CanineTokenizer(), client=folders[0], server=folders[1])


def test_a_loaded_model_without_tokenizer(folders: tuple[Path, Path]) -> None:
    with pytest.raises(ObfuscationError, match="without tokenizer"):
        convert(build("bert")[0], client=folders[0], server=folders[1])


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_weights_that_are_not_floating(dtype: torch.dtype, folders: tuple[Path, Path]) -> None:
    model, tokenizer = build("bert")
    weight = model.bert.encoder.layer[0].output.dense.weight
    weight.requires_grad_(False)
    weight.data = weight.data.to(dtype)
    with pytest.raises(ObfuscationError, match="no orthogonal matrix"):
        convert(model, tokenizer, client=folders[0], server=folders[1])


def test_weights_that_are_not_finite(folders: tuple[Path, Path]) -> None:
    model, tokenizer = build("bert")
    with torch.no_grad():
        model.classifier.bias[1] = float("nan")
    with pytest.raises(InvalidInput, match=r"classifier\.bias"):
        convert(model, tokenizer, client=folders[0], server=folders[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_stay(dtype: torch.dtype, folders: tuple[Path, Path], tmp_path: Path) -> None:
    model, tokenizer = build("llama")
    found = convert(save(tmp_path / "plain", model.to(dtype), tokenizer), client=folders[0], server=folders[1])
    assert found.dtype == str(dtype).removeprefix("torch.") and found.error is not None
    assert found.error < (1e-6 if dtype == torch.float64 else 0.2)


@pytest.mark.parametrize("step", ["transform", "rekey"])
def test_a_wrong_transform_is_never_written(
    step: str, folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were a table wrong, the folders would not appear, and those that are there would stay."""
    from privtensors.obfuscation import convert as module

    right = getattr(module, step)

    def wrong(*arguments: Any, **options: Any) -> Any:
        model = right(*arguments, **options)
        with torch.no_grad():
            model.bert.encoder.layer[1].output.dense.weight[0] += 1.0
        return model

    if step == "rekey":
        convert(*build("bert"), client=folders[0], server=folders[1])
    before = _bytes(tmp_path)
    monkeypatch.setattr(module, step, wrong)
    with pytest.raises(ObfuscationError, match="answers differ by"):
        rotate(*folders) if step == "rekey" else convert(*build("bert"), client=folders[0], server=folders[1])
    assert _bytes(tmp_path) == before


def test_folders_that_exist(folders: tuple[Path, Path], tmp_path: Path) -> None:
    model, tokenizer = build("bert")
    convert(model, tokenizer, client=folders[0], server=folders[1], key=KEY)
    before = _bytes(tmp_path)
    with pytest.raises(ObfuscationError, match="exists and is not empty"):
        convert(model, tokenizer, client=folders[0], server=folders[1])
    assert _bytes(tmp_path) == before
    convert(model, tokenizer, client=folders[0], server=folders[1], overwrite=True)
    assert load_client(folders[0]).key != KEY


def test_reprs_show_no_key(folders: tuple[Path, Path]) -> None:
    found = convert(*build("bert"), client=folders[0], server=folders[1], key=KEY)
    client = load_client(folders[0])
    text = repr(client) + repr(found) + repr(client.vocabulary) + repr(client.labels)
    assert KEY.id in text and KEY.secret.hex() not in text and str(KEY.secret) not in text and "tensor" not in text


def test_an_interrupted_conversion_leaves_nothing(folders: tuple[Path, Path], tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(*build("bert"), client=folders[0], server=folders[1], progress=stop)
    assert not any(tmp_path.iterdir())


def test_an_interrupted_rotation_leaves_the_old_pair(folders: tuple[Path, Path], tmp_path: Path) -> None:
    convert(*build("bert"), client=folders[0], server=folders[1], key=KEY)
    before = _bytes(tmp_path)

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rotate(*folders, progress=stop)
    assert _bytes(tmp_path) == before


def test_nothing_plain_lies_in_the_server_folder(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Every byte of it: no token, label name, key, tokenizer file, name of the source or text of its configuration."""
    model, tokenizer = build("gpt2")
    texts = ["cheerful", "grumpy", "undecided", "Zanzibar", "plain source", "secret data set"]
    model.config.finetuning_note = "secret data set"
    source = save(tmp_path / "plain source", model, tokenizer)
    convert(source, client=folders[0], server=folders[1], key=KEY)
    assert findings(folders[1], model, texts, KEY) == []
    rotate(*folders)
    assert findings(folders[1], model, [*texts, KEY.id], load_client(folders[0]).key) == findings(folders[1], model, texts, KEY) == []
    assert all(name in (folders[0] / "privtensors.json").read_text() for name in NAMES.values())


def test_the_search_finds_what_is_there(folders: tuple[Path, Path]) -> None:
    model, tokenizer = build("gpt2")
    convert(model, tokenizer, client=folders[0], server=folders[1], key=KEY)
    for name, found in (("tokenizer.json", "word remember"), ("key.json", "word secret"), ("privtensors.json", "word grumpy")):
        shutil.copy(folders[0] / name, folders[1] / "config.json")
        assert found in findings(folders[1], model, [], KEY)
    shutil.copy(folders[1] / "model.safetensors", folders[0])  # weights beside the key, as a careless copy would put them
    assert any(KEY.secret.hex() in line for line in findings(folders[0], model, [], KEY))
    (folders[1] / "vocab.txt").touch()
    assert "file vocab.txt" in findings(folders[1], model, [], KEY)


def _as_inputs(model: Any, found: Any) -> dict[str, Any]:
    takes_types = model.config.model_type in ("bert",)
    return {name: value for name, value in found.items() if name != "token_type_ids" or takes_types}


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_vocabulary_of_a_roberta_keeps_padding_only(folders: tuple[Path, Path]) -> None:
    convert(*build("roberta"), client=folders[0], server=folders[1], key=KEY)
    vocabulary = load_client(folders[0]).vocabulary
    assert isinstance(vocabulary, Vocabulary) and int(vocabulary.keyed[1]) == 1
    assert int((vocabulary.keyed == torch.arange(vocabulary.size)).sum()) < 6
    assert json.loads((folders[1] / "config.json").read_text())["pad_token_id"] == 1
