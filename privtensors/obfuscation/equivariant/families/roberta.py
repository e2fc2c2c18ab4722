"""RoBERTa (Liu et al., 2019): BERT's layers; position numbers are counted from the padding id, which therefore stays in place."""

from __future__ import annotations

from typing import Final

from privtensors.obfuscation.equivariant.families.base import EXTRACTIVE, Axes, Family, Head, linear, norm
from privtensors.obfuscation.equivariant.families.bert import BUFFERS, EMBEDDINGS, LAYERS, POOLER

_PREDICTIONS: Final[dict[str, Axes]] = {
    **linear("lm_head.dense", "hidden", "hidden*"),
    **norm("lm_head.layer_norm"),
    **linear("lm_head.decoder", "vocab", "hidden*"),
    "lm_head.bias": ("vocab",),
}

FAMILY: Final = Family(
    model_type="roberta",
    parameters={**EMBEDDINGS, **LAYERS, **POOLER},
    heads={
        "RobertaModel": Head({}),
        "RobertaForMaskedLM": Head(_PREDICTIONS),
        "RobertaForCausalLM": Head(_PREDICTIONS),
        "RobertaForSequenceClassification": Head(
            {**linear("classifier.dense", "pooler", "hidden*"), **linear("classifier.out_proj", "labels", "pooler*")}
        ),
        "RobertaForTokenClassification": Head(linear("classifier", "labels", "hidden*")),
        "RobertaForMultipleChoice": Head(linear("classifier", "1", "pooler*")),
        "RobertaForQuestionAnswering": Head(EXTRACTIVE),
    },
    mixes="permutation",
    keeps="permutation",
    buffers=BUFFERS,
)
