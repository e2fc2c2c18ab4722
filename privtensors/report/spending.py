"""Tables of a ledger: its rows, and what privacy each account has spent."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from privtensors.accounting.events import Composed, Event, Gaussian, Laplace, SampledGaussian, event_from_json
from privtensors.errors import InvalidInput
from privtensors.report.text import printable

if TYPE_CHECKING:
    from rich.table import Table

    from privtensors.accounting import Account, Entry, Point, Statement

_BARS = "▁▂▃▄▅▆▇█"


def ledger_rows(entries: Sequence[Entry], total: int) -> Table:
    """One line per row of a ledger.

    Args:
        entries: The rows, in the order of the chain.
        total: How many rows the ledger has.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"newest {len(entries)} of {count(total)}"), title_justify="left")
    for name in ("index", "time", "kind", "by", "what", "to or of", "simulated", "hash"):
        table.add_column(name, overflow="fold", justify="right" if name == "index" else "left")
    for entry in entries:
        cells = (str(entry.index), entry.time[:19] + "Z", entry.kind, *_described(entry), entry.hash[:12])
        table.add_row(*(Text(printable(cell)) for cell in cells))  # Text, not str: what a label holds must not be read as markup
    return table


def spending(statements: Sequence[Statement], histories: Mapping[Account, Sequence[Point]] | None = None) -> Table:
    """One line per account; a cost is rounded up and what is left is rounded down, so neither looks better than it is.

    Args:
        statements: The accounts.
        histories: Their ε over their releases, drawn as bars up to the budget or the largest; None without.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text("privacy spent, open reservations in full"), title_justify="left")
    names = ["data set", "unit", "relation", "releases", "open", "delta", "budget", "filter", "left", "PLD", "RDP"]
    if histories is not None:
        names.append("ε over releases")
    for name in names:
        left = name in ("data set", "unit", "relation", "ε over releases")
        table.add_column(name, overflow="fold", justify="left" if left else "right")
    for one in statements:
        cells = [one.account.dataset, one.account.unit, one.account.relation.value.replace("_", "-")]
        cells += [str(one.releases), str(len(one.open)), f"{one.cost.delta:g}"]
        cells += [rounded(None if one.budget is None else one.budget.epsilon), rounded(one.filtered)]
        cells += ["closed" if one.closed else rounded(one.left, down=True), rounded(one.cost.pld), rounded(one.cost.rdp)]
        if histories is not None:
            cells.append(bars(histories.get(one.account, ())))
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def remarks(statements: Sequence[Statement]) -> tuple[str, ...]:
    """What a reader of :func:`spending` must know beside the figures, one line each."""
    lines = []
    for one in statements:
        who = printable(str(one.account))
        if one.open:
            rows = ", ".join(map(str, one.open[:8])) + (", …" if len(one.open) > 8 else "")
            lines.append(f"{who}: not settled: row {rows}")
        if one.by_hand:
            lines.append(f"{who}: settled by hand, on somebody's word: {one.by_hand} of {one.releases}")
        if one.aliases:
            lines.append(f"{who}: its records were also used as {printable(', '.join(map(repr, one.aliases)))}, counted apart")
    return tuple(lines)


def bars(points: Sequence[Point]) -> str:
    """ε after each point, as bars up to the budget or the largest."""
    finite = [point.epsilon for point in points if math.isfinite(point.epsilon)]
    top = max([*finite, *(point.budget.epsilon for point in points if point.budget)], default=0.0)
    if top <= 0:
        return ""
    levels = len(_BARS) - 1
    return "".join(_BARS[min(levels, math.ceil(min(point.epsilon / top, 1.0) * levels))] for point in points)


def rounded(value: float | None, *, down: bool = False) -> str:
    """A figure with three decimals: a cost is rounded up, what is left (``down``) is rounded down; empty for None."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return "inf"
    thousandths = math.floor(value * 1000) if down else math.ceil(value * 1000 - 1e-9)
    return f"{thousandths / 1000:.3f}"


def count(rows: int) -> str:
    """``"1 row"``, ``"3 rows"``."""
    return "1 row" if rows == 1 else f"{rows} rows"


def event_text(event: Event) -> str:
    """An event in a few words: ``"500 steps, sampled Gaussian, noise 1, rate 0.01"``."""
    if isinstance(event, Composed):
        inner = " + ".join(map(event_text, event.events))
        return f"{event.count} times ({inner})" if event.count > 1 else inner
    if isinstance(event, SampledGaussian):
        return f"{event.steps} steps, sampled Gaussian, noise {event.noise_multiplier:g}, rate {event.sampling_rate:.4g}"
    if isinstance(event, (Gaussian, Laplace)):
        return f"{type(event).__name__}, noise {event.noise_multiplier:g}"
    return f"zCDP, rho {event.rho:g}"


def _described(entry: Entry) -> tuple[str, str, str, str]:
    """By whom, what, to whom or of which data, and whether simulated, of a row of any kind."""
    body = entry.body
    release = body.get("release")
    if entry.kind.startswith("budget.") and isinstance(release, dict):
        return str(release.get("technique") or ""), f"{_event(release.get('event'))} ({body.get('rule')})", _account(release), ""
    if entry.kind == "budget.set":
        return "", f"ε {body.get('epsilon')} at δ {body.get('delta')}", _account(body), ""
    if entry.kind == "budget.settle":
        happened = "nothing" if body.get("spent") is None else _event(body["spent"])
        by_hand = f", by hand: {body['reason']}" if "reason" in body else ""
        return "", f"row {body.get('reservation')}: {happened}{by_hand}", "", ""
    what = " ".join(_cell(body[name]) for name in ("label", "dtype", "shape") if name in body)
    return _cell(body.get("backend")), what, _cell(body.get("receiver")), _cell(body.get("simulated"))


def _account(body: Mapping[str, object]) -> str:
    account = body.get("account")
    return f"{account.get('dataset')} per {account.get('unit')}" if isinstance(account, dict) else ""


def _event(value: object) -> str:
    try:
        return event_text(event_from_json(value))
    except InvalidInput:  # `verify` says what is wrong with it
        return "?"


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value)
