"""Fine-tuning a private model: which parameters train, and the labels of a batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from privtensors.core.checks import check_plain
from privtensors.core.safetensor import SafeTensor
from privtensors.errors import InvalidInput, OutOfRange, PolicyError
from privtensors.hf.families import Family
from privtensors.policy import Policy, Role, Technique


def trains(policy: Policy, technique: Technique) -> bool:
    """Whether the technique that computes the model is also the one that trains it.

    Raises:
        PolicyError: The train stage computes with the same technique, but other parameters.
    """
    trainer = policy.holder("train", Role.NONLINEAR) if policy.train else None
    if trainer is not None and trainer.name == technique.name and trainer != technique:
        what = f"{technique.name} has other parameters in the train stage than in the infer stage"
        raise PolicyError(what, where="wrap, policy.train", fix="give both stages the same technique")
    return trainer == technique


def check_labels(model: Any, family: Family, labels: Any, *, allowed: bool, rows: int | None) -> Tensor:
    """The labels of a batch, at their owner, before they are shared.

    Args:
        model: The private copy.
        family: Its layout.
        labels: Class indices or float targets; a SafeTensor when another party shared them.
        allowed: Whether the policy trains on the model's technique.
        rows: Examples in the batch.

    Raises:
        InvalidInput: The policy does not train, the model has no head that takes labels, or they are malformed.
        OutOfRange: A class index outside the head's classes, padding such as -100 included.
    """
    if not allowed:
        what = "the policy has no train stage for this model's technique, and a loss would need the labels, or the logits, in plain"
        fix = "Policy(train=[MPC()], infer=[MPC()]), or drop labels= and compute the loss from the revealed logits"
        raise InvalidInput(what, where="labels", fix=fix)
    if not type(model).__name__.endswith(("ForSequenceClassification", "ForImageClassification")):
        what = f"{type(model).__name__} has a loss that leaves out or shifts labels, which shared labels cannot follow"
        raise InvalidInput(what, where="labels", fix="fine-tune a sequence or image classification head")
    if isinstance(labels, SafeTensor):
        return labels
    plain = check_plain(labels, "labels")
    if rows is not None and (plain.dim() == 0 or plain.shape[0] != rows):
        raise InvalidInput(f"shape {tuple(plain.shape)} for a batch of {rows}", where="labels", fix="give one label per example")
    classes = int(model.config.num_labels)
    if not plain.is_floating_point() and classes > 1 and bool(((plain < 0) | (plain >= classes)).any()):
        what = f"a class index outside 0..{classes - 1}"
        raise OutOfRange(what, where="labels", fix="drop examples without a label; shared labels have no ignore_index")
    return plain
