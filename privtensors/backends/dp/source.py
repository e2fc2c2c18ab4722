"""Where protected values come from: each table with its keyed fingerprint, by which it is known again under another name."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor

from privtensors.accounting import Fingerprinter

MOST_SOURCES: Final = 64
"""Most tables of one release whose fingerprints go to the ledger."""


class Source:
    """A table as it was given to ``protect``, before any bound.

    The fingerprint is made at the first release of something that came from it, under the user's key as it is then, of 10,000
    rows at most; after that the table is no longer held here. Without the key it says nothing about the table.

    Args:
        table: float64 or the dtype it was given in, any shape; not written to as long as this holds it.
    """

    __slots__ = ("_fingerprint", "_lock", "_table", "number")

    def __init__(self, table: Tensor, number: int) -> None:
        self.number = number
        self._table: Tensor | None = table
        self._fingerprint = ""
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Source({self.number})"

    def fingerprint(self) -> str:
        """32 hex digits; empty for a table without rows.

        Raises:
            AccountingError: The key of fingerprints cannot be made or read.
        """
        with self._lock:
            if self._table is not None:
                self._fingerprint = _fingerprint(self._table)
                self._table = None
            return self._fingerprint


def _fingerprint(table: Tensor) -> str:
    wide = table.to(device="cpu", dtype=torch.float64).numpy()
    rows = wide.reshape(1, -1) if table.dim() == 0 else wide
    # The values of a single column, labels above all, may occur as often in other data: there their order counts.
    return Fingerprinter().of_table(rows, ordered=rows[0].size <= 1) if rows.size else ""


def fingerprints(sources: Iterable[Source]) -> str | tuple[str, ...]:
    """The fingerprints of tables, for ``Release(fingerprint=…)``; of the first :data:`MOST_SOURCES` that were protected."""
    first = sorted(sources, key=lambda source: source.number)[:MOST_SOURCES]
    found = tuple(dict.fromkeys(one for one in (source.fingerprint() for source in first) if one))
    return found if len(found) > 1 else found[0] if found else ""
