"""MiniLM with real weights on real text: private (two parties and the dealer in this process) against plain, alternating.

Total is offline + online with dealing inline. Bytes are what one computing party sends; dealer bytes are separate. The
one-time opening of masked weights is measured on its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoModel, AutoTokenizer

import privtensors as pt
from privtensors.core.recorder import MemoryRecorder
from privtensors.testing.assets import minilm_path, movie_reviews, split_reviews


@dataclass(frozen=True, slots=True)
class Row:
    """Medians of one sequence length."""

    tokens: int
    plain_s: float
    plain_cpu_s: float
    total_s: float
    total_cpu_s: float
    offline_s: float
    online_s: float
    rounds: int
    sent_mb_per_party: float
    dealer_mb: float
    error_max: float
    error_mean: float


def timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """Result, wall seconds and CPU seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def measure(model: Any, private: pt.PrivateModel, session: pt.Session, inputs: list[dict[str, torch.Tensor]], tokens: int) -> Row:
    """Alternate plain and private forwards over ``inputs``; the first input is a warm-up."""
    runs = []
    for i, batch in enumerate(track(inputs, description=f"{tokens} tokens", transient=True)):
        plain, plain_wall, plain_cpu = timed(lambda batch=batch: model(**batch).last_hidden_state)
        with session.meter.scope() as scope:
            hidden, wall, cpu = timed(lambda batch=batch: private(**batch).last_hidden_state)
        error = (hidden - plain).abs()
        spent = scope.spent
        if i:
            runs.append(
                (
                    plain_wall,
                    plain_cpu,
                    wall,
                    cpu,
                    spent.offline_seconds,
                    wall - spent.offline_seconds,
                    error.max().item(),
                    error.mean().item(),
                )
            )
    columns = list(zip(*runs, strict=True))
    return Row(
        tokens,
        *(statistics.median(c) for c in columns[:6]),
        spent.rounds,
        spent.bytes_sent / 1e6,
        spent.dealer_bytes / 1e6,
        max(columns[6]),
        statistics.mean(columns[7]),
    )


def real_inputs(tokenizer: Any, tokens: int, count: int) -> list[dict[str, torch.Tensor]]:
    """Held-out reviews of at least ``tokens`` tokens, cut to exactly that many."""
    found: list[dict[str, torch.Tensor]] = []
    for review in split_reviews(movie_reviews()).test:
        batch = tokenizer(review.text, return_tensors="pt", truncation=True, max_length=tokens)
        if batch["input_ids"].shape[1] == tokens:
            found.append(dict(batch))
        if len(found) == count:
            return found
    raise SystemExit(f"fewer than {count} held-out reviews have {tokens} tokens")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench mpc", description=__doc__)
    parser.add_argument("--tokens", default="32,128", help="sequence lengths, comma separated")
    parser.add_argument("--repeats", type=int, default=7, help="counted forwards per length, each on another review")
    parser.add_argument("--threads", type=int, default=2, help="torch threads, for plain and private alike")
    parser.add_argument("--json", type=Path, metavar="F", help="also write the numbers to this file")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    path = minilm_path()
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path).eval()
    with pt.Session(recorder=MemoryRecorder()) as session:
        private, setup, setup_cpu = timed(lambda: pt.wrap(model, pt.Policy(infer=[pt.MPC()])))
        weights_mb = session.meter.reading().bytes_sent / 1e6
        rows = [
            measure(model, private, session, real_inputs(tokenizer, tokens, options.repeats + 1), tokens)
            for tokens in (int(t) for t in options.tokens.split(","))
        ]
    table = Table(title=f"MiniLM-L6-H384, batch 1, {options.threads} thread(s), median of {options.repeats} reviews", title_justify="left")
    for name in (
        "tokens",
        "plain s",
        "total s",
        "(CPU)",
        "offline s",
        "online s",
        "x plain",
        "rounds",
        "sent MB",
        "dealer MB",
        "max err",
        "mean err",
    ):
        table.add_column(name, justify="right")
    for r in rows:
        table.add_row(
            str(r.tokens),
            f"{r.plain_s:.3f}",
            f"{r.total_s:.2f}",
            f"{r.total_cpu_s:.2f}",
            f"{r.offline_s:.2f}",
            f"{r.online_s:.2f}",
            f"{r.total_s / r.plain_s:.0f}",
            str(r.rounds),
            f"{r.sent_mb_per_party:.1f}",
            f"{r.dealer_mb:.0f}",
            f"{r.error_max:.4f}",
            f"{r.error_mean:.5f}",
        )
    console = Console(width=130)
    console.print(table)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    console.print(
        f"once per model: masked weights opened in {setup:.2f} s ({setup_cpu:.2f} s CPU), {weights_mb:.0f} MB sent per party; "
        f"peak memory of this process (both parties, the dealer and the plain model) {peak:.0f} MiB; torch {torch.__version__}"
    )
    console.print("SIMULATED: one process holds every party's view. Largest error over all counted runs; mean of the means.")
    if options.json:
        options.json.write_text(
            json.dumps(
                {
                    "rows": [asdict(r) for r in rows],
                    "weights_seconds": setup,
                    "weights_mb_per_party": weights_mb,
                    "peak_mib": peak,
                    "threads": options.threads,
                    "torch": torch.__version__,
                },
                indent=2,
            )
        )
