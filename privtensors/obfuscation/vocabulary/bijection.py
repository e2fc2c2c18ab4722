"""Bijections of token ids and of class labels, expanded from a key. Guarantee: heuristic.

A bijection of token ids is a monoalphabetic code: equal tokens have equal keyed ids in every request under one key. Frequencies and
known texts reveal it piece by piece, and a server that holds the transformed weights of an open model reads it off the embedding
(Lin et al., 2024). It hides ids from somebody who reads the traffic or the logs and has no weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from privtensors.errors import InvalidInput, ParameterError

if TYPE_CHECKING:
    from privtensors.obfuscation.keys import ObfuscationKey


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class _Bijection:
    """A bijection of 0..size-1. Neither repr nor messages show its values: they are as secret as the key.

    Attributes:
        keyed: int64 (size,): ``keyed[plain] = keyed id``.
    """

    keyed: Tensor

    def __post_init__(self) -> None:
        keyed = self.keyed
        if keyed.dtype != torch.int64 or keyed.ndim != 1 or not keyed.numel():
            what = f"a bijection is int64 of shape (size,), not {keyed.dtype} of shape {tuple(keyed.shape)}"
            raise ParameterError(what, where=type(self).__name__, fix="Make it with from_key")
        if not torch.equal(keyed.sort().values, torch.arange(len(keyed))):
            raise ParameterError("some id occurs twice or is out of range", where=type(self).__name__, fix="Make it with from_key")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(size={self.size})"

    @property
    def size(self) -> int:
        """How many ids there are."""
        return int(self.keyed.numel())

    @property
    def plain(self) -> Tensor:
        """int64 (size,), the inverse: ``plain[keyed id] = plain id``."""
        return torch.argsort(self.keyed)

    def encode(self, ids: Tensor) -> Tensor:
        """Keyed ids of plain ids: integers of any shape; int64 of the same shape and device.

        Raises:
            InvalidInput: ``ids`` are not integers in 0..size-1.
        """
        return self._look_up(self.keyed, ids)

    def decode(self, ids: Tensor) -> Tensor:
        """Plain ids of keyed ids: integers of any shape; int64 of the same shape and device.

        Raises:
            InvalidInput: ``ids`` are not integers in 0..size-1.
        """
        return self._look_up(self.plain, ids)

    def _look_up(self, table: Tensor, ids: Tensor) -> Tensor:
        if ids.dtype.is_floating_point or ids.dtype.is_complex or ids.dtype == torch.bool:
            raise InvalidInput(f"ids are integers, not {ids.dtype}", where=type(self).__name__, fix="Give int64 ids")
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.size:
            what = f"some id is outside 0..{self.size - 1}"
            raise InvalidInput(what, where=type(self).__name__, fix="Give ids of the tokenizer or model that belongs to this key")
        return table.to(ids.device)[ids.long()]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Vocabulary(_Bijection):
    """A bijection of token ids 0..size-1, where size is the number of rows of the embedding. Guarantee: heuristic.

    Attributes:
        keyed: int64 (size,): ``keyed[plain id] = keyed id``.
    """

    @classmethod
    def from_key(cls, key: ObfuscationKey, size: int, *, fixed: Iterable[int] = ()) -> Self:
        """The vocabulary of a key (its stream "vocabulary"): uniform among the bijections that leave ``fixed`` in place.

        Args:
            key: The key.
            size: Rows of the embedding, padded rows included.
            fixed: Ids that keep their place; see :func:`fixed_ids`.

        Raises:
            ParameterError: ``size`` is not positive, or a fixed id is outside 0..size-1.
        """
        kept = sorted(set(fixed))
        if size < 1 or (kept and not 0 <= kept[0] <= kept[-1] < size):
            what = f"a vocabulary of {size} ids with the fixed ids {kept}"
            raise ParameterError(what, where="Vocabulary", fix="Give a positive size and fixed ids below it")
        movable = torch.ones(size, dtype=torch.bool)
        movable[kept] = False
        free = movable.nonzero().flatten()
        keyed = torch.arange(size)
        if len(free):
            keyed[free] = free[key.stream("vocabulary").permutation(len(free))]
        return cls(keyed)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Labels(_Bijection):
    """A bijection of class labels 0..size-1. Guarantee: heuristic.

    Attributes:
        keyed: int64 (size,): ``keyed[plain label] = keyed label``.
    """

    @classmethod
    def from_key(cls, key: ObfuscationKey, size: int) -> Self:
        """The labels of a key (its stream "labels"), uniform.

        Raises:
            ParameterError: ``size`` is not positive.
        """
        if size < 1:
            raise ParameterError(f"{size} labels", where="Labels", fix="Give a positive number")
        return cls(key.stream("labels").permutation(size))

    def decode_logits(self, logits: Tensor) -> Tensor:
        """Logits or probabilities (..., size) in keyed order, put back in plain order; dtype and device stay.

        Raises:
            InvalidInput: The last dimension is not ``size``.
        """
        if not logits.ndim or logits.shape[-1] != self.size:
            what = f"the last dimension of {tuple(logits.shape)} is not the number of labels, {self.size}"
            raise InvalidInput(what, where="Labels", fix="Give the logits of the server model that belongs to this key")
        return logits.index_select(-1, self.keyed.to(logits.device))
