"""Accounting: the append-only, hash-chained ledger of what left protection. Imports no torch."""

from __future__ import annotations

from privtensors.accounting.entry import Entry, Head, JsonValue, Verification
from privtensors.accounting.ledger import Ledger, Transaction, default_path

__all__ = ["Entry", "Head", "JsonValue", "Ledger", "Transaction", "Verification", "default_path"]
