"""Releases by the thousand: the ledger's file need not survive a power cut here."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from privtensors.accounting import store


@pytest.fixture(autouse=True)
def _no_flush_per_row(monkeypatch: pytest.MonkeyPatch) -> None:
    connected = store._connected

    @contextlib.contextmanager
    def quick(path: Path, timeout: float) -> Iterator[sqlite3.Connection]:
        with connected(path, timeout) as connection:
            connection.execute("PRAGMA synchronous = OFF")
            yield connection

    monkeypatch.setattr(store, "_connected", quick)
