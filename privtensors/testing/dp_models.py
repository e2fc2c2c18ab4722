"""Small random models of every family that differentially private training has to get right, with a batch and a loss each.

The rows are those on which DP frameworks differ: padding rows, positions that come as one row, tied and shared weights, norms without
bias, raw parameters, checkpointing, adapters. Dropout is off, so that a per-example oracle can repeat the forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from privtensors.train.roles import Batch, Loss

Task = Literal["classify", "language", "images", "features"]
_LENGTH, _VOCABULARY, _CLASSES, _IMAGE = 12, 100, 2, 16


@dataclass(frozen=True)
class Trial:
    """One family's model, batch and loss.

    Attributes:
        name: The family.
        model: In training mode.
        batch: Tensors by name, first axis over the examples.
        loss: The mean loss of a batch.
        losses: The examples' losses, ``(n,)``.
        examples: How many the batch holds.
    """

    name: str
    model: nn.Module
    batch: Batch
    loss: Loss
    losses: Callable[[Batch], Tensor]
    examples: int


@dataclass(frozen=True)
class Family:
    """How to make a trial.

    Attributes:
        name: What the tables call it.
        make: Builds the model; random weights.
        task: What is trained.
        padding: The id that fills short examples; None where all are of one length.
        engine: The engine that ``engine="auto"`` must end with.
        masked: Whether attention leaves the padding out; where it does not, gradients arrive at the padding row.
    """

    name: str
    make: Callable[[], nn.Module]
    task: Task = "classify"
    padding: int | None = 0
    engine: Literal["bookkeeping", "loop"] = "bookkeeping"
    masked: bool = True

    def trial(self, *, examples: int = 6, seed: int = 0) -> Trial:
        """A model and a batch of ``examples`` examples; the same for the same seed."""
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            model = self.make()
        model.train()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and not any(p.requires_grad for p in module.parameters()):
                module.eval()
        losses = _LOSSES[self.task](model)
        batch = _batch(self.task, self.padding, examples, torch.Generator().manual_seed(seed + 1))
        if not self.masked:
            batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
        return Trial(self.name, model, batch, lambda b: losses(b).mean(), losses, examples)


def _batch(task: Task, padding: int | None, examples: int, random: torch.Generator) -> dict[str, Tensor]:
    labels = torch.randint(0, _CLASSES, (examples,), generator=random)
    if task == "images":
        return {"pixel_values": torch.randn(examples, 3, _IMAGE, _IMAGE, generator=random), "labels": labels}
    if task == "features":
        return {"features": torch.randn(examples, _LENGTH, 32, generator=random), "labels": labels}
    ids = torch.randint(3, 30, (examples, _LENGTH), generator=random)  # few, so that ids repeat
    mask = torch.ones(examples, _LENGTH, dtype=torch.long)
    if padding is not None:
        for example in range(examples):
            ids[example, _LENGTH - example % 7 :], mask[example, _LENGTH - example % 7 :] = padding, 0
    batch = {"input_ids": ids, "attention_mask": mask}
    return batch if task == "language" else {**batch, "labels": labels}


def _inputs(batch: Batch) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name != "labels"}


def _classify(model: nn.Module) -> Callable[[Batch], Tensor]:
    return lambda batch: F.cross_entropy(model(**_inputs(batch)).logits, batch["labels"], reduction="none")


def _language(model: nn.Module) -> Callable[[Batch], Tensor]:
    """The next token, averaged over each example's own tokens."""

    def losses(batch: Batch) -> Tensor:
        logits = model(**_inputs(batch)).logits[:, :-1]
        kept = batch["attention_mask"][:, 1:].to(logits.dtype)
        each = F.cross_entropy(logits.transpose(1, 2), batch["input_ids"][:, 1:], reduction="none") * kept
        return cast(Tensor, each.sum(1) / kept.sum(1).clamp_min(1))

    return losses


def _features(model: nn.Module) -> Callable[[Batch], Tensor]:
    return lambda batch: F.cross_entropy(model(batch["features"]), batch["labels"], reduction="none")


_LOSSES: Mapping[Task, Callable[[nn.Module], Callable[[Batch], Tensor]]] = MappingProxyType(
    {"classify": _classify, "language": _language, "images": _classify, "features": _features}
)


def families() -> Mapping[str, Family]:
    """Every family by name, in the order of the tables. Needs transformers, and peft for the adapters' models to be made."""
    from privtensors.testing.dp_families import all_families

    return MappingProxyType({family.name: family for family in all_families()})
