"""A batch's rows: which of its values run over the examples, and parts of it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from privtensors.errors import InvalidInput
from privtensors.train.roles import Batch

_CONSTANTS = (bool, int, float, str, type(None))


def check_batch(batch: Batch, examples: int) -> None:
    """Check that every tensor's first axis runs over the examples.

    Raises:
        InvalidInput: A tensor has another first axis, or a value is neither a tensor nor a plain constant.
    """
    if isinstance(examples, bool) or not isinstance(examples, int) or examples < 0:
        raise InvalidInput(f"the number of examples is {examples!r}", where="accumulate", fix="Pass how many examples the batch holds.")
    for name, value in batch.items():
        if isinstance(value, Tensor):
            if value.dim() == 0 or value.shape[0] != examples:
                raise InvalidInput(
                    f"{name!r} has shape {tuple(value.shape)}, but the batch holds {examples} examples",
                    where="accumulate",
                    fix="Every tensor's first axis runs over the examples; expand what they share, keep constants out of the batch.",
                )
        elif not isinstance(value, _CONSTANTS):
            raise InvalidInput(
                f"{name!r} is a {type(value).__name__}, whose examples cannot be told apart",
                where="accumulate",
                fix="Put tensors in a batch, first axis over the examples; close over everything else in the loss.",
            )


def rows(batch: Batch, index: slice | Tensor) -> dict[str, Any]:
    """The batch of some of the examples, by slice (views) or by int64 indices ``(m,)`` (copies)."""
    return {name: value[index.to(value.device) if isinstance(index, Tensor) else index] if isinstance(value, Tensor) else value
            for name, value in batch.items()}  # fmt: skip
