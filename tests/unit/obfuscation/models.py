"""Tiny models of every family with a tokenizer that fits, saved as a user has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from tests.unit.obfuscation.vocabulary.tokenizers import byte_level_bpe, llama3, unigram, wordpiece

NAMES = {0: "grumpy", 1: "cheerful", 2: "undecided"}
SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40, "max_position_embeddings": 64}
TEXTS = ["a film to remember", "the plot was <new> cheese @user"]


def _bert(tokenizer: Any) -> Any:
    return transformers.BertConfig(vocab_size=len(tokenizer) + 3, pad_token_id=0, **SIZES)


def _distilbert(tokenizer: Any) -> Any:
    return transformers.DistilBertConfig(
        vocab_size=len(tokenizer), dim=24, n_layers=2, n_heads=4, hidden_dim=40, max_position_embeddings=64
    )


def _roberta(tokenizer: Any) -> Any:
    return transformers.RobertaConfig(vocab_size=len(tokenizer) + 1, pad_token_id=1, bos_token_id=0, eos_token_id=2, **SIZES)


def _gpt2(tokenizer: Any) -> Any:
    return transformers.GPT2Config(
        vocab_size=len(tokenizer), n_embd=24, n_layer=2, n_head=4, n_positions=64, bos_token_id=300, eos_token_id=301, pad_token_id=301,
        task_specific_params={"text-generation": {"prefix": "Zanzibar"}},
    )  # fmt: skip


def _llama(tokenizer: Any) -> Any:
    return transformers.LlamaConfig(
        vocab_size=len(tokenizer) + 5, num_key_value_heads=2, bos_token_id=300, eos_token_id=[301, 7], pad_token_id=301, **SIZES
    )


TEXT_FAMILIES = {
    "bert": (_bert, wordpiece, "Bert"),
    "bert over Unigram": (_bert, unigram, "Bert"),
    "distilbert": (_distilbert, wordpiece, "DistilBert"),
    "roberta": (_roberta, byte_level_bpe, "Roberta"),
    "gpt2": (_gpt2, llama3, "GPT2"),
    "llama": (_llama, llama3, "Llama"),
}


def build(family: str, task: str = "ForSequenceClassification", **options: Any) -> tuple[Any, Any]:
    """A model with random weights, none of them zero, and its tokenizer."""
    config_of, tokenizer_of, prefix = TEXT_FAMILIES[family]
    tokenizer = tokenizer_of()
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    config = config_of(tokenizer)
    if "LM" not in task:
        config.id2label, config.label2id = dict(NAMES), {name: number for number, name in NAMES.items()}
    for name, value in options.items():
        setattr(config, name, value)
    return _random(getattr(transformers, f"{prefix}{task}"), config), tokenizer


def build_vit() -> tuple[Any, Any]:
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40, image_size=16, patch_size=4, id2label=dict(NAMES)
    )
    processor = transformers.ViTImageProcessorPil(size={"height": 16, "width": 16})
    return _random(transformers.ViTForImageClassification, config), processor


def save(folder: Path, model: Any, processor: Any) -> Path:
    """As a user has it on disk."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _random(kind: Any, config: Any) -> Any:
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model
