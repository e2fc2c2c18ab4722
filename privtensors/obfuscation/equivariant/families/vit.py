"""ViT (Dosovitskiy et al., 2021), pre-norm: patches change places with their position embeddings; pixels are rotated within a patch."""

from __future__ import annotations

from typing import Final

from privtensors.obfuscation.equivariant.families.base import Family, Head, linear, norm
from privtensors.obfuscation.equivariant.transforms import Fold

_ATTENTION: Final = "layers.{layer}.attention"

FAMILY: Final = Family(
    model_type="vit",
    parameters={
        "embeddings.cls_token": ("1", "1", "hidden"),
        "embeddings.mask_token": ("1", "1", "hidden"),
        "embeddings.position_embeddings": ("1", "patches", "hidden"),
        **linear("embeddings.patch_embeddings.projection", "hidden", "pixels*"),
        **norm("layers.{layer}.layernorm_before"),
        **linear(f"{_ATTENTION}.q_proj", "q", "hidden*"),
        **linear(f"{_ATTENTION}.k_proj", "k", "hidden*"),
        **linear(f"{_ATTENTION}.v_proj", "v", "hidden*"),
        **linear(f"{_ATTENTION}.o_proj", "hidden", "o*"),
        **norm("layers.{layer}.layernorm_after"),
        **linear("layers.{layer}.mlp.fc1", "ffn", "hidden*"),
        **linear("layers.{layer}.mlp.fc2", "hidden", "ffn*"),
        **norm("layernorm"),
        **linear("pooler.dense", "pooler", "hidden*"),
    },
    heads={
        "ViTModel": Head({}),
        "ViTForImageClassification": Head(linear("classifier", "labels", "hidden*"), readers=("classifier",)),
    },
    mixes="mean-fixing orthogonal",
    keeps="permutation",
    folds=(
        Fold("layers.{layer}.layernorm_before", tuple(f"{_ATTENTION}.{part}_proj" for part in "qkv")),
        Fold("layers.{layer}.layernorm_after", ("layers.{layer}.mlp.fc1",)),
    ),
    last="layernorm",
    pixels=True,
)
