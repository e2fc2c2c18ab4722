"""Kernels for embedding lookups: at public positions, and at positions that only the client knows."""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import Tensor

from privtensors.backends.mpc import costs
from privtensors.backends.mpc.kernels.shape import represented
from privtensors.backends.mpc.protocols.lookup import ASKING, lookup, open_table, packed_bits, row_of
from privtensors.backends.mpc.runtime import Host, Protocol
from privtensors.backends.mpc.shares import WORD, Shares, Table
from privtensors.core.kernel import FREE, Cost, Kernel
from privtensors.errors import InvalidInput, OutOfRange, UnsupportedOp


def embedding(backend: Host, weight: Shares | Tensor, ids: Shares | Tensor, *_options: Any) -> Shares:
    """Rows of ``weight`` at ``ids``; padding and gradient options change nothing forward.

    Args:
        backend: The backend.
        weight: (V, d), shared or public.
        ids: Whole numbers 0 to V - 1 of any shape: public, or protected by the client, who still knows them.

    Raises:
        InvalidInput: ``weight`` is no matrix.
        OutOfRange: A position outside the table.
        UnsupportedOp: Protected positions that the client does not know, e.g. a result.
    """
    if len(weight.shape) != 2:
        raise InvalidInput(f"a table of shape {tuple(weight.shape)}", where="mpc embedding", fix="pass a table of shape (rows, width)")
    rt = backend.runtime
    if isinstance(ids, Tensor):
        assert isinstance(weight, Shares)
        _check(ids, weight.shape[0])
        return weight.like(weight.data[:, ids.to(torch.int64)])
    known = _known(ids)
    row = row_of(rt, ASKING)
    if row is not None:
        _check(known[row], weight.shape[0])
    if isinstance(weight, Tensor):  # the client looks up in plain: its share is the row, the other's zero
        words = torch.zeros(*known.shape, weight.shape[1], dtype=torch.int64)
        if row is not None:
            words[row] = backend.encode(weight, backend.frac)[known[row]]
        return Shares(words, backend.frac, WORD, weight.dtype)

    def protocol(weight: Shares) -> Protocol[Tensor]:
        table: Table = yield from open_table(rt, weight)
        return (yield from lookup(rt, table, known.flatten(1)))

    found = backend.run(protocol(weight))
    return Shares(found.reshape(*known.shape, weight.shape[1]), backend.frac, WORD, weight.dtype)


def _known(ids: Shares) -> Tensor:
    """int64, ``(parties held here, *shape)``: the positions, in the client's row."""
    known = ids.known_to_client()
    if known is None:
        raise UnsupportedOp(
            "embedding at positions that the client does not know",
            where="backend 'mpc'",
            fix="protect whole numbers with owner='client' and look them up before computing on them",
        )
    return known.to(torch.int64)


def _check(ids: Tensor, size: int) -> None:
    bad = (ids < 0) | (ids >= size)
    if bool(bad.any()):
        raise OutOfRange(
            f"{int(bad.sum())} positions lie outside 0..{size - 1}", where="mpc embedding", fix="use the tokenizer of this model"
        )


def embedding_cost(backend: Host, weight: Any, ids: Any, *_options: Any) -> Cost:
    """Masking the table, once, then the question and the answer."""
    if not (isinstance(weight, Shares) and isinstance(ids, Shares)):
        return FREE
    count, (size, width) = math.prod(ids.shape), weight.shape
    question = costs.beside(costs.opened(count * packed_bits(size), 8), costs.opened(count, 1))
    asked = costs.then(question, costs.opened(count * width, WORD))
    return asked if weight.table is not None else costs.then(costs.opened(size * width, WORD), asked)


KERNELS: Final = (
    Kernel("embedding", "AP", embedding, error=represented),
    Kernel("embedding", "PA", embedding, error=represented),
    Kernel("embedding", "AA", embedding, embedding_cost, represented),
)
