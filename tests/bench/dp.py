"""A differentially private training step beside the non-private one, and beside Opacus, in one run, in turns, on the same batch.

Each contender has a process of its own, the same cores and threads, float32, AdamW. Noise is inside the clock, and stated apart. After
the last step each one's clipped sum without noise is held against one backward pass per example, added up in float64.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.bench.dp_engines.contender import PEERS, ROLES, Contender, Row, Step, measured, with_extra_peak
from tests.bench.dp_engines.report import comparison, judge
from tests.bench.dp_engines.settings import SETTINGS, Setting
from tests.bench.mpc import keep_to, names
from tests.bench.peers import tables
from tests.bench.peers.alternate import take_turns
from tests.bench.peers.environment import NotMeasured
from tests.bench.peers.targets import Verdict

WARM_UPS = 2
VERSIONS = ("torch", "transformers", "peft", "opacus")


def count(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("give a whole number of at least 1")
    return int(text)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench dp", description=__doc__)
    usual, known = [name for name in SETTINGS if name != "smoke"], ", ".join(SETTINGS)
    parser.add_argument("--settings", type=names(tuple(SETTINGS)), default=usual, help=f"of {known}; default all but the last")
    parser.add_argument("--vs", type=names(tuple(PEERS)), default=[], help=f"peers: {', '.join(PEERS)}")
    parser.add_argument("--steps", type=count, default=7, help="counted steps of each contender, after two that warm up")
    parser.add_argument("--threads", type=int, choices=(1, 2), default=2, help="cores, and threads, of a contender")
    parser.add_argument("--json", type=Path, metavar="F", help="also write the numbers to this file")
    return parser


def lineup(setting: Setting, options: argparse.Namespace) -> list[Contender]:
    """The contenders, on the same batch."""
    left_out = {role for peer, roles in PEERS.items() if peer not in options.vs for role in roles}
    batch = setting.batch()
    return [Contender(role, setting, batch, options.threads) for role in ROLES if role not in left_out]


def play(setting: Setting, contenders: Sequence[Contender], steps: int, say: Console) -> list[Row]:
    """One setting: a row per contender, those that were not measured included."""
    failed: dict[str, str] = {}
    rows: list[Row] = []
    try:
        for contender in contenders:
            try:
                contender.set_up(lambda line: say.print(line, style="dim", highlight=False, markup=False))
            except NotMeasured as error:
                failed[contender.name] = str(error)
        with say.status("") as status:

            def progress(name: str, turn: int, turns: int) -> None:
                status.update(f"{setting.name}: {'warm-up' if turn < 0 else f'step {turn + 1} of {turns}'}: {name}")

            runs = {contender.name: steps for contender in contenders}
            taken = take_turns(contenders, list(range(WARM_UPS + steps)), runs, failed, progress, WARM_UPS)
            for contender in contenders:
                status.update(f"{setting.name}: memory and error: {contender.name}")
                rows.append(finished(setting, contender, taken, failed))
    finally:
        for contender in contenders:
            contender.close()
    return with_extra_peak(rows)


def finished(setting: Setting, contender: Contender, taken: dict[str, list[Step]], failed: dict[str, str]) -> Row:
    """The row of one contender, or why there is none."""
    row = Row(setting.name, contender.role, contender.name)
    if contender.refused:
        return replace(row, refused=contender.refused)
    if contender.name in failed:
        return replace(row, reason=failed[contender.name])
    row = measured(row, taken[contender.name], taken[ROLES["plain"]], taken.get(ROLES["ghost"], []))
    try:
        return contender.finish(row)
    except NotMeasured as error:
        return replace(row, reason=str(error))


def write(path: Path, options: argparse.Namespace, rows: Sequence[Row], found: dict[str, list[Verdict]]) -> None:
    """Everything that was printed, as JSON. Values that are not finite become null."""

    def finite(row: dict[str, Any]) -> dict[str, Any]:
        return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}

    stated = {
        "options": {key: value for key, value in vars(options).items() if key != "json"},
        "rows": [finite(asdict(row)) for row in rows],
        "targets": {name: [asdict(verdict) for verdict in verdicts] for name, verdicts in found.items()},
        "versions": {name: version(name) for name in VERSIONS},
    }
    path.write_text(json.dumps(stated, indent=2, allow_nan=False), encoding="utf-8")


def main(argv: list[str]) -> None:
    options = parser().parse_args(argv)
    say, console = Console(stderr=True), Console(width=None if Console().is_terminal else 190)
    keep_to(options.threads)
    rows: list[Row] = []
    found: dict[str, list[Verdict]] = {}
    for name in options.settings:
        setting = SETTINGS[name]
        here = play(setting, lineup(setting, options), options.steps, say)
        rows += here
        console.print(comparison(setting, here))
        us = next(row for row in here if row.role == "ours")
        found[name] = judge(setting, us)
        if found[name]:
            console.print(tables.verdicts(found[name], f"{us.name}, {name}"))
        if options.json:  # after every setting: a long run that is stopped has told what it knows
            write(options.json, options, rows, found)
    if any(row.reason for row in rows):
        raise SystemExit(1)
