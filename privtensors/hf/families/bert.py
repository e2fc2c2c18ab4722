"""BERT (Devlin et al., 2019): the embedding block, its layer norm included, is the client's."""

from __future__ import annotations

from typing import Final

from privtensors.hf.families.base import Family

FAMILY: Final = Family(
    model_type="bert",
    client=("embeddings",),
    vocabulary="embeddings.word_embeddings",
    positions="embeddings.position_embeddings",
)
