"""RoBERTa (Liu et al., 2019): as BERT; position numbers are made from the ids, inside the client's block."""

from __future__ import annotations

from typing import Final

from privtensors.hf.families.base import Family

FAMILY: Final = Family(
    model_type="roberta",
    client=("embeddings",),
    vocabulary="embeddings.word_embeddings",
    padded_positions=True,
)
