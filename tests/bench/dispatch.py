"""What routing costs: a routed op over the bare op, on the reference backend; and what importing privtensors costs."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from privtensors.core import Session, protect
from privtensors.core.recorder import MemoryRecorder

OPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda x, y: x + y,
    "mul": lambda x, y: x * y,
    "mm": lambda x, y: x @ y,
    "view": lambda x, _y: x.view(-1),
}


def microseconds(f: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, calls: int) -> float:
    """Mean microseconds per call over ``calls`` calls."""
    start = time.perf_counter()
    for _ in range(calls):
        f(x, y)
    return (time.perf_counter() - start) / calls * 1e6


def routing(repeats: int, calls: int, side: int) -> list[dict[str, Any]]:
    """Per op the median microseconds, bare and routed, measured alternately in one run."""
    rows = []
    x, y = torch.randn(side, side), torch.randn(side, side)
    with Session(recorder=MemoryRecorder()), torch.no_grad():
        sx, sy = protect(x, "clear"), protect(y, "clear")
        for name, f in OPS.items():
            bare, routed = [], []
            microseconds(f, x, y, calls), microseconds(f, sx, sy, calls)  # warm-up
            for _ in range(repeats):
                bare.append(microseconds(f, x, y, calls))
                routed.append(microseconds(f, sx, sy, calls))
            rows.append(
                {
                    "op": name,
                    "bare_us": statistics.median(bare),
                    "routed_us": statistics.median(routed),
                    "overhead_us": statistics.median(r - b for r, b in zip(routed, bare, strict=True)),
                }
            )
    return rows


def import_seconds(repeats: int) -> dict[str, float]:
    """Median seconds that importing privtensors and its public names adds to a process that has imported torch."""
    program = (
        "import time, torch\nstart = time.perf_counter()\nimport privtensors\nfirst = time.perf_counter()\n"
        "privtensors.SafeTensor, privtensors.protect, privtensors.Session\nprint(first - start, time.perf_counter() - start)"
    )
    times = []
    for _ in range(repeats):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        times.append([float(t) for t in done.stdout.split()])
    return {"package": statistics.median(t[0] for t in times), "with_core": statistics.median(t[1] for t in times)}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench dispatch", description=__doc__)
    parser.add_argument("--repeats", type=int, default=9, help="alternating repeats, of which the median is taken")
    parser.add_argument("--calls", type=int, default=1000, help="calls per repeat")
    parser.add_argument("--side", type=int, default=8, help="side of the square operands")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--json", type=Path, metavar="F", help="also write the numbers to this file")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    rows, imports = routing(options.repeats, options.calls, options.side), import_seconds(5)
    table = Table(title=f"Routed op over bare op, clear backend, {options.side}x{options.side} float32, {options.threads} thread(s)")
    for column in ("op", "bare µs", "routed µs", "overhead µs"):
        table.add_column(column, justify="left" if column == "op" else "right")
    for row in rows:
        table.add_row(row["op"], *(f"{row[key]:.1f}" for key in ("bare_us", "routed_us", "overhead_us")))
    console = Console()
    console.print(table)
    console.print(
        f"import privtensors, beyond torch: {imports['package']:.3f} s; with its core: {imports['with_core']:.3f} s (median of 5)"
    )
    if options.json:
        options.json.write_text(json.dumps({"routing": rows, "import_seconds": imports, "torch": torch.__version__}, indent=2))
