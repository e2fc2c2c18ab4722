"""What a private run trains on: a data set of units, each an example or all examples of a user, taken by index."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate

from privtensors.accounting.fingerprint import MOST
from privtensors.errors import InvalidInput
from privtensors.train.roles import Batch
from privtensors.train.sampling import not_poisson

Collate = Callable[[list[Any]], Mapping[str, Any]]
"""Makes a batch of a list of examples: tensors by name, whose first axis runs over the examples in their order."""


class Units(Protocol):
    """The units of privacy of a data set, and the batches that a sample of them makes."""

    def __len__(self) -> int:
        """Number of units."""

    def batches(self, drawn: Tensor, size: int) -> Iterator[tuple[Batch, int]]:
        """Batches of at most ``size`` examples (or one user's) that hold what was drawn, with their number of examples.

        Args:
            drawn: Indices of units, int64, (n,).
            size: Examples that fit into memory at once.
        """

    def rows(self) -> Iterator[object]:
        """Examples in a fixed order, for a fingerprint."""


class Examples:
    """A data set whose units are its examples.

    Args:
        dataset: With ``len`` and indices: a torch ``Dataset``, an HF data set, a list of mappings; or a mapping of columns
            (tensors or lists of one length).
        collate: Makes batches; default ``torch.utils.data.default_collate`` on mappings, lists of numbers taken as tensors.
        drop: Columns that belong to no batch.

    Raises:
        AccountingError: A DataLoader: its batches are not Poisson samples.
        InvalidInput: It is empty, has no length, or is of another kind.
    """

    def __init__(self, dataset: Any, collate: Collate | None = None, drop: Sequence[str] = ()) -> None:
        if isinstance(dataset, DataLoader):
            raise not_poisson(dataset.sampler)
        where = "fit, dataset"
        if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            what = f"a {type(dataset).__name__} cannot be sampled: it has no length, or no examples by index"
            raise InvalidInput(what, where=where, fix="Give a torch Dataset with len, a list of mappings or a mapping of columns")
        self._columns = dict(dataset) if isinstance(dataset, Mapping) else None
        self._dataset, self._collate, self._drop = dataset, collate or collate_rows, frozenset(drop)
        lengths = {len(column) for column in self._columns.values()} if self._columns is not None else {len(dataset)}
        if len(lengths) != 1:
            raise InvalidInput("its columns have different lengths", where=where, fix="Give one entry per example in every column")
        self._size = lengths.pop()
        if self._size == 0:
            raise InvalidInput("it is empty", where=where, fix="Give at least one example")

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Any:
        """The example as the data set has it, without the dropped columns."""
        row = self._dataset[index] if self._columns is None else {name: column[index] for name, column in self._columns.items()}
        return {name: row[name] for name in row if name not in self._drop} if self._drop and isinstance(row, Mapping) else row

    def batch(self, indices: Sequence[int]) -> Batch:
        """The examples at ``indices`` as one batch.

        Raises:
            InvalidInput: The collate function does not give one row per example.
        """
        batch = self._collate([self[index] for index in indices])
        if not isinstance(batch, Mapping):
            what = f"a batch is a {type(batch).__name__}, not a mapping of names to tensors"
            raise InvalidInput(what, where="fit, collate", fix="Give examples as mappings, or collate= that returns one")
        for name, value in batch.items():
            if not isinstance(value, Tensor) or value.dim() == 0 or value.shape[0] != len(indices):
                what = f"entry {name!r} of a batch is no tensor with one row per example"
                raise InvalidInput(what, where="fit, collate", fix="Drop the column, or give collate= that makes a tensor of it")
        return dict(batch)

    def batches(self, drawn: Tensor, size: int) -> Iterator[tuple[Batch, int]]:
        """See :meth:`Units.batches`."""
        indices = drawn.tolist()
        for start in range(0, len(indices), size):
            part = indices[start : start + size]
            yield self.batch(part), len(part)

    def rows(self) -> Iterator[object]:
        """See :meth:`Units.rows`. At most ``accounting.fingerprint.MOST``, at even distances."""
        stride = max(1, -(-self._size // MOST))
        return (self[index] for index in range(0, self._size, stride))


def content(value: object) -> object:
    """What of an example a fingerprint can read: an object without a content of its own, e.g. an image handle, counts by its type."""
    if isinstance(value, Mapping):
        return {str(name): content(item) for name, item in value.items()}
    if isinstance(value, Tensor):
        plain = value.detach().cpu()
        return plain.float() if plain.is_floating_point() else plain
    if isinstance(value, (list, tuple)):
        return value if all(isinstance(item, (int, float, str, bool)) for item in value) else [content(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return value if value.dtype != object else type(value).__name__
    return value if value is None or isinstance(value, (int, float, str, bytes)) else type(value).__name__


class Users:
    """A data set whose units are users: everything one user contributed is one unit.

    Args:
        examples: The data set, whose examples are mappings.
        column: Name of the entry that tells whose an example is.
        most: Most examples per user; of a user with more, so many are kept, chosen at random once. None keeps all.

    Raises:
        InvalidInput: An example has no such entry.
    """

    def __init__(self, examples: Examples, column: str, most: int | None = None) -> None:
        owned: dict[Any, list[int]] = {}
        for index in range(len(examples)):
            row = examples[index]
            if not isinstance(row, Mapping) or column not in row:
                what = f"an example has no entry {column!r}"
                raise InvalidInput(what, where="DP, user_column", fix="Name the entry that holds the user of each example")
            owner = row[column]
            owned.setdefault(owner.item() if isinstance(owner, Tensor) else owner, []).append(index)
        self._owned = [_choose(indices, most) for indices in owned.values()]
        self._examples = Examples(_Without(examples, column), examples._collate)
        self._all = examples

    def __len__(self) -> int:
        return len(self._owned)

    def batches(self, drawn: Tensor, size: int) -> Iterator[tuple[Batch, int]]:
        """One batch per user, whatever its size: a user's gradient is clipped as a whole."""
        for user in drawn.tolist():
            indices = self._owned[user]
            yield self._examples.batch(indices), len(indices)

    def rows(self) -> Iterator[object]:
        """See :meth:`Units.rows`."""
        return self._all.rows()


class _Without:
    """A data set without one column."""

    def __init__(self, examples: Examples, column: str) -> None:
        self._examples, self._column = examples, column

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._examples[index]
        return {name: row[name] for name in row if name != self._column}


def collate_rows(rows: list[Any]) -> Mapping[str, Any]:
    """``default_collate``, with lists of numbers taken as tensors.

    Raises:
        InvalidInput: Examples are no mappings, or differ in shape.
    """
    if not all(isinstance(row, Mapping) for row in rows):
        what = f"an example is a {type(rows[0]).__name__}, not a mapping of names to values"
        raise InvalidInput(what, where="fit, dataset", fix='Give examples such as {"x": …, "labels": …}, or collate=')
    try:
        tensors = [{name: torch.as_tensor(value) if isinstance(value, list) else value for name, value in row.items()} for row in rows]
        batch: Mapping[str, Any] = default_collate(tensors)
    except (RuntimeError, TypeError, ValueError) as error:
        what = f"its examples cannot be stacked ({type(error).__name__})"
        fix = "Pad them to one length, or give collate=, e.g. transformers.DataCollatorWithPadding(tokenizer)"
        raise InvalidInput(what, where="fit, dataset", fix=fix) from None
    return batch


def _choose(indices: list[int], most: int | None) -> list[int]:
    if most is None or len(indices) <= most:
        return indices
    return sorted(secrets.SystemRandom().sample(indices, most))
