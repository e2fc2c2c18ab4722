"""The tables that the benchmark prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from tests.bench.peers.contender import NETWORKS, Contender, Summary
from tests.bench.peers.targets import Verdict, faster

COLUMNS = (
    *("runs", "total s", "CPU s", "offline s", "online s", "us is"),
    *("rounds", "sent MB", "dealer MB", "max err", "mean err", "peak MiB"),
)


def number(value: float | None, digits: int, scale: float = 1.0) -> str:
    """``-`` where nothing is known."""
    return "-" if value is None else f"{value / scale:,.{digits}f}"


def error(value: float | None) -> str:
    """Plain digits while it is small, powers of ten when the answer is wrong."""
    if value is None:
        return "-"
    return f"{value:.2g}" if value >= 10 else f"{value:.5f}"


def cells(row: Summary, us: Summary | None) -> list[str]:
    """What stands in :data:`COLUMNS` for one contender."""
    ratio = None if us is None or row.role in ("us", "plain") else faster(us, row)
    return [
        str(row.runs),
        number(row.total_s, 3),
        number(row.cpu_s, 3),
        number(row.offline_s, 3),
        number(row.online_s, 3),
        "-" if ratio is None else f"{ratio:.1f} x faster" if ratio >= 1 else f"{1 / ratio:.1f} x slower",
        number(row.rounds, 0),
        number(row.bytes_sent, 1, 1e6),
        number(row.dealer_bytes, 0, 1e6),
        error(row.error_max),
        error(row.error_mean),
        number(row.peak_mib, 0),
    ]


def comparison(rows: Sequence[Summary], subject: str) -> Table:
    """One length on one network. ``subject`` names the row that the others are compared with."""
    first = rows[0]
    link = NETWORKS[first.network]
    network = "no simulated network"
    if link is not None:
        network = f"simulated {first.network.upper()}, {link.bits_per_s / 1e6:g} Mbit/s, {1e3 * link.rtt_s:g} ms"
    table = Table(title=f"{first.tokens} tokens, {network}", title_justify="left", caption_justify="left")
    table.add_column("contender")
    for name in COLUMNS:
        table.add_column(name, justify="right")
    table.caption = escape("\n".join(f"{row.name}: not measured: {row.reason}" for row in rows if row.reason)) or None
    us = next((row for row in rows if row.name == subject and not row.reason), None)
    for row in rows:
        if row.reason:
            table.add_row(f"{row.name} (not measured)", *["-"] * len(COLUMNS))
        else:
            table.add_row(f"{row.name} (computed, not measured)" if row.computed else row.name, *cells(row, us))
    return table


def verdicts(found: Sequence[Verdict], subject: str) -> Table:
    """Targets beside figures."""
    table = Table(title=f"Targets, for {subject}", title_justify="left")
    for name in ("tokens", "figure", "wanted", "got", ""):
        table.add_column(name, justify="right" if name in ("tokens", "wanted", "got") else "left")
    for verdict in found:
        style = "green" if verdict.met else "red"
        table.add_row(str(verdict.tokens), verdict.what, verdict.wanted, verdict.got, f"[{style}]{escape(verdict.margin)}[/]")
    return table


def notes(contenders: Sequence[Contender]) -> list[str]:
    """What a reader must know about each contender."""
    return [f"{c.name}: {c.remark}." for c in contenders if c.remark]
