"""Tiny models of every family and class, every parameter random (no zero bias, no gain of 1), and the inputs they take."""

from __future__ import annotations

from typing import Any, Final

import torch
import transformers
from torch import Tensor
from transformers import BertConfig, DistilBertConfig, GPT2Config, LlamaConfig, PreTrainedModel, RobertaConfig, ViTConfig

from privtensors.obfuscation.equivariant import PatchKey, maps_of, transform
from privtensors.obfuscation.keys import ObfuscationKey
from privtensors.obfuscation.vocabulary import Labels, Vocabulary

KEY: Final = ObfuscationKey(bytes(range(32)))
OTHER: Final = ObfuscationKey(bytes(range(1, 33)))
VOCABULARY, PAD, EOS = 53, 1, 2

_BERT: Final = dict(
    hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, vocab_size=VOCABULARY, num_labels=5, pad_token_id=PAD,
    max_position_embeddings=40,
)  # fmt: skip
_LLAMA: Final = dict(
    hidden_size=24, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2, head_dim=8, intermediate_size=40,
    vocab_size=VOCABULARY, num_labels=5, pad_token_id=PAD, bos_token_id=0, eos_token_id=EOS, max_position_embeddings=64,
)  # fmt: skip
_GPT2: Final = dict(
    n_embd=24, n_layer=2, n_head=3, vocab_size=VOCABULARY, num_labels=5, n_positions=64, bos_token_id=0, eos_token_id=EOS, pad_token_id=PAD
)

CONFIGS: Final[dict[str, Any]] = {
    "Bert": lambda **options: BertConfig(**{**_BERT, **options}),
    "DistilBert": lambda **options: DistilBertConfig(
        **{
            **dict(dim=24, n_layers=2, n_heads=3, hidden_dim=40, vocab_size=VOCABULARY, num_labels=5, pad_token_id=PAD),
            **dict(max_position_embeddings=40),
            **options,
        }
    ),
    "Roberta": lambda **options: RobertaConfig(**{**_BERT, **options}),
    "GPT2": lambda **options: GPT2Config(**{**_GPT2, **options}),
    "Llama": lambda **options: LlamaConfig(**{**_LLAMA, **options}),
    "ViT": lambda **options: ViTConfig(
        **{
            **dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, num_labels=5),
            **dict(image_size=[8, 12], patch_size=4, num_channels=2),
            **options,
        }
    ),
}

TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
CASES: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    *((f"Bert{head}", {}) for head in ("Model", "ForMaskedLM", "ForPreTraining", "ForNextSentencePrediction")),
    *((f"Bert{head}", {}) for head in ("ForSequenceClassification", "ForTokenClassification", "ForMultipleChoice", "ForQuestionAnswering")),
    ("BertForMaskedLM", UNTIED),
    ("BertLMHeadModel", {"is_decoder": True}),
    *((f"DistilBert{head}", {}) for head in ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")),
    *((f"DistilBert{head}", {}) for head in ("ForMultipleChoice", "ForQuestionAnswering")),
    *((f"Roberta{head}", {}) for head in ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")),
    *((f"Roberta{head}", {}) for head in ("ForMultipleChoice", "ForQuestionAnswering")),
    ("RobertaForCausalLM", {"is_decoder": True}),
    ("GPT2Model", {}),
    ("GPT2LMHeadModel", TIED),
    ("GPT2LMHeadModel", UNTIED),
    *((f"GPT2{head}", {}) for head in ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")),
    ("LlamaModel", {}),
    ("LlamaForCausalLM", TIED),
    ("LlamaForCausalLM", UNTIED),
    ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 6}),
    ("LlamaForCausalLM", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}}),
    *((f"Llama{head}", {}) for head in ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")),
    ("ViTModel", {}),
    ("ViTForImageClassification", {}),
    ("ViTForImageClassification", {"qkv_bias": False}),
)
IDS: Final = tuple("-".join([name, *(f"{k}={v}" for k, v in options.items())])[:60] for name, options in CASES)


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Fill every parameter: gains around 1, the rest around 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            gain = name.endswith("weight") and parameter.ndim == 1
            parameter.copy_(1 + 0.3 * noise if gain else 0.25 * noise)


