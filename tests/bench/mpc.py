"""MiniLM with real weights on real text, under MPC: us and our peers, in one run, in alternation, on the same inputs.

Each contender has processes of its own and the same cores. Embedded inputs are shared in every run, weights beforehand. Total
is wall time from plain input to plain output, with the making of correlated randomness inside (offline + online = total).
Bytes are what one computing party sends; what a dealer sends is separate. Errors are against the plain model.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from tests.bench.peers import tables
from tests.bench.peers.alternate import Tournament, fill
from tests.bench.peers.contender import NETWORKS, Contender, Request, Summary
from tests.bench.peers.environment import NotMeasured
from tests.bench.peers.lineup import AHEAD, PEERS, Setting, ours, own
from tests.bench.peers.model import PlainModel
from tests.bench.peers.targets import Verdict, judge


def names(known: Sequence[str]) -> Callable[[str], list[str]]:
    """An argparse type: names out of ``known``, comma separated."""

    def parse(text: str) -> list[str]:
        chosen = [name.strip() for name in text.split(",") if name.strip()]
        if unknown := [name for name in chosen if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown {', '.join(unknown)}: choose from {', '.join(known)}")
        return chosen

    return parse


def peer_runs(text: str) -> dict[str, int]:
    """An argparse type: ``spu=2,crypten=5``."""
    try:
        found = {name: int(count) for name, count in (part.split("=") for part in text.split(","))}
    except ValueError as error:
        raise argparse.ArgumentTypeError("write it as spu=2,crypten=5") from error
    if set(found) - set(PEERS) or min(found.values()) < 1:
        raise argparse.ArgumentTypeError(f"counts of 1 or more, for {', '.join(PEERS)}")
    return found


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench mpc", description=__doc__)
    parser.add_argument("--tokens", default="32,128", type=lambda text: [int(t) for t in text.split(",")], help="lengths, comma separated")
    parser.add_argument("--runs", "--repeats", type=int, default=7, help="counted runs per length and network, each on another review")
    parser.add_argument("--vs", type=names(tuple(PEERS)), default=[], help=f"peers: {', '.join(PEERS)}")
    parser.add_argument("--peer-runs", type=peer_runs, default={}, help="counted runs of slow peers; default spu=2, crypten as --runs")
    parser.add_argument("--network", type=names(tuple(NETWORKS)), default=["loopback"], help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--network-runs", type=int, default=2, help="counted runs on a simulated network, at most")
    parser.add_argument("--error-runs", type=int, default=0, help="further inputs, for our errors alone")
    parser.add_argument("--threads", type=int, default=2, help="cores, and threads, of a contender in all")
    parser.add_argument("--device", help="a further row of us computes there, e.g. cuda")
    parser.add_argument("--json", type=Path, metavar="F", help="also write the numbers to this file")
    return parser


def keep_to(cores: int) -> None:
    """This process and all it starts stay on ``cores`` cores (Linux)."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def start(contenders: Sequence[Contender], say: Console) -> tuple[list[Contender], dict[str, str]]:
    """Those that could be set up, and why the others could not."""
    ready, missing = [], {}
    for contender in contenders:
        try:
            contender.set_up(lambda line: say.print(line, style="dim", highlight=False, markup=False))
            ready.append(contender)
        except NotMeasured as error:
            missing[contender.name] = str(error)
            say.print(f"{contender.name}: not measured: {error}", style="red", highlight=False, markup=False)
    return ready, missing


def more_errors(us: Contender, requests: Sequence[Request]) -> dict[str, Any]:
    """Largest and mean error of one contender over ``requests``, or the reason why there is none."""
    what = {"name": us.name, "tokens": requests[0].tokens, "inputs": len(requests)}
    try:
        samples = [us.run(request) for request in requests]
    except NotMeasured as error:
        return {**what, "reason": str(error)}
    return {
        **what,
        "largest": max(s.error_max for s in samples),
        "mean": statistics.mean(s.error_mean for s in samples),
    }


def block_rows(
    rows: Sequence[Summary], contenders: Sequence[Contender], missing: dict[str, str], tokens: int, network: str
) -> list[Summary]:
    """One row per contender asked for, in order, those never started included."""
    found = {row.name: row for row in rows if row.tokens == tokens and row.network == network}
    for contender in contenders:
        if contender.name in missing:
            found[contender.name] = Summary(contender.name, contender.role, tokens, network, reason=missing[contender.name])
    return [found[c.name] for c in contenders if c.name in found]


def play(
    ready: Sequence[Contender], requests: dict[int, list[Request]], options: argparse.Namespace, say: Console
) -> tuple[list[Summary], list[dict[str, Any]]]:
    """All blocks, and the further errors of us."""
    with say.status("") as status:

        def progress(name: str, turn: int, turns: int) -> None:
            status.update(f"{where}: {'warm-up' if turn < 0 else f'round {turn + 1} of {turns}'}: {name}")

        tournament, rows, where = Tournament(ready, progress), [], ""
        for network in options.network:
            for tokens in options.tokens:
                where = f"{tokens} tokens, {network}"
                most = options.runs if NETWORKS[network] is None else options.network_runs
                rows += tournament.play([replace(request, network=network) for request in requests[tokens]], network, most)
            rows += fill(rows, ready, network)
        accuracy = []
        for contender in ready:
            if contender.role == "us" and options.error_runs and contender.name not in tournament.failed:
                for tokens in options.tokens:
                    status.update(f"{tokens} tokens: errors of {contender.name}")
                    accuracy.append(more_errors(contender, requests[tokens][: options.error_runs]))
    return rows, accuracy


