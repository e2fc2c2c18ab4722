"""BERT (Devlin et al., 2019), post-norm: the gain sits in the residual path, so the stream is permuted."""

from __future__ import annotations

from typing import Final

from privtensors.obfuscation.equivariant.families.base import EXTRACTIVE, Axes, Family, Head, linear, norm

EMBEDDINGS: Final[dict[str, Axes]] = {
    "embeddings.word_embeddings.weight": ("vocab", "hidden"),
    "embeddings.position_embeddings.weight": ("1", "hidden"),
    "embeddings.token_type_embeddings.weight": ("1", "hidden"),
    **norm("embeddings.LayerNorm"),
}
LAYERS: Final[dict[str, Axes]] = {
    **linear("encoder.layer.{layer}.attention.self.query", "q", "hidden*"),
    **linear("encoder.layer.{layer}.attention.self.key", "k", "hidden*"),
    **linear("encoder.layer.{layer}.attention.self.value", "v", "hidden*"),
    **linear("encoder.layer.{layer}.attention.output.dense", "hidden", "o*"),
    **norm("encoder.layer.{layer}.attention.output.LayerNorm"),
    **linear("encoder.layer.{layer}.intermediate.dense", "ffn", "hidden*"),
    **linear("encoder.layer.{layer}.output.dense", "hidden", "ffn*"),
    **norm("encoder.layer.{layer}.output.LayerNorm"),
}
POOLER: Final = linear("pooler.dense", "pooler", "hidden*")
BUFFERS: Final = ("embeddings.position_ids", "embeddings.token_type_ids")

_PREDICTIONS: Final[dict[str, Axes]] = {
    **linear("cls.predictions.transform.dense", "hidden", "hidden*"),
    **norm("cls.predictions.transform.LayerNorm"),
    **linear("cls.predictions.decoder", "vocab", "hidden*"),
    "cls.predictions.bias": ("vocab",),
}
# Whether two sentences follow each other: two fixed outputs, which are no class labels.
_NEXT: Final = linear("cls.seq_relationship", "1", "pooler*")

FAMILY: Final = Family(
    model_type="bert",
    parameters={**EMBEDDINGS, **LAYERS, **POOLER},
    heads={
        "BertModel": Head({}),
        "BertForMaskedLM": Head(_PREDICTIONS),
        "BertLMHeadModel": Head(_PREDICTIONS),
        "BertForPreTraining": Head({**_PREDICTIONS, **_NEXT}),
        "BertForNextSentencePrediction": Head(_NEXT),
        "BertForSequenceClassification": Head(linear("classifier", "labels", "pooler*")),
        "BertForTokenClassification": Head(linear("classifier", "labels", "hidden*")),
        "BertForMultipleChoice": Head(linear("classifier", "1", "pooler*")),
        "BertForQuestionAnswering": Head(EXTRACTIVE),
    },
    mixes="permutation",
    keeps="permutation",
    buffers=BUFFERS,
)
