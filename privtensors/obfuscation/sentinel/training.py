"""Fine-tuning by the stock ``Trainer`` of transformers, the same for the plain model and for the keyed one, and the scores of both."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from privtensors.errors import MissingExtra, ParameterError
from privtensors.obfuscation.sentinel.data import Example
from privtensors.obfuscation.sentinel.encoding import Encoded, Encoder, Row, encode_sentences, encode_texts
from privtensors.obfuscation.sentinel.entities import entity_scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Advance = Callable[[int, int], None]
"""Called with the number of steps done and their total."""

_EVALUATED_AT_ONCE = 64


@dataclass(frozen=True)
class TrainingOptions:
    """How to train. The defaults are the published ones.

    Attributes:
        epochs: Passes over the training examples.
        batch_size: Examples per step.
        learning_rate: Largest rate; it rises over the first tenth of the steps and then falls to zero.
        max_seq_length: Longest row, in tokens; longer texts are cut.
        seed: Of the new head, dropout and the order of examples; sets the global generators. It protects nothing.

    Raises:
        ParameterError: A value is not positive or not finite.
    """

    epochs: float = 3.0
    batch_size: int = 8
    learning_rate: float = 5e-5
    max_seq_length: int = 128
    seed: int = 42

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate", "max_seq_length"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ParameterError(f"must be positive and finite, got {value}", where=f"TrainingOptions.{name}")


def encode(encoder: Encoder, examples: Sequence[Example], names: Sequence[str], task: str, length: int) -> Encoded:
    """Rows for a task; ``names`` are the labels in the order of the model's outputs."""
    return (encode_sentences if task == "ner" else encode_texts)(encoder, examples, names, length)


def scores(
    model: PreTrainedModel, encoder: Encoder, examples: Sequence[Example], order: Sequence[str], task: str, length: int
) -> Mapping[str, float]:
    """Accuracy, precision, recall and F1 of a model; of entities for "ner".

    Args:
        model: For the task.
        encoder: Plain or keyed, as the model is.
        examples: Held out.
        order: The labels in the order of the model's outputs.
        task: ``"classification"`` or ``"ner"``.
        length: Longest row.

    Raises:
        FileFormatError: A label is not in ``order``.
        MissingExtra: scikit-learn is not installed.
    """
    encoded = encode(encoder, examples, order, task, length)
    logits = predict(model, encoded.rows, encoder, task)
    if task == "ner":
        return _of_sentences(logits, encoded, [one.label for one in examples], order)
    return _of_texts([order[int(one.argmax())] for one in logits], [str(one.label) for one in examples], sorted(order))


def train(model: PreTrainedModel, rows: Sequence[Row], encoder: Encoder, task: str, options: TrainingOptions, advance: Advance) -> int:
    """Fine-tune ``model`` in place, all its parameters.

    Returns:
        The number of steps.

    Raises:
        MissingExtra: The package accelerate, which ``Trainer`` needs, is not installed.
    """
    import transformers

    class Steps(transformers.TrainerCallback):
        """Tells ``advance`` of every step."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            advance(int(state.global_step), int(state.max_steps))

    per_epoch = -(-len(rows) // options.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        try:
            arguments = transformers.TrainingArguments(
                output_dir=folder,
                num_train_epochs=options.epochs,
                per_device_train_batch_size=options.batch_size,
                learning_rate=options.learning_rate,
                warmup_steps=int(0.1 * options.epochs * per_epoch),
                seed=options.seed,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
                remove_unused_columns=False,
                dataloader_pin_memory=torch.cuda.is_available(),
            )
        except ImportError as error:
            raise MissingExtra("the Trainer of transformers needs accelerate", where="fine-tuning", fix="pip install accelerate") from error
        dataset: Any = list(rows)
        trainer = transformers.Trainer(model, arguments, data_collator=_collator(encoder, task), train_dataset=dataset, callbacks=[Steps()])
        for unwanted in (transformers.PrinterCallback, transformers.ProgressCallback):
            trainer.remove_callback(unwanted)
        trainer.train()
        return int(trainer.state.global_step)


def predict(model: PreTrainedModel, rows: Sequence[Row], encoder: Encoder, task: str) -> list[Tensor]:
    """Logits of each row: (labels,), or (tokens, labels) for sentences."""
    collate = _collator(encoder, task)
    found: list[Tensor] = []
    torch.nn.Module.eval(model)
    with torch.no_grad():
        for start in range(0, len(rows), _EVALUATED_AT_ONCE):
            part = rows[start : start + _EVALUATED_AT_ONCE]
            batch = {name: value.to(model.device) for name, value in collate([dict(row) for row in part]).items() if name != "labels"}
            logits = model(**batch).logits.float().cpu()
            lengths = [len(row["input_ids"]) if isinstance(row["input_ids"], list) else 0 for row in part]
            found += [one[:length] if task == "ner" else one for one, length in zip(logits, lengths, strict=True)]
    return found


def _of_texts(found: list[str], true: list[str], names: list[str]) -> Mapping[str, float]:
    """Of the last of two labels, else the mean over labels."""
    try:
        from sklearn.metrics import accuracy_score, precision_recall_fscore_support
    except ImportError as error:
        raise MissingExtra("scikit-learn is not installed", where="evaluation", fix="pip install scikit-learn") from error
    choice: dict[str, Any] = {"average": "binary", "pos_label": names[1]} if len(names) == 2 else {"average": "macro"}
    precision, recall, f1, _ = precision_recall_fscore_support(true, found, zero_division=0, **choice)
    return {"accuracy": float(accuracy_score(true, found)), "precision": float(precision), "recall": float(recall), "f1": float(f1)}


def _of_sentences(logits: Sequence[Tensor], encoded: Encoded, true: Sequence[Sequence[str]], order: Sequence[str]) -> Mapping[str, float]:
    """A word that was cut off, or that has no token, counts as tagged O."""
    predicted = []
    for values, starts, tags in zip(logits, encoded.starts, true, strict=True):
        found = ["O"] * len(tags)
        for value, word in zip(values, starts, strict=True):
            if word is not None:
                found[word] = order[int(value.argmax())]
        predicted.append(found)
    result = entity_scores(true, predicted)
    right = sum(a == b for one, other in zip(true, predicted, strict=True) for a, b in zip(one, other, strict=True))
    accuracy = right / max(1, sum(map(len, true)))
    return {"accuracy": accuracy, "precision": result.precision, "recall": result.recall, "f1": result.f1}


def _collator(encoder: Encoder, task: str) -> Any:
    from transformers import DataCollatorForTokenClassification, DataCollatorWithPadding

    return (DataCollatorForTokenClassification if task == "ner" else DataCollatorWithPadding)(encoder.tokenizer)