def once(contenders: Sequence[Contender]) -> list[str]:
    """What sharing the weights cost, where a contender states it."""
    lines = []
    for contender in contenders:
        facts = getattr(contender, "facts", {})
        if "weights_s" in facts:
            sent = f", {facts['weights_bytes'] / 1e6:.0f} MB sent by a party" if "weights_bytes" in facts else ""
            lines.append(f"{contender.name}: once per model, weights shared and opened under masks in {facts['weights_s']:.2f} s{sent}.")
    return lines


def dealing(rows: Sequence[Summary]) -> list[str]:
    """A simulated network shapes the computing parties' exchanges only: what the dealer's bytes would take on it is computed."""
    lines = []
    for row in rows:
        link = NETWORKS[row.network]
        if link is not None and row.dealer_bytes and not row.reason:
            seconds = link.seconds(int(row.dealer_bytes))
            lines.append(
                f"{row.name}, {row.tokens} tokens, {row.network}: the dealer's {row.dealer_bytes / 1e6:.0f} MB are not on the simulated"
                f" network; sent inline over it they would take {seconds:.2f} s more (computed, not measured)."
            )
    return lines


def write(
    path: Path, options: argparse.Namespace, rows: Sequence[Summary], found: Sequence[Verdict], accuracy: object, facts: object
) -> None:
    """Everything that was printed, as JSON. Values that are not finite become null."""

    def finite(value: object) -> object:
        if isinstance(value, dict):
            return {key: finite(item) for key, item in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    stated = {
        "options": {key: value for key, value in vars(options).items() if key != "json"},
        "rows": [finite(asdict(row)) for row in rows],
        "targets": [asdict(verdict) for verdict in found],
        "errors": accuracy,
        "facts": facts,
        "torch": torch.__version__,
    }
    path.write_text(json.dumps(stated, indent=2, allow_nan=False), encoding="utf-8")


def report(
    console: Console, blocks: Sequence[Sequence[Summary]], accuracy: Sequence[dict[str, Any]], us: Sequence[Contender]
) -> list[Verdict]:
    """Print everything; the verdicts on the last of us that was measured."""
    every = [row for block in blocks for row in block]
    measured = {row.name for row in every if not row.reason}
    subject = next((c.name for c in reversed(us) if c.name in measured), us[0].name)
    found: list[Verdict] = []
    for block in blocks:
        console.print(tables.comparison(block, subject))
        here = next((row for row in block if row.name == subject and not row.reason), None)
        if here is not None and here.network == "loopback":
            ahead = next((row for row in block if row.name == AHEAD and not row.reason), here)
            # Only where nothing is dealt while a request runs is the rest of its time online.
            found += judge(replace(with_errors(here, accuracy), online_s=ahead.online_s), block)
    if found:
        console.print(tables.verdicts(found, subject))
    lines = [
        f"{line['name']}: errors over {line['inputs']} inputs of {line['tokens']} tokens:"
        + (f" not measured: {line['reason']}" if "reason" in line else f" largest {line['largest']:.5f}, mean {line['mean']:.6f}.")
        for line in accuracy
    ]
    for line in [*lines, *once(us), *dealing(every)]:
        console.print(line, highlight=False, markup=False)
    return found


def with_errors(row: Summary, accuracy: Sequence[dict[str, Any]]) -> Summary:
    """``row`` with the errors over the further inputs in place of those of the timed runs, where they were measured."""
    for line in accuracy:
        if (line["name"], line["tokens"]) == (row.name, row.tokens) and "reason" not in line:
            return replace(row, error_max=line["largest"], error_mean=line["mean"])
    return row


def main(argv: list[str]) -> None:
    options = parser().parse_args(argv)
    say, console = Console(stderr=True), Console(width=None if Console().is_terminal else 190)
    keep_to(options.threads)
    torch.set_num_threads(options.threads)
    counts = {"spu": min(2, options.runs), "crypten": options.runs, **options.peer_runs}
    plain = PlainModel()
    setting = Setting(plain, options.threads, options.runs, counts, options.device)
    us = ours(setting)
    contenders = [own(setting, "plain", "plain", "plain"), *us, *(c for name in options.vs for c in PEERS[name](setting))]
    requests = {tokens: plain.requests(tokens, max(options.runs + 1, options.error_runs)) for tokens in options.tokens}
    try:
        ready, missing = start(contenders, say)
        rows, accuracy = play(ready, requests, options, say)
    finally:
        for contender in contenders:
            contender.close()
    shown = [block_rows(rows, contenders, missing, tokens, network) for network in options.network for tokens in options.tokens]
    found = report(console, shown, accuracy, us)
    for line in tables.notes(contenders):
        console.print(line, highlight=False, markup=False)
    every = [row for block in shown for row in block]
    if options.json:
        write(options.json, options, every, found, accuracy, {c.name: getattr(c, "facts", {}) for c in contenders})
    if any(row.reason for row in every) or any("reason" in line for line in accuracy):
        raise SystemExit(1)