def tiny(name: str, dtype: torch.dtype = torch.float64, **options: Any) -> PreTrainedModel:
    """A random model of a stock class."""
    family = next(family for family in sorted(CONFIGS, key=len, reverse=True) if name.startswith(family))
    config = CONFIGS[family](**({"num_labels": 2} if name.endswith("QuestionAnswering") else {}), **options)
    with torch.random.fork_rng(devices=[]):
        model = getattr(transformers, name)._from_config(config, dtype=dtype)
    randomise(model)
    return model.eval()


def keyed(model: PreTrainedModel, key: ObfuscationKey = KEY) -> PreTrainedModel:
    """The model under a key, with the key's own bijections."""
    vocabulary, labels = maps_of(model, key)
    return transform(model, key, vocabulary=vocabulary, labels=labels)


def inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """Plain inputs: three rows, one padded on the right and one on the left, or two images."""
    generator = torch.Generator().manual_seed(7)
    if model.config.model_type == "vit":
        return {"pixel_values": torch.randn(2, 2, 8, 12, generator=generator, dtype=model.dtype)}
    ids = torch.randint(3, VOCABULARY, (3, 9), generator=generator)
    mask = torch.ones_like(ids)
    ids[1, 6:], mask[1, 6:] = PAD, 0
    ids[2, :4], mask[2, :4] = PAD, 0
    found = {"input_ids": ids, "attention_mask": mask}
    if model.config.model_type == "bert":
        found["token_type_ids"] = (torch.arange(9) > 4).long().expand(3, 9)
    if type(model).__name__.endswith("MultipleChoice"):
        found = {field: value.unsqueeze(0) for field, value in found.items()}
    return found


def keyed_inputs(model: PreTrainedModel, plain: dict[str, Tensor], key: ObfuscationKey = KEY) -> dict[str, Tensor]:
    """What the client sends."""
    if "pixel_values" in plain:
        return {"pixel_values": PatchKey.from_config(key, model.config).key_pixels(plain["pixel_values"])}
    vocabulary, _ = maps_of(model, key)
    assert isinstance(vocabulary, Vocabulary)
    return {**plain, "input_ids": vocabulary.encode(plain["input_ids"])}


def decoded(model: PreTrainedModel, field: str, value: Tensor, key: ObfuscationKey = KEY) -> Tensor:
    """An output of the keyed model as the plain model would give it."""
    from privtensors.obfuscation.equivariant import basis_of, hidden_map, pooler_map

    vocabulary, labels = maps_of(model, key)
    width = value.shape[-1]
    if field == "last_hidden_state":
        value = hidden_map(key, width, basis_of(model)).inverse.apply(value)
        return PatchKey.from_config(key, model.config).plain_tokens(value) if model.config.model_type == "vit" else value
    if field == "pooler_output":
        return pooler_map(key, width).inverse.apply(value)
    if field.endswith("logits") and vocabulary is not None and width == vocabulary.size:
        return value.index_select(-1, vocabulary.keyed)
    if field == "logits" and isinstance(labels, Labels):
        return labels.decode_logits(value)
    return value


@torch.no_grad()
def largest_error(plain: PreTrainedModel, server: PreTrainedModel, key: ObfuscationKey = KEY) -> float:
    """Largest difference of any output after decoding; where rows are padded, of the tokens that are not."""
    given = inputs(plain)
    want, got = plain(**given), server(**keyed_inputs(plain, given, key))
    worst = 0.0
    fields = [field for field, value in want.items() if isinstance(value, Tensor)]
    assert fields and fields == [field for field, value in got.items() if isinstance(value, Tensor)]
    for field in fields:
        difference = (decoded(plain, field, got[field], key) - want[field]).abs()
        mask = given.get("attention_mask")
        if mask is not None and difference.shape[:2] == mask.shape:
            difference = difference[mask.bool()]
        assert want[field].abs().max() > 0.01  # the comparison means something
        worst = max(worst, float(difference.max()))
    return worst
