"""Privacy accounting: how close the reported ε is to the optimum, and how long a query takes.

The optimum is computed by dp_accounting directly at a discretisation ten times finer than ours. The compositions are DP-SGD
as on SST-2 (batch 256 of 67349, 9 epochs), alone and with other releases on the same data.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import dp_accounting
from rich.console import Console
from rich.table import Table

from privtensors.accounting import (
    Account,
    Accounts,
    Composed,
    Gaussian,
    Laplace,
    Ledger,
    Release,
    SampledGaussian,
    ZeroConcentrated,
    cost,
    epsilon_curve,
)
from privtensors.accounting.events import Event, event_to_json, release_to_json, to_dp_event

T = TypeVar("T")

DELTA = 1e-5
SST2 = SampledGaussian(0.7, 256 / 67349, 2367)
ROUNDS = Composed((Gaussian(20.0),), 30)
REFERENCE: dict[str, tuple[Event, ...]] = {
    "DP-SGD, SST-2": (SST2,),
    "DP-SGD, Laplace(2)": (SST2, Laplace(2.0)),
    "DP-SGD, Laplace(2), 30 rounds": (SST2, Laplace(2.0), ROUNDS),
    "two runs of DP-SGD, 50 Laplace(30)": (SST2, SampledGaussian(1.1, 0.01, 1000), Composed((Laplace(30.0),), 50)),
}
LARGEST_EXCESS, LARGEST_SECONDS, ENTRIES = 0.01, 1.0, 10_000


def optimum(events: Sequence[Event], interval: float) -> float:
    """ε by dp_accounting's own PLD accountant, not through this package's."""
    accountant = dp_accounting.pld.PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_SPECIAL, interval)
    for event in events:
        accountant.compose(to_dp_event(event))
    return float(accountant.get_epsilon(DELTA))


def closeness() -> list[dict[str, object]]:
    """ε of every composition: ours, the optimum, RDP, and the sum of the parts."""
    rows: list[dict[str, object]] = []
    for name, events in REFERENCE.items():
        seconds, found = _timed(lambda events=events: cost(events, DELTA))  # type: ignore[misc]
        best = optimum(events, 2e-5)
        parts = math.fsum(cost(event, DELTA).epsilon for event in events)
        row = {"name": name, "epsilon": found.epsilon, "optimum": best, "excess": found.epsilon / best - 1}
        rows.append({**row, "rdp": found.rdp, "sum": parts, "seconds": seconds})
    return rows


def queries(folder: Path) -> list[dict[str, object]]:
    """Seconds of a statement over a ledger of 10,000 entries, from the file and again, and of verifying it."""
    rows: list[dict[str, object]] = []
    for name, distinct in (("equal parameters", False), ("every release different", True)):
        ledger = _filled(folder / f"{distinct}.sqlite", distinct)
        cold, accounts = _timed(lambda path=ledger.path: _asked(path), runs=3)  # type: ignore[misc]
        again, _ = _timed(accounts.statements, runs=3)
        verify, _ = _timed(ledger.verify)
        rows.append({"name": name, "entries": ledger.head().index, "from_file": cold, "again": again, "verify": verify})
    return rows


def curve() -> dict[str, object]:
    """Seconds to prepare ε after each step, seconds to ask, and how far above the exact ε it is."""
    ready, found = _timed(lambda: epsilon_curve(SST2, DELTA), runs=3)
    start = time.perf_counter()
    for step in range(SST2.steps + 1):
        found.at(step)
    asked = (time.perf_counter() - start) / (SST2.steps + 1)
    excess = []
    for step in (1, 37, 500, 1201, SST2.steps):
        exact = cost(SampledGaussian(SST2.noise_multiplier, SST2.sampling_rate, step), DELTA).pld
        excess.append((step, found.at(step) / exact - 1))
    return {"ready": ready, "ask": asked, "excess": excess}


def zcdp() -> dict[str, object]:
    """A release of which only zCDP is known beside DP-SGD: with its derived PLD, by RDP, and were it a plain Gaussian."""
    found = cost((SST2, ZeroConcentrated(30 / (2 * 20.0**2))), DELTA)
    return {"epsilon": found.epsilon, "rdp": found.rdp, "gaussian": cost((SST2, ROUNDS), DELTA).epsilon}


def main(argv: list[str]) -> None:
    """Print the tables; exit code 1 where a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench accounting", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="F", help="also write the figures to this file")
    options = parser.parse_args(argv)
    cost(Gaussian(1.0), DELTA)  # the import of dp_accounting
    console = Console(width=140)
    close = closeness()
    table = Table(title=f"ε at δ {DELTA:g}: ours against the optimum (dp_accounting, interval 2e-5)", title_justify="left")
    for name in ("composition", "ours", "optimum", "above it", "RDP", "sum of parts", "seconds"):
        table.add_column(name, justify="left" if name == "composition" else "right")
    for row in close:
        figures = [f"{row[key]:.4f}" for key in ("epsilon", "optimum")] + [f"{row['excess']:.3%}"]
        table.add_row(str(row["name"]), *figures, *(f"{row[key]:.2f}" for key in ("rdp", "sum", "seconds")))
    console.print(table)
    with tempfile.TemporaryDirectory() as folder:
        asked = queries(Path(folder))
    table = Table(title="one statement over a ledger, seconds (process CPU, best of 3)", title_justify="left")
    for name in ("entries", "releases", "from the file", "again", "verify the chain"):
        table.add_column(name, justify="left" if name == "releases" else "right")
    for row in asked:
        table.add_row(str(row["entries"]), str(row["name"]), *(f"{row[key]:.2f}" for key in ("from_file", "again", "verify")))
    console.print(table)
    steps, mixed = curve(), zcdp()
    print(f"ε after each step: prepared in {steps['ready']:.2f} s, asked in {steps['ask'] * 1e6:.1f} µs, above the exact ε:")  # type: ignore[operator]
    print("  " + ", ".join(f"step {step} {excess:.2%}" for step, excess in steps["excess"]))  # type: ignore[attr-defined]
    print(f"DP-SGD and a zCDP release: {mixed['epsilon']:.3f} (RDP {mixed['rdp']:.3f}; were it a Gaussian {mixed['gaussian']:.3f})")
    if options.json:
        found = {"closeness": close, "queries": asked, "curve": steps, "zcdp": mixed}
        options.json.write_text(json.dumps(found, indent=2), encoding="utf-8")
    missed = [str(row["name"]) for row in close if not -1e-4 <= float(str(row["excess"])) <= LARGEST_EXCESS]
    missed += [str(row["name"]) for row in asked if float(str(row["from_file"])) > LARGEST_SECONDS]
    if missed:
        print(f"targets missed: {', '.join(missed)}")
        raise SystemExit(1)


def _asked(path: Path) -> Accounts:
    accounts = Accounts(Ledger(path, create=False))
    accounts.statements(DELTA)
    return accounts


def _filled(path: Path, distinct: bool) -> Ledger:
    draw, account, ledger = random.Random(1), Account("reviews"), Ledger(path)
    with ledger.transaction() as transaction:
        for i in range(ENTRIES // 2):
            scale = 1 + draw.random() if distinct else 1.0
            event: Event = (Gaussian(200 * scale), Laplace(300 * scale), SampledGaussian(2 * scale, 0.001 * scale, 10))[i % 3]
            release = release_to_json(Release(account, event, "bench"))
            row = transaction.append("budget.reserve", {"release": release, "rule": "unlimited"})
            transaction.append("budget.settle", {"reservation": row.index, "spent": event_to_json(event)})
    return ledger


def _timed(work: Callable[[], T], runs: int = 1) -> tuple[float, T]:
    """The fewest CPU seconds of some runs, and what the last one returned."""
    seconds = []
    for _ in range(runs):
        start = time.process_time()
        found = work()
        seconds.append(time.process_time() - start)
    return min(seconds), found
