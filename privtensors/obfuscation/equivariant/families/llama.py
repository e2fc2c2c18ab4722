"""Llama (Touvron et al., 2023), pre-norm with RMSNorm, rotary positions, grouped keys, SwiGLU.

RMSNorm commutes with every orthogonal Q once its gain is folded (Ashkboos et al., 2024). The last gain has to stay where the head is
tied (see gpt2.py for why); then Q is a permutation with signs, which RMSNorm, having no mean and no bias, lets through.
"""

from __future__ import annotations

from typing import Final

from privtensors.obfuscation.equivariant.families.base import EXTRACTIVE, Family, Head, linear
from privtensors.obfuscation.equivariant.transforms import Fold

_ATTENTION: Final = "layers.{layer}.self_attn"
_MLP: Final = "layers.{layer}.mlp"

FAMILY: Final = Family(
    model_type="llama",
    parameters={
        "embed_tokens.weight": ("vocab", "hidden"),
        "layers.{layer}.input_layernorm.weight": ("gain",),
        **linear(f"{_ATTENTION}.q_proj", "q", "hidden*"),
        **linear(f"{_ATTENTION}.k_proj", "k", "hidden*"),
        **linear(f"{_ATTENTION}.v_proj", "v", "hidden*"),
        **linear(f"{_ATTENTION}.o_proj", "hidden", "o*"),
        "layers.{layer}.post_attention_layernorm.weight": ("gain",),
        **linear(f"{_MLP}.gate_proj", "ffn", "hidden*"),
        **linear(f"{_MLP}.up_proj", "up", "hidden*"),
        **linear(f"{_MLP}.down_proj", "hidden", "up*"),
        "norm.weight": ("gain",),
    },
    heads={
        "LlamaModel": Head({}),
        "LlamaForCausalLM": Head({"lm_head.weight": ("vocab", "hidden*")}, readers=("lm_head",)),
        "LlamaForSequenceClassification": Head({"score.weight": ("labels", "hidden*")}, readers=("score",)),
        "LlamaForTokenClassification": Head(linear("score", "labels", "hidden*"), readers=("score",)),
        "LlamaForQuestionAnswering": Head(EXTRACTIVE, readers=("qa_outputs",)),
    },
    mixes="orthogonal",
    keeps="signed permutation",
    folds=(
        Fold("layers.{layer}.input_layernorm", tuple(f"{_ATTENTION}.{part}_proj" for part in "qkv")),
        Fold("layers.{layer}.post_attention_layernorm", (f"{_MLP}.gate_proj", f"{_MLP}.up_proj")),
    ),
    last="norm",
    rotary=True,
    buffers=("rotary_emb.inv_freq", "rotary_emb.original_inv_freq"),
)
