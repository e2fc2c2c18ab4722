"""What privtensors must know about a model family: names of submodules, nothing else."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Layout of one Hugging Face model family. Names are relative to ``model.base_model``.

    Attributes:
        model_type: ``config.model_type`` of the family, and the name of the file that defines it.
        client: Submodules that the client holds and runs in plain; their outputs are shared. Everything else is the server's.
        vocabulary: The ``nn.Embedding`` that token ids index; empty for families that take pixels.
        positions: The ``nn.Embedding`` that public position numbers index, if there is one. What indexes any other is the client's.
        tables: Submodules whose embeddings the server holds, so that the client looks rows up privately; see ``family_for``.
        decoder: The model is causal: its last token is found from the ids, and it can generate.
        padded_positions: Position numbers start after ``pad_token_id`` (RoBERTa), so that many fewer fit.
        folds: Pairs of child names (convolution, batch normalisation) that follow each other wherever both occur.
        public_buffers: Persistent buffers that are public constants of the architecture; any other is refused.
    """

    model_type: str
    client: tuple[str, ...] = ()
    vocabulary: str = ""
    positions: str = ""
    tables: tuple[str, ...] = ()
    decoder: bool = False
    padded_positions: bool = False
    folds: tuple[tuple[str, str], ...] = ()
    public_buffers: tuple[str, ...] = ()
