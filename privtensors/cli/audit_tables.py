"""The tables of ``privtensors audit obfuscation``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from privtensors.cli.text import printable

if TYPE_CHECKING:
    from rich.table import Table

    from privtensors.audit.obfuscation import ObfuscationAudit, Row

_STATES: Final = "hidden states"
_HEADS: Final = {
    "row-centred": "centred", "neighbour differences": "EDNN", "sorted row": "sorted", "spectral, refined": "refined",
    "columns matched": "columns", "hidden units matched": "units", _STATES: "states", "norms of hidden states": "norms",
    "seed enumeration": "seeds",
}  # fmt: skip


def server_table(found: ObfuscationAudit) -> Table:
    """Token recovery by attack, scheme and noise with the weights, next to what the scheme costs."""
    from rich.table import Table

    from privtensors.audit.obfuscation import Attacker

    rows = [row for row in found.rows if row.attacker is Attacker.SERVER]
    attacks = list(dict.fromkeys(_short(row.attack) for row in rows))
    table = Table(title="Tokens of the vocabulary recovered by a server that holds the weights and the open model")
    for name in ("scheme", "noise", *attacks, "fidelity", "agrees", "accuracy"):
        table.add_column(_HEADS.get(name, name), justify="left" if name == "scheme" else "right", no_wrap=True)
    for scheme, noise in dict.fromkeys((row.scheme, row.noise) for row in rows):
        own = [row for row in rows if (row.scheme, row.noise) == (scheme, noise)]
        cells = [max((row.tokens for row in own if _short(row.attack) == name), default=None) for name in attacks]
        cost = found.utility.get((scheme, noise))
        costs = (None, None, None) if cost is None else (cost.fidelity, cost.agreement, cost.accuracy)
        table.add_row(printable(scheme), f"{noise:g}", *(_percent(one) for one in cells), *(_percent(one) for one in costs))
    return table


def reader_table(found: ObfuscationAudit) -> Table:
    """What is read without the weights, by volume: share of running text, and of the ids that occurred."""
    from rich.table import Table

    rows = [row for row in found.rows if row.volume is not None]
    volumes = sorted({row.volume for row in rows if row.volume is not None})
    table = Table(title="Running text (ids that occurred) read without the weights, by tokens read or known under one key")
    for name in ("scheme", "attack", *(f"{one:,}" for one in volumes)):
        table.add_column(name, justify="left" if name in ("scheme", "attack") else "right")
    merged: dict[tuple[Any, ...], list[str]] = {}
    for scheme in dict.fromkeys(row.scheme for row in rows):
        own = [row for row in rows if row.scheme == scheme]
        for attack in dict.fromkeys(row.attack for row in own):
            merged.setdefault((attack, *(_cell(own, attack, one) for one in volumes)), []).append(scheme)
    for (attack, *cells), schemes in sorted(merged.items(), key=lambda item: item[1]):
        table.add_row(printable(" / ".join(dict.fromkeys(schemes))), attack, *cells)
    return table


def contest_table(found: ObfuscationAudit) -> Table:
    """The contest: one day's prompt and answer."""
    from rich.table import Table

    table = Table(title="The contest: +10 per right id, -1 per wrong one")
    for name in ("player", "right", "wrong", "points", "of"):
        table.add_column(name, justify="left" if name == "player" else "right")
    for one in found.plays:
        table.add_row(one.player, f"{one.right}", f"{one.wrong}", f"{one.points}", f"{one.highest}")
    if found.plays:
        table.add_row("brute force", "", "", f"10^{found.brute_force_digits:,.0f} mappings", "")
    return table


def _short(attack: str) -> str:
    """Layers share a column; the best counts."""
    return _STATES if attack.startswith(_STATES) else attack


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}" if share >= 0.001 or share == 0 else f"{share:.2%}"


def _cell(rows: list[Row], attack: str, volume: int) -> str:
    own = next((row for row in rows if row.attack == attack and row.volume == volume), None)
    return "" if own is None else f"{own.running:.1%} ({own.tokens:.1%})"
