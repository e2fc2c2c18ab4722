"""Plain-text tables of an explanation, at most 100 columns wide."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from textwrap import wrap
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from privtensors.policy.explain import Explanation, Row

WIDTH: Final = 100
_COLUMNS: Final = (("party", 10), ("sees", 27), ("of", 33), ("guarantee, or why", 24))
_SIMULATED: Final = "SIMULATED: one process holds every party's view; the table shows what each party would hold."
_DEPLOYED: Final = "DEPLOYED: each party runs on a host of its own; 'network' is whoever reads the links."


def text(explanation: Explanation) -> str:
    """The whole explanation as plain text."""
    e = explanation
    notes: list[str] = []
    lines = wrap(_SIMULATED if e.deployment == "simulated" else _DEPLOYED, WIDTH)
    for stage in dict.fromkeys(p.stage for p in e.promises):
        chosen = [p for p in e.promises if p.stage == stage]
        named = ", ".join(p.technique + (f" ({', '.join(f'{k}={v}' for k, v in p.parameters)})" if p.parameters else "") for p in chosen)
        lines += ["", *_item(f"{stage}: {named}", "")]
        lines += _table([r for r in e.rows if r.stage == stage], notes)
        if e.joined:
            lines += ["", f"If {' + '.join(e.collude)} collude, together they hold:"]
            lines += _table([r for r in e.joined if r.stage == stage], notes)
        lines += _list("Reveals", (f"{r.asset} to {r.party}: {r.form}, {r.ledger}" for r in e.reveals if r.stage == stage))
        lines += _list("Also", (note for s, note in e.remarks if s == stage))
        lines += _list(
            "Collusions that learn more",
            (f"{' + '.join(c.parties)}: {', '.join(c.assets)} in plain" for c in e.collusions if c.stage == stage),
        )
        lines += _list(
            "Guarantees", (f"{p.technique}: {p.guarantee} {_note('; '.join(p.assumptions), notes)}: {p.meaning}" for p in chosen)
        )
    lines += ["", "Assumptions:", *(line for n, note in enumerate(notes, 1) for line in _item(note, f"  [{n}] "))]
    return "\n".join(lines)


def _table(rows: Sequence[Row], notes: list[str]) -> list[str]:
    """One line per party and form, the assets that share it together."""
    lines = [_line([name for name, _ in _COLUMNS]), _line(["-" * width for _, width in _COLUMNS])]
    for party, group in groupby(rows, key=lambda r: r.party):
        cells: dict[tuple[str, str], list[str]] = {}
        for row in sorted(group, key=lambda r: -_exposure(r)):
            cells.setdefault((row.form, _basis(row, notes)), []).append(row.asset)
        for n, ((form, basis), assets) in enumerate(cells.items()):
            lines += _wrapped([party if n == 0 else "", form, ", ".join(assets), basis])
    return lines


def _exposure(row: Row) -> int:
    return max((f.exposure for f in row.forms), default=0)


def _basis(row: Row, notes: list[str]) -> str:
    if row.guarantee == "-":
        return row.assumption
    return f"{row.guarantee} {_note(row.assumption, notes)}"


def _note(assumption: str, notes: list[str]) -> str:
    """The number of an assumption in the list below the tables."""
    if assumption not in notes:
        notes.append(assumption)
    return f"[{notes.index(assumption) + 1}]"


def _wrapped(cells: Sequence[str]) -> list[str]:
    columns = [wrap(cell, width, break_long_words=True) or [""] for cell, (_, width) in zip(cells, _COLUMNS, strict=True)]
    height = max(len(c) for c in columns)
    return [_line([c[n] if n < len(c) else "" for c in columns]) for n in range(height)]


def _line(cells: Sequence[str]) -> str:
    return "  ".join(cell.ljust(width) for cell, (_, width) in zip(cells, _COLUMNS, strict=True)).rstrip()


def _list(title: str, items: Iterable[str]) -> list[str]:
    found = list(items)
    return ["", f"{title}:", *(line for item in found for line in _item(item, "  - "))] if found else []


def _item(sentence: str, bullet: str) -> list[str]:
    return wrap(sentence, WIDTH, initial_indent=bullet, subsequent_indent=" " * len(bullet)) or [bullet.rstrip()]
