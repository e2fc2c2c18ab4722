"""Accounting: the append-only, hash-chained ledger of what left protection, and privacy counted on it. Imports no torch."""

from __future__ import annotations

from privtensors.accounting.accountants import Cost, PLDAccountant, RDPAccountant, calibrate, cost
from privtensors.accounting.book import Budget
from privtensors.accounting.budget import Accounts, Reservation, Statement
from privtensors.accounting.entry import Entry, Head, JsonValue, Snapshot, Verification
from privtensors.accounting.events import Account, Composed, Gaussian, Laplace, Relation, Release, SampledGaussian, ZeroConcentrated
from privtensors.accounting.export import verify_export
from privtensors.accounting.filter import FilterAccountant, RenyiFilter
from privtensors.accounting.fingerprint import Fingerprinter
from privtensors.accounting.history import Point
from privtensors.accounting.ledger import Ledger, Transaction, default_path
from privtensors.accounting.schedule import EpsilonCurve, epsilon_curve

__all__ = [
    "Account",
    "Accounts",
    "Budget",
    "Composed",
    "Cost",
    "Entry",
    "EpsilonCurve",
    "FilterAccountant",
    "Fingerprinter",
    "Gaussian",
    "Head",
    "JsonValue",
    "Laplace",
    "Ledger",
    "PLDAccountant",
    "Point",
    "RDPAccountant",
    "Relation",
    "Release",
    "RenyiFilter",
    "Reservation",
    "SampledGaussian",
    "Snapshot",
    "Statement",
    "Transaction",
    "Verification",
    "ZeroConcentrated",
    "calibrate",
    "cost",
    "default_path",
    "epsilon_curve",
    "verify_export",
]
