"""The fault table: what each party of a deployment reports when another one dies, stalls, or the network is tampered with.

Real processes, a tiny random BERT, every link through a proxy that counts bytes, so that a fault strikes at a known point.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.security.faults import Outcome, Trial, all_faults, in_time
from tests.security.processes import parties


def row(outcome: Outcome, idle_s: float) -> list[str]:
    """One line of the table."""
    fault = outcome.fault
    cells = [f"{fault.victim}: {fault.act}", fault.point]
    for party in ("client", "server", "dealer"):
        report = outcome.reports.get(party, "")
        cells.append(f"{report} {outcome.seconds[party]:.1f}" if party in outcome.seconds else report)
    good = outcome.recovered and in_time(outcome, idle_s)
    return [*cells, "answered" if good else "FAILED"]


def main(argv: list[str]) -> None:
    """Print the table; exit code 1 where a party was late or the next request was not answered."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench faults", description=__doc__)
    parser.add_argument("--idle", type=float, default=8.0, help="limits.idle_s of the policy file; 8 ships")
    parser.add_argument("--acts", default="kill,stop,cut,flip,replay,swap,pull", help="what happens")
    parser.add_argument("--stage", choices=["connect", "ask"], help="only while the client connects, or asks")
    parser.add_argument("--json", type=Path, metavar="F", help="also write the outcomes to this file")
    options = parser.parse_args(argv)
    faults = [f for f in all_faults() if f.act in options.acts.split(",") and options.stage in (None, f.stage)]
    outcomes = []
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder, parties(Path(folder), limits=f"idle_s = {options.idle}") as place:
        trial = Trial(place, options.idle)
        for number, fault in enumerate(faults, 1):
            outcomes.append(trial.run(fault))
            console.print(f"{number}/{len(faults)} {fault}", highlight=False)
        leaks = place.leaks()
    table = Table(title="Faults: who reports what, after how many seconds, and the next request", title_justify="left")
    for name in ("fault", "when", "client", "server", "dealer", "next request"):
        table.add_column(name)
    for outcome in outcomes:
        table.add_row(*row(outcome, options.idle))
    Console(width=170).print(table)
    worst = max((o.slowest for o in outcomes), default=0.0)
    print(f"{len(outcomes)} faults, slowest report {worst:.1f} s, log lines that look like a value: {len(leaks)}")
    if options.json:
        found = [{"fault": str(o.fault), **asdict(o)} for o in outcomes]
        options.json.write_text(json.dumps({"faults": found}, indent=2), encoding="utf-8")
    if leaks or any(row(o, options.idle)[-1] == "FAILED" for o in outcomes):
        raise SystemExit(1)
