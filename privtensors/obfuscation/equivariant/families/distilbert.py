"""DistilBERT (Sanh et al., 2019), post-norm, without token types and pooler."""

from __future__ import annotations

from typing import Final

from privtensors.obfuscation.equivariant.families.base import EXTRACTIVE, Axes, Family, Head, linear, norm

_PARAMETERS: Final[dict[str, Axes]] = {
    "embeddings.word_embeddings.weight": ("vocab", "hidden"),
    "embeddings.position_embeddings.weight": ("1", "hidden"),
    **norm("embeddings.LayerNorm"),
    **linear("transformer.layer.{layer}.attention.q_lin", "q", "hidden*"),
    **linear("transformer.layer.{layer}.attention.k_lin", "k", "hidden*"),
    **linear("transformer.layer.{layer}.attention.v_lin", "v", "hidden*"),
    **linear("transformer.layer.{layer}.attention.out_lin", "hidden", "o*"),
    **norm("transformer.layer.{layer}.sa_layer_norm"),
    **linear("transformer.layer.{layer}.ffn.lin1", "ffn", "hidden*"),
    **linear("transformer.layer.{layer}.ffn.lin2", "hidden", "ffn*"),
    **norm("transformer.layer.{layer}.output_layer_norm"),
}

FAMILY: Final = Family(
    model_type="distilbert",
    parameters=_PARAMETERS,
    heads={
        "DistilBertModel": Head({}),
        "DistilBertForMaskedLM": Head(
            {**linear("vocab_transform", "hidden", "hidden*"), **norm("vocab_layer_norm"), **linear("vocab_projector", "vocab", "hidden*")}
        ),
        "DistilBertForSequenceClassification": Head(
            {**linear("pre_classifier", "pooler", "hidden*"), **linear("classifier", "labels", "pooler*")}
        ),
        "DistilBertForTokenClassification": Head(linear("classifier", "labels", "hidden*")),
        "DistilBertForMultipleChoice": Head({**linear("pre_classifier", "pooler", "hidden*"), **linear("classifier", "1", "pooler*")}),
        "DistilBertForQuestionAnswering": Head(EXTRACTIVE),
    },
    mixes="permutation",
    keeps="permutation",
    buffers=("embeddings.position_ids",),
)
