"""What the network costs on this machine: two processes over TLS on loopback, ping-pong, full duplex and the channel's packing."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from privtensors.transport.base import Message, packed_size
from privtensors.transport.frames import Kind
from privtensors.transport.tcp import Listener, Peer, TcpChannel, connect
from privtensors.transport.tls import Identity, make_test_certificates

Jobs = list[tuple[str, int, int, int]]  # kind of job, words or bytes, bits, repeats


def job(peer: Peer, party: int, kind: str, size: int, bits: int, repeats: int) -> list[float]:
    """Seconds of each repeat, after one to warm up."""
    channel = TcpChannel(peer, party)
    payload = [bytes(size)]
    words = torch.randint(-(1 << 62), 1 << 62, (1, size)) if kind == "channel" else torch.empty(1, 0, dtype=torch.int64)
    messages = [Message(words, bits)]

    def one_way() -> None:
        if party == 0:
            peer.send(Kind.CORRELATION, payload)
            peer.recv(Kind.REPLY)
        else:
            peer.recv(Kind.CORRELATION)
            peer.send(Kind.REPLY)

    calls: dict[str, Callable[[], object]] = {
        "duplex": lambda: peer.exchange(Kind.EXCHANGE, payload),
        "one way": one_way,
        "channel": lambda: channel.exchange(messages),
    }
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        calls[kind]()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def client(folder: str, address: tuple[str, int], jobs: Jobs, threads: int) -> None:
    torch.set_num_threads(threads)
    with connect(address, Identity.load(folder, "client"), "server") as peer:
        for kind, size, bits, repeats in jobs:
            job(peer, 1, kind, size, bits, repeats)


def server(folder: str, pipe: Connection, jobs: Jobs, threads: int) -> None:
    torch.set_num_threads(threads)
    identity = Identity.load(folder, "server")
    with Listener(identity, ["client"]) as listener:
        pipe.send(listener.address)
        with listener.accept() as peer:
            for kind, size, bits, repeats in jobs:
                cpu, before = time.process_time(), peer.traffic.wire_sent
                seconds = job(peer, 0, kind, size, bits, repeats)
                pipe.send((seconds, (time.process_time() - cpu) / (repeats + 1), (peer.traffic.wire_sent - before) / (repeats + 1)))


def measure(jobs: Jobs, threads: int) -> list[dict[str, Any]]:
    """One row per job, seen by one of two fresh processes."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        make_test_certificates(folder, ["client", "server"])
        first = context.Process(target=server, args=(folder, theirs, jobs, threads))
        first.start()
        second = context.Process(target=client, args=(folder, ours.recv(), jobs, threads))
        second.start()
        rows = []
        for kind, size, bits, _ in jobs:
            if not ours.poll(120):
                raise SystemExit(f"no result of {kind} {size} within 120 s")
            seconds, cpu, wire = ours.recv()
            median = statistics.median(seconds)
            payload = packed_size(size, bits) if kind == "channel" else size
            rows.append(
                {
                    "job": kind if kind != "channel" else f"channel, {bits} bits",
                    "payload_bytes": payload,
                    "median_us": median * 1e6,
                    "p95_us": sorted(seconds)[int(0.95 * (len(seconds) - 1))] * 1e6,
                    "mb_per_s_each_way": payload / median / 1e6,
                    "cpu_us": cpu * 1e6,
                    "wire_overhead_bytes": wire - payload,
                }
            )
        for process in (second, first):
            process.join(30)
    return rows


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench transport", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000, help="repeats of the small exchanges; the large ones take a fiftieth")
    parser.add_argument("--threads", type=int, default=1, help="torch threads per party")
    parser.add_argument("--json", type=Path, metavar="F", help="also write the numbers to this file")
    options = parser.parse_args(argv)
    many, few = options.rounds, max(3, options.rounds // 50)
    jobs: Jobs = [
        *(("duplex", size, 0, many) for size in (8, 1_000, 64_000)),
        *(("duplex", size, 0, few) for size in (1_000_000, 10_000_000, 100_000_000)),
        ("one way", 100_000_000, 0, few),
        *(("channel", count, bits, few) for count in (1_000, 1_000_000) for bits in (64, 52, 20, 1)),
    ]
    rows = measure(jobs, options.threads)
    table = Table(title=f"Two processes, TLS 1.3 on loopback, {options.threads} torch thread(s) each", title_justify="left")
    for name in ("exchange", "payload bytes", "median µs", "95 % µs", "MB/s each way", "CPU µs per party", "wire overhead bytes"):
        table.add_column(name, justify="left" if name == "exchange" else "right")
    for row in rows:
        first, size, *rest = row.values()
        table.add_row(first, f"{size:,}", *(f"{value:,.0f}" for value in rest))
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps({"transport": rows}, indent=2), encoding="utf-8")
