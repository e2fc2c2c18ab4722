"""Losses of stock task heads as a mean over examples of what each example says alone.

The stock losses average over the tokens, or the labelled examples, of a *batch*: how much one example weighs then depends on the
others, and clipping it to C no longer bounds what a neighbour changes. Here tokens are averaged within each example first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from torch import Tensor, nn
from torch.nn import functional

from privtensors.errors import InvalidInput
from privtensors.train.roles import Batch, Loss

LABELS: Final = ("labels", "start_positions", "end_positions")
_ROWS = ("ForSequenceClassification", "ForImageClassification")
_SHIFTED = ("ForCausalLM", "LMHeadModel")
_TOKENS = ("ForMaskedLM", "ForTokenClassification")
_DECODED = ("ForConditionalGeneration",)
_SPANS = ("ForQuestionAnswering",)
_IGNORED = -100

PerExample = Callable[[Any, Any, Batch], Tensor]


def task_loss(model: Any) -> Loss | None:
    """The loss of a stock task head on a batch with labels, or None for a model without a known one.

    Args:
        model: A transformers model, or a PEFT model around one.

    Returns:
        A function of a batch: the mean over its examples of cross entropy (averaged over the labelled tokens of the example), or of
        squared errors or binary cross entropy where the labels are floats. An example without any label counts 0. It raises
        InvalidInput for a batch without labels.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    name = type(base).__name__
    per_example = next((loss for endings, loss in _TABLE if name.endswith(endings)), None)
    if per_example is None or not hasattr(base, "config"):
        return None
    found: PerExample = per_example
    keep = name.endswith(_DECODED)  # the decoder's input is made from the labels

    def loss(batch: Batch) -> Tensor:
        if not any(key in batch for key in LABELS):
            fix = f"Give every example its {' or '.join(LABELS[:2])}"
            raise InvalidInput("a batch has no labels", where=f"fit, {name}", fix=fix)
        outputs = model(**{key: x for key, x in batch.items() if keep or key not in LABELS})
        return found(base.config, outputs, batch).mean()

    return loss


def model_loss(model: nn.Module) -> Loss:
    """The loss that the model itself returns for a batch; whether it mixes examples must be checked."""

    def loss(batch: Batch) -> Tensor:
        outputs = model(**batch)
        value = outputs["loss"] if isinstance(outputs, dict) and "loss" in outputs else getattr(outputs, "loss", None)
        if not isinstance(value, Tensor):
            what = f"{type(model).__name__} returns no loss"
            raise InvalidInput(what, where="fit, loss", fix="Give loss=, a function of the model and a batch")
        return value

    return loss


def _rows(config: Any, outputs: Any, batch: Batch) -> Tensor:
    logits, labels = outputs.logits.float(), batch["labels"]
    if config.num_labels == 1:
        return functional.mse_loss(logits.flatten(), labels.flatten().to(logits.dtype), reduction="none")
    if labels.is_floating_point():
        several = config.problem_type in (None, "multi_label_classification")
        one = functional.binary_cross_entropy_with_logits if several else functional.mse_loss
        return one(logits, labels.to(logits.dtype), reduction="none").mean(-1)
    return functional.cross_entropy(logits, labels.flatten().long(), ignore_index=_IGNORED, reduction="none")


def _tokens(config: Any, outputs: Any, batch: Batch) -> Tensor:
    return _token_mean(outputs.logits, batch["labels"])


def _shifted(config: Any, outputs: Any, batch: Batch) -> Tensor:
    return _token_mean(outputs.logits[:, :-1], batch["labels"][:, 1:])


def _spans(config: Any, outputs: Any, batch: Batch) -> Tensor:
    tokens = outputs.start_logits.shape[1]
    parts = []
    for logits, key in ((outputs.start_logits, "start_positions"), (outputs.end_logits, "end_positions")):
        places = batch[key].flatten().long()
        inside = (places >= 0) & (places < tokens)
        aims = places.where(inside, places.new_full((), _IGNORED))
        parts.append(functional.cross_entropy(logits.float(), aims, ignore_index=_IGNORED, reduction="none"))
    return (parts[0] + parts[1]) / 2


def _token_mean(logits: Tensor, labels: Tensor) -> Tensor:
    each = functional.cross_entropy(logits.float().transpose(1, 2), labels.long(), ignore_index=_IGNORED, reduction="none")
    counted = (labels != _IGNORED).sum(-1).clamp(min=1)
    return each.sum(-1) / counted


_TABLE: tuple[tuple[tuple[str, ...], PerExample], ...] = (
    (_ROWS, _rows),
    (_TOKENS, _tokens),
    (_SHIFTED, _shifted),
    (_DECODED, _tokens),
    (_SPANS, _spans),
)
