"""What the ledger costs: one reveal's row flushed to the disk, and verifying the chain, per row."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from privtensors.accounting import Ledger


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench ledger", description=__doc__)
    parser.add_argument("--rows", type=int, default=2000, help="rows to append")
    parser.add_argument("--folder", type=Path, help="where the ledger is put, on the disk in question; default: the temporary folder")
    options = parser.parse_args(argv)
    body = {"backend": "mpc", "shape": [1, 2], "dtype": "float32", "receiver": "client", "label": "logits", "simulated": True}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder, Ledger(Path(folder) / "ledger.sqlite") as ledger:
        seconds, cpu = [], time.process_time()
        for _ in range(options.rows):
            start = time.perf_counter()
            ledger.append("reveal", body)
            seconds.append(time.perf_counter() - start)
        cpu, start = time.process_time() - cpu, time.perf_counter()
        rows = ledger.verify().rows
        verifying = time.perf_counter() - start
    print(f"append: {1e3 * statistics.median(seconds):.2f} ms per row, median ({1e3 * cpu / options.rows:.2f} ms of it CPU)")
    print(f"verify: {1e6 * verifying / rows:.1f} µs per row, {rows} rows")
