"""The token embedding of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def table_of(model: PreTrainedModel) -> Tensor:
    """The parameter (rows, width) that turns token ids into vectors."""
    embedding: Any = model.get_input_embeddings()
    weight: Tensor = embedding.weight
    return weight
