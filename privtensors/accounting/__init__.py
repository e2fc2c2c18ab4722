"""Accounting: the append-only, hash-chained ledger of what left protection, and privacy counted on it. Imports no torch."""

from __future__ import annotations

from privtensors.accounting.accountants import Cost, PLDAccountant, RDPAccountant, calibrate, cost
from privtensors.accounting.book import Budget
from privtensors.accounting.budget import Accounts, Reservation, Statement
from privtensors.accounting.entry import Entry, Head, JsonValue, Verification
from privtensors.accounting.events import Account, Composed, Gaussian, Laplace, Relation, Release, SampledGaussian, ZeroConcentrated
from privtensors.accounting.filter import FilterAccountant, RenyiFilter
from privtensors.accounting.ledger import Ledger, Transaction, default_path

__all__ = [
    "Account",
    "Accounts",
    "Budget",
    "Composed",
    "Cost",
    "Entry",
    "FilterAccountant",
    "Gaussian",
    "Head",
    "JsonValue",
    "Laplace",
    "Ledger",
    "PLDAccountant",
    "RDPAccountant",
    "Relation",
    "Release",
    "RenyiFilter",
    "Reservation",
    "SampledGaussian",
    "Statement",
    "Transaction",
    "Verification",
    "ZeroConcentrated",
    "calibrate",
    "cost",
    "default_path",
]
