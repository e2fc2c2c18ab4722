"""One training step without noise against one backward pass per example, for every family of models, in one batch and in several.

The models are small and random; the classes are those that are trained in earnest. The error is that of the clipped sum over all
parameters, relative; the worst part is the parameter where it is largest, relative to its own norm.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import torch
from rich.console import Console
from rich.table import Table
from transformers import logging

from privtensors.testing.dp_models import Family, families
from privtensors.testing.dp_oracle import ExactnessRow, exactness
from privtensors.train.bounding import EngineName
from tests.bench.mpc import names

ENGINES: Final[tuple[EngineName, ...]] = ("auto", "loop", "opacus")
LIMIT: Final = 1e-5


def parser(known: Mapping[str, Family]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench dp-exactness", description=__doc__)
    parser.add_argument("--engines", type=names(ENGINES), default=["auto"], help=f"of {', '.join(ENGINES)}; auto is what users get")
    parser.add_argument("--families", action="append", choices=tuple(known), metavar="NAME", help="a family; may be repeated; default all")
    parser.add_argument("--batches", type=int, choices=range(1, 7), default=1, metavar="N", help="parts of the 6 examples, 1 to 6")
    parser.add_argument("--seed", type=int, default=0, help="of weights and data")
    parser.add_argument("--json", type=Path, metavar="F", help="also write the rows to this file")
    return parser


def cell(row: ExactnessRow) -> tuple[str, str, str]:
    """Engine, error and worst part, marked where the error is too large."""
    if math.isnan(row.error):
        return f"[yellow]{row.engine}[/]", "-", "-"
    style = "green" if row.error <= LIMIT else "red"
    return row.engine, f"[{style}]{row.error:.1e}[/]", f"{row.worst:.1e}"


def table(engines: Sequence[str], rows: Mapping[str, Sequence[ExactnessRow]]) -> Table:
    """A line per family, three columns per engine."""
    found = Table(title=f"One step at sigma = 0 against the oracle; wanted: error <= {LIMIT:.0e}", title_justify="left")
    found.add_column("family")
    for engine in engines:
        found.add_column(f"{engine}: used")
        found.add_column("error", justify="right")
        found.add_column("worst part", justify="right")
    for name, by_engine in rows.items():
        found.add_row(name, *(text for row in by_engine for text in cell(row)))
    return found


def wrong(family: Family, engines: Sequence[str], rows: Sequence[ExactnessRow]) -> list[str]:
    """What is not as it must be: our engines exact, and ``auto`` ending with the engine that the family names. Opacus may refuse."""
    found = []
    for asked, row in zip(engines, rows, strict=True):
        if asked == "opacus":
            continue
        if asked == "auto" and not math.isnan(row.error) and row.engine != family.engine:
            found.append(f"{family.name}: the engine is {row.engine} instead of {family.engine}")
        if math.isnan(row.error):
            found.append(f"{family.name}: refused ({row.engine})")
        elif not row.error <= LIMIT:
            found.append(f"{family.name}: {row.engine}: error {row.error:.1e}")
    return found


def main(argv: list[str]) -> None:
    known = families()
    options = parser(known).parse_args(argv)
    torch.set_num_threads(1)
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    say, console = Console(stderr=True), Console(width=None if Console().is_terminal else 140)
    rows: dict[str, list[ExactnessRow]] = {}
    bad: list[str] = []
    with warnings.catch_warnings(), say.status("") as status:
        warnings.simplefilter("ignore")  # of the libraries; errors are in the table
        for name in options.families or known:
            status.update(name)
            rows[name] = [exactness(known[name], engine=engine, batches=options.batches, seed=options.seed) for engine in options.engines]
            bad += wrong(known[name], options.engines, rows[name])
    console.print(table(options.engines, rows))
    for line in bad:
        console.print(line, style="red", highlight=False, markup=False)
    if options.json:
        plain = [
            {"asked": engine, **{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(row).items()}}
            for by_engine in rows.values()
            for engine, row in zip(options.engines, by_engine, strict=True)
        ]
        options.json.write_text(json.dumps({"limit": LIMIT, "batches": options.batches, "rows": plain}, indent=2), encoding="utf-8")
    if bad:
        raise SystemExit(1)
