"""What cannot be transformed exactly and whole is refused, with what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertForMaskedLM, BertForSequenceClassification, GPT2DoubleHeadsModel, MobileNetV2Config, MobileNetV2Model, T5Config
from transformers import T5Model as T5

from privtensors.errors import InvalidInput, ObfuscationError, UnknownFamily
from privtensors.obfuscation.equivariant import known_families, maps_of, names, rekey, transform
from privtensors.obfuscation.vocabulary import Labels, Vocabulary
from tests.unit.obfuscation.equivariant.tiny import CONFIGS, KEY, OTHER, VOCABULARY, keyed, randomise, tiny

BERT = "BertForSequenceClassification"


def test_an_unknown_family_is_named_with_the_known_ones() -> None:
    t5 = T5(T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    with pytest.raises(UnknownFamily, match="'t5' has no equivariant transform") as caught:
        transform(t5, KEY, vocabulary=Vocabulary.from_key(KEY, 20), labels=None)
    assert known_families() == ("bert", "distilbert", "gpt2", "llama", "roberta", "vit")
    assert all(family in caught.value.fix for family in known_families())
    with pytest.raises(UnknownFamily, match="mobilenet_v2"):
        keyed(MobileNetV2Model(MobileNetV2Config(depth_multiplier=0.25, image_size=32)))
    with pytest.raises(UnknownFamily, match="base"):
        names("base")


def test_an_unknown_class_of_a_known_family() -> None:
    with pytest.raises(UnknownFamily, match="GPT2LMHeadModel"):
        keyed(GPT2DoubleHeadsModel(CONFIGS["GPT2"](num_labels=1)))


def test_a_subclass_may_compute_something_else() -> None:
    class Mine(BertForSequenceClassification):
        pass

    with pytest.raises(UnknownFamily, match="stock class"):
        keyed(Mine(CONFIGS["Bert"]()))


@pytest.mark.parametrize("wrap", [lambda m: nn.DataParallel(m), lambda m: nn.Sequential(m), lambda m: "bert"])
def test_no_hugging_face_model(wrap: Any) -> None:
    with pytest.raises(UnknownFamily, match="no Hugging Face model"):
        transform(wrap(tiny(BERT)), KEY, vocabulary=None, labels=None)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")  # PEFT asks transformers for it
def test_adapters_have_to_be_merged() -> None:
    from peft import LoraConfig, get_peft_model

    plain = tiny(BERT)
    adapted: Any = get_peft_model(plain, LoraConfig(target_modules=["query"], r=2))
    for model in (adapted, adapted.base_model.model):
        with pytest.raises(ObfuscationError, match="merge_and_unload"):
            transform(model, KEY, vocabulary=Vocabulary.from_key(KEY, VOCABULARY), labels=Labels.from_key(KEY, 5))
    randomise(adapted)
    keyed(adapted.merge_and_unload())


def test_weights_that_are_no_floats() -> None:
    plain = tiny(BERT)
    dense = plain.bert.encoder.layer[0].intermediate.dense
    dense.weight = nn.Parameter(dense.weight.round().to(torch.int8), requires_grad=False)
    with pytest.raises(ObfuscationError, match=r"intermediate\.dense\.weight holds torch\.int8"):
        keyed(plain)
    marked = tiny(BERT)
    marked.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(ObfuscationError, match="quantised"):
        keyed(marked)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(bad: float) -> None:
    plain = tiny(BERT)
    with torch.no_grad():
        plain.bert.encoder.layer[1].attention.self.key.bias[2] = bad
    with pytest.raises(InvalidInput, match=r"layer\.1\.attention\.self\.key\.bias"):
        keyed(plain)


def test_weights_that_are_not_loaded() -> None:
    with torch.device("meta"):
        plain = BertForSequenceClassification(CONFIGS["Bert"]())
    with pytest.raises(InvalidInput, match="not loaded"):
        transform(plain, KEY, vocabulary=Vocabulary.from_key(KEY, VOCABULARY), labels=Labels.from_key(KEY, 5))


def _parameter(model: Any) -> None:
    model.bert.encoder.layer[0].extra = nn.Parameter(torch.ones(3))


def _saved_buffer(model: Any) -> None:
    model.bert.register_buffer("table", torch.ones(3))


def _unsaved_buffer(model: Any) -> None:
    model.bert.register_buffer("table", torch.ones(3), persistent=False)


def _parametrised(model: Any) -> None:
    nn.utils.parametrizations.weight_norm(model.bert.pooler.dense)


@pytest.mark.parametrize("add", [_parameter, _saved_buffer, _unsaved_buffer, _parametrised])
def test_what_no_table_knows_is_not_left_in_plain(add: Any) -> None:
    plain = tiny(BERT)
    add(plain)
    with pytest.raises(ObfuscationError, match=r"does not know|is unknown"):
        keyed(plain)


def test_cross_attention_is_not_understood() -> None:
    with pytest.raises(ObfuscationError, match="crossattention"):
        keyed(tiny("BertLMHeadModel", is_decoder=True, add_cross_attention=True))


def test_bijections_have_to_be_given() -> None:
    plain = tiny(BERT)
    vocabulary, labels = maps_of(plain, KEY)
    with pytest.raises(ObfuscationError, match="vocab, and no bijection"):
        transform(plain, KEY, vocabulary=None, labels=labels)
    with pytest.raises(ObfuscationError, match="labels, and no bijection"):
        transform(plain, KEY, vocabulary=vocabulary, labels=None)


def test_bijections_of_another_size() -> None:
    plain = tiny(BERT)
    vocabulary, labels = maps_of(plain, KEY)
    for size in (VOCABULARY - 1, VOCABULARY + 1):
        with pytest.raises(ObfuscationError, match=f"vocab has {VOCABULARY} values here and {size} elsewhere"):
            transform(plain, KEY, vocabulary=Vocabulary.from_key(KEY, size), labels=labels)
    with pytest.raises(ObfuscationError, match="5 labels, not 4"):
        transform(plain, KEY, vocabulary=vocabulary, labels=Labels.from_key(KEY, 4))


def test_labels_of_a_model_without_any_are_not_used() -> None:
    plain = tiny("LlamaForCausalLM", num_labels=2)
    vocabulary, labels = maps_of(plain, KEY)
    assert labels is None
    transform(plain, KEY, vocabulary=vocabulary, labels=Labels.from_key(KEY, 7))


def test_the_padding_id_of_roberta_has_to_stay() -> None:
    plain = tiny("RobertaForSequenceClassification")
    with pytest.raises(ObfuscationError, match="padding id"):
        transform(plain, KEY, vocabulary=Vocabulary.from_key(KEY, VOCABULARY), labels=Labels.from_key(KEY, 5))


def test_weights_tied_otherwise_than_the_configuration_says() -> None:
    plain = tiny("BertForMaskedLM")
    assert isinstance(plain, BertForMaskedLM)
    plain.cls.predictions.decoder.weight = nn.Parameter(plain.cls.predictions.decoder.weight.detach().clone())
    with pytest.raises(ObfuscationError, match="tie_word_embeddings"):
        keyed(plain)


def test_rotary_positions_over_a_part_of_a_head() -> None:
    plain = tiny("LlamaForCausalLM")
    plain.model.rotary_emb.inv_freq = plain.model.rotary_emb.inv_freq[:2]
    with pytest.raises(ObfuscationError, match="a part of each head"):
        keyed(plain)


def test_weights_that_would_leave_the_range_of_their_type() -> None:
    plain = tiny(BERT, torch.float16)
    with torch.no_grad():
        plain.bert.encoder.layer[0].attention.self.value.weight.fill_(6e4)
    with pytest.raises(ObfuscationError, match=r"layer\.0\.attention\.self\.value\.weight leaves the range of torch\.float16"):
        keyed(plain)


def test_refusals_show_no_weight_and_no_key() -> None:
    plain = tiny(BERT)
    with pytest.raises(ObfuscationError) as caught:
        transform(plain, KEY, vocabulary=Vocabulary.from_key(KEY, VOCABULARY + 1), labels=Labels.from_key(KEY, 5))
    assert KEY.secret.hex() not in str(caught.value) and "tensor" not in str(caught.value)


def test_rekeying_refuses_the_same_things() -> None:
    plain = tiny(BERT)
    _parameter(plain)
    with pytest.raises(ObfuscationError, match="does not know"):
        rekey(plain, KEY, OTHER)
