"""MiniLM under options of ``pt.MPC``: tables of the client or the server, checked ranges. Same process, same text, in alternation."""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import privtensors as pt
from privtensors.core.meter import Reading
from privtensors.core.recorder import MemoryRecorder
from privtensors.hf import PrivateModel
from privtensors.testing.assets import minilm_path

VARIANTS = {
    "default": pt.MPC(),
    "tables at the server": pt.MPC(embeddings="server"),
    "checked ranges": pt.MPC(ranges="checked"),
    "checked, diagnose": pt.MPC(ranges="checked", diagnose=True),
}
TEXT = "The parcel came two days late and the box was torn, but the lamp inside works, and the price was fair. " * 12


@dataclass(frozen=True, slots=True)
class Run:
    """One forward: wall and CPU seconds, largest error of the last hidden state, and what it spent."""

    wall_s: float
    cpu_s: float
    error: float
    spent: Reading


def prepared(model: Any) -> dict[str, PrivateModel]:
    """A private model per variant; prints what setting it up took."""
    found = {}
    for name, technique in VARIANTS.items():
        session, start = pt.Session(recorder=MemoryRecorder()), time.perf_counter()
        with session.meter.scope() as scope:
            found[name] = pt.wrap(model, pt.Policy(infer=[technique]), session=session, progress=False)
        print(f"set-up, {name}: {time.perf_counter() - start:.2f} s, {scope.spent.bytes_sent / 1e6:.1f} MB per party")
    return found


def measured(private: PrivateModel, inputs: dict[str, Any], want: torch.Tensor) -> Run:
    """One forward."""
    wall, cpu = time.perf_counter(), time.process_time()
    with private.session.meter.scope() as scope:
        output = private(**inputs).last_hidden_state
    return Run(time.perf_counter() - wall, time.process_time() - cpu, float((output - want).abs().max()), scope.spent)


def line(tokens: int, name: str, runs: list[Run]) -> list[str]:
    """Medians of the seconds; rounds and bytes are those of every run, the error is the largest."""
    spent = runs[-1].spent
    seconds = (
        statistics.median(values) for values in ([r.wall_s for r in runs], [r.cpu_s for r in runs], [r.spent.offline_seconds for r in runs])
    )
    costs = (str(spent.rounds), f"{spent.bytes_sent / 1e6:.2f}", f"{spent.dealer_bytes / 1e6:.1f}", f"{max(r.error for r in runs):.4f}")
    return [str(tokens), name, *(f"{value:.2f}" for value in seconds), *costs]


def main(argv: list[str]) -> None:
    from transformers import AutoModel, AutoTokenizer

    parser = argparse.ArgumentParser(prog="python -m tests.bench variants", description=__doc__)
    parser.add_argument("--tokens", default="32,128", type=lambda text: [int(t) for t in text.split(",")], help="lengths, comma separated")
    parser.add_argument("--runs", type=int, default=5, help="counted runs per length and variant")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    path = minilm_path()
    model, tokenizer = AutoModel.from_pretrained(path, add_pooling_layer=False).eval(), AutoTokenizer.from_pretrained(path)
    private = prepared(model)
    table = Table(title=f"MiniLM, batch 1, {options.threads} thread(s), every party in one process", title_justify="left")
    for name in ("tokens", "variant", "total s", "CPU s", "offline s", "rounds", "sent MB", "dealer MB", "max err"):
        table.add_column(name, justify="left" if name == "variant" else "right")
    for tokens in options.tokens:
        inputs = tokenizer(TEXT, return_tensors="pt", truncation=True, max_length=tokens)
        with torch.no_grad():
            want = model(**inputs).last_hidden_state
        runs: dict[str, list[Run]] = {name: [] for name in VARIANTS}
        for count in range(options.runs + 1):
            for name in VARIANTS:
                run = measured(private[name], inputs, want)
                if count:  # the first one warms up
                    runs[name].append(run)
        for name, done in runs.items():
            table.add_row(*line(tokens, name, done))
    console = Console(width=120)
    console.print(table)
    console.print("SIMULATED: one process holds every party's view. Bytes are what one computing party sends; the dealer's are separate.")
