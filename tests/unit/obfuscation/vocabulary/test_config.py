"""keyed_config and keyed_generation_config: every id keyed, no name left."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import BertConfig, GenerationConfig, GPT2Config, LlamaConfig, RobertaConfig, ViTConfig

from privtensors.errors import ObfuscationError
from privtensors.obfuscation.vocabulary import Labels, Vocabulary, fixed_ids, keyed_config, keyed_generation_config
from tests.unit.obfuscation.vocabulary.tokenizers import KEY

VOCABULARY = Vocabulary.from_key(KEY, 99)
LABELS = Labels.from_key(KEY, 3)
NAMES = {0: "grumpy", 1: "cheerful", 2: "undecided"}


def k(*ids: int) -> list[int]:
    return VOCABULARY.encode(torch.tensor(ids)).tolist()


def test_special_ids_are_keyed() -> None:
    config = LlamaConfig(vocab_size=99, bos_token_id=1, eos_token_id=[2, 5], pad_token_id=0)
    for name, number in (("sep_token_id", 3), ("cls_token_id", 4), ("mask_token_id", 6), ("decoder_start_token_id", 7)):
        setattr(config, name, number)
    config.forced_eos_token_id, config.suppress_tokens, config.bad_words_ids = 2, [8, 9], [[1, 2], [3]]
    keyed: Any = keyed_config(config, VOCABULARY)
    assert keyed.eos_token_id == k(2, 5) and keyed.suppress_tokens == k(8, 9) and keyed.bad_words_ids == [k(1, 2), k(3)]
    found = [keyed.bos_token_id, keyed.pad_token_id, keyed.sep_token_id, keyed.cls_token_id, keyed.mask_token_id]
    assert found == k(1, 0, 3, 4, 6) and [keyed.decoder_start_token_id, keyed.forced_eos_token_id] == k(7, 2)
    assert config.bos_token_id == 1 and config.eos_token_id == [2, 5], "the input is left untouched"


def test_ids_without_a_row_become_none() -> None:
    keyed: Any = keyed_config(GPT2Config(vocab_size=99, bos_token_id=50256, eos_token_id=-1), VOCABULARY)
    assert keyed.bos_token_id is None and keyed.eos_token_id is None and keyed.pad_token_id is None


def test_no_name_or_text_is_left() -> None:
    config = BertConfig(vocab_size=99, id2label=NAMES, label2id={name: n for n, name in NAMES.items()})
    config.name_or_path, config.architectures = "secret/place", ["BertForSequenceClassification"]
    config.task_specific_params, config.prefix, config.tokenizer_class, config.finetuning_task = {"a": "hush"}, "hush", "hush", "hush"
    config.my_classes = ["grumpy"]
    keyed: Any = keyed_config(config, VOCABULARY, LABELS)
    text = json.dumps(keyed.to_dict()) + str(vars(keyed)) + keyed.to_json_string(use_diff=False)
    assert not any(word in text for word in ("grumpy", "cheerful", "undecided", "hush", "secret", "my_classes"))
    assert keyed.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"} and keyed.num_labels == 3
    assert keyed.architectures == ["BertForSequenceClassification"] and keyed.hidden_size == config.hidden_size
    assert config.id2label == NAMES and config.name_or_path == "secret/place", "the input is left untouched"


def test_without_labels_or_vocabulary_names_go_all_the_same() -> None:
    keyed: Any = keyed_config(ViTConfig(id2label=NAMES), None)
    assert list(keyed.id2label.values()) == ["LABEL_0", "LABEL_1", "LABEL_2"] and keyed.patch_size == 16


def test_labels_of_another_model() -> None:
    with pytest.raises(ObfuscationError, match="2 labels, not 3"):
        keyed_config(BertConfig(vocab_size=99), VOCABULARY, LABELS)


def test_generation() -> None:
    plain: Any = GenerationConfig(
        bos_token_id=1, eos_token_id=[2, 3], pad_token_id=4, decoder_start_token_id=5, forced_bos_token_id=6, forced_eos_token_id=[7, 8],
        suppress_tokens=[9, 10], begin_suppress_tokens=[11], bad_words_ids=[[12], [13, 14]], max_new_tokens=17, temperature=0.5,
        sequence_bias={(15, 16): -2.0},
    )  # fmt: skip
    plain.forced_decoder_ids, plain.note = [[1, 20]], "hush"
    keyed: Any = keyed_generation_config(plain, VOCABULARY)
    assert [keyed.bos_token_id, keyed.pad_token_id, keyed.decoder_start_token_id, keyed.forced_bos_token_id] == k(1, 4, 5, 6)
    assert keyed.eos_token_id == k(2, 3) and keyed.forced_eos_token_id == k(7, 8) and keyed.suppress_tokens == k(9, 10)
    assert keyed.begin_suppress_tokens == k(11) and keyed.bad_words_ids == [k(12), k(13, 14)]
    assert keyed.sequence_bias == {tuple(k(15, 16)): -2.0} and keyed.forced_decoder_ids == [[1, *k(20)]]
    assert keyed.max_new_tokens == 17 and keyed.temperature == 0.5 and not hasattr(keyed, "note")
    assert plain.eos_token_id == [2, 3] and plain.bad_words_ids == [[12], [13, 14]], "the input is left untouched"
    as_lists: Any = GenerationConfig(sequence_bias=[[[15, 16], -2.0]])
    assert keyed_generation_config(as_lists, VOCABULARY).sequence_bias == [[k(15, 16), -2.0]]


@pytest.mark.parametrize(("name", "value"), [("stop_strings", ["The end"]), ("watermarking_config", {"greenlist_ratio": 0.25})])
def test_generation_that_needs_the_text(name: str, value: Any) -> None:
    with pytest.raises(ObfuscationError, match=name):
        keyed_generation_config(GenerationConfig(**{name: value}), VOCABULARY)


def test_padding_that_counts_positions() -> None:
    assert fixed_ids(RobertaConfig(pad_token_id=1)) == (1,) and fixed_ids(BertConfig(pad_token_id=0)) == ()
