"""A small model and public random data to audit with: token ids with padding, two classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from privtensors.audit.canaries import ModelLoss
from privtensors.errors import InvalidInput
from privtensors.hf.losses import task_loss
from privtensors.train.roles import Batch

_VOCABULARY, _WIDTH, _LENGTH = 40, 8, 6


@dataclass(frozen=True)
class Subject:
    """What is audited.

    Attributes:
        model: In training mode.
        dataset: Public examples.
        loss: Of both.
    """

    model: nn.Module
    dataset: dict[str, Tensor]
    loss: ModelLoss


class TinyClassifier(nn.Module):
    """The mean of an embedding over all positions, padding included, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_VOCABULARY, _WIDTH, padding_idx=0)
        self.head = nn.Linear(_WIDTH, 2)

    def forward(self, input_ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embedding(input_ids).mean(1))
        return logits


def tiny_subject(examples: int = 64, seed: int = 0) -> Subject:
    """A classifier of 338 parameters and ``examples`` random sentences of up to 6 tokens."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TinyClassifier()
    return Subject(model, _sentences(examples, _LENGTH, _VOCABULARY, 0, 2, seed), _tiny_loss)


def folder_subject(path: Path, examples: int = 64, seed: int = 0) -> Subject:
    """A sequence classifier from a folder as transformers saves it, and random sentences of its vocabulary. Dropout is off.

    Raises:
        InvalidInput: The folder holds no such model.
        MissingExtra: transformers is not installed.
    """
    from transformers import AutoModelForSequenceClassification

    try:
        model: Any = AutoModelForSequenceClassification.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        what = f"it holds no sequence classifier ({type(error).__name__})"
        raise InvalidInput(what, where=str(path), fix="Give a folder written by save_pretrained") from error
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if model.config.pad_token_id is None:
        model.config.pad_token_id = 0
    padding = int(model.config.pad_token_id)
    words = _sentences(examples, 16, model.config.vocab_size, padding, model.config.num_labels, seed)

    def loss(inner: nn.Module, batch: Batch) -> Tensor:
        known = task_loss(inner)
        assert known is not None
        return known(batch)

    return Subject(model, {**words, "attention_mask": (words["input_ids"] != padding).long()}, loss)


def _tiny_loss(model: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(model(batch["input_ids"]), batch["labels"])


def _sentences(examples: int, length: int, vocabulary: int, padding: int, classes: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, vocabulary, (examples, length), generator=generator)
    lengths = torch.randint(1, length + 1, (examples, 1), generator=generator)
    ids = ids.masked_fill(torch.arange(length) >= lengths, padding)
    return {"input_ids": ids, "labels": torch.randint(0, classes, (examples,), generator=generator)}
