"""The power of the one-run audit: how often it refutes a wrong run, and how far below the truth its bounds are.

python -m tests.bench dp-audit --seeds 5
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from privtensors.accounting import SampledGaussian, cost
from privtensors.audit import AuditOptions, Schedule, Setup, check_audit
from privtensors.audit.planted import DividedNoise, Unclipped
from privtensors.audit.subject import tiny_subject
from privtensors.audit.table import quiet


@dataclass(frozen=True)
class PowerRow:
    """One set-up, audited several times with fresh coins.

    Attributes:
        name: What is wrong with it.
        truth: ε that the run really had; infinite without clipping.
        refuted: In how many runs the claim was refuted.
        runs: How many there were.
        lower: Smallest, median and largest bound by Steinke et al.
        schedule: The same by f-DP.
        seconds: Median wall time of a run with its audit.
    """

    name: str
    truth: float
    refuted: int
    runs: int
    lower: tuple[float, float, float]
    schedule: tuple[float, float, float]
    seconds: float


def measure(name: str, setup: Setup, factor: float, schedule: Schedule, sigma: float, options: AuditOptions, seeds: int) -> PowerRow:
    found, seconds = [], []
    for seed in range(seeds):
        start = time.perf_counter()
        with quiet():
            found.append(check_audit(setup, tiny_subject(), schedule, sigma, options=options, seed=seed)[1])
        seconds.append(time.perf_counter() - start)
    truth = float("inf") if factor == 0 else cost(SampledGaussian(sigma * factor, schedule.rate, schedule.steps), schedule.delta).epsilon
    refuted = sum(not one.passed for one in found)
    lower, refined = [one.lower_bound for one in found], [one.schedule_bound or 0.0 for one in found]
    return PowerRow(name, truth, refuted, seeds, spread(lower), spread(refined), statistics.median(seconds))


def spread(values: list[float]) -> tuple[float, float, float]:
    return min(values), statistics.median(values), max(values)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="tests.bench dp-audit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epsilon", type=float, default=2.0)
    parser.add_argument("--canaries", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    schedule = Schedule(options.epsilon)
    sigma = schedule.noise_multiplier()
    audit = AuditOptions(options.canaries)

    def divided(world: int) -> tuple[str, Setup, float]:
        noiser: Callable[[float], DividedNoise] = partial(DividedNoise, world=world)
        return f"noise divided by {world}", replace(Setup(), noiser=noiser), 1 / world

    cases = [("nothing", Setup(), 1.0), ("no clipping", replace(Setup(), bounder=Unclipped), 0.0), *map(divided, (2, 3, 4, 8))]
    print(f"claimed ε {schedule.epsilon:g} at δ {schedule.delta:g}, noise multiplier {sigma:.3f}, {options.canaries} canaries,")
    print(f"{audit.numbers[0]} guesses, confidence {audit.confidence:g}, {options.seeds} runs each; bounds: least, median, largest")
    print(f"{'planted':22} {'true ε':>7} {'refuted':>8}  {'Steinke et al.':>18}  {'f-DP, schedule':>18}  seconds")
    rows = []
    for name, setup, factor in cases:
        row = measure(name, setup, factor, schedule, sigma, audit, options.seeds)
        rows.append(row)
        texts = [" ".join(f"{x:5.2f}" for x in values) for values in (row.lower, row.schedule)]
        print(
            f"{row.name:22} {row.truth:7.2f} {row.refuted:4} / {row.runs}  {texts[0]:>18}  {texts[1]:>18}  {row.seconds:7.1f}", flush=True
        )
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")
