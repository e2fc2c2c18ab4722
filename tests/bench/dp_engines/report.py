"""Tables and targets of ``dp``."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from tests.bench.dp_engines.contender import Row
from tests.bench.dp_engines.settings import Setting
from tests.bench.peers.tables import number
from tests.bench.peers.targets import Verdict, at_most

COLUMNS = (
    *("steps", "CPU s", "wall s", "noise CPU s", "CPU ratio", "wall ratio", "CPU of ghost", "wall of ghost"),
    *("peak MiB", "extra peak", "error", "worst part"),
)


def times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} x"


def small(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.1f} %"


def cells(row: Row) -> list[str]:
    """What stands in :data:`COLUMNS`."""
    return [
        str(row.steps),
        number(row.cpu_s, 3),
        number(row.wall_s, 3),
        number(row.noise_cpu_s, 3),
        times(row.cpu_ratio),
        times(row.wall_ratio),
        times(row.ghost_cpu_ratio),
        times(row.ghost_wall_ratio),
        number(row.peak_mib, 0),
        percent(row.extra_peak),
        small(row.error),
        small(row.worst),
    ]


def comparison(setting: Setting, rows: Sequence[Row]) -> Table:
    """All contenders on one setting."""
    trained = next((f"{row.parameters:,} parameters trained, " for row in rows if row.parameters), "")
    shape = f"batch {setting.examples}, {setting.tokens} tokens"
    table = Table(title=f"{setting.name}: {setting.title}, {trained}{shape}", title_justify="left", caption_justify="left")
    table.add_column("contender")
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for row in rows:
        if row.reason or row.refused:
            table.add_row(f"{row.name} ({'cannot' if row.refused else 'not measured'})", *["-"] * len(COLUMNS))
        else:
            table.add_row(row.name, *cells(row))
    lines = [f"{row.name} cannot train this model: {row.refused}" for row in rows if row.refused]
    lines += [f"{row.name}: not measured: {row.reason}" for row in rows if row.reason]
    lines += [f"{row.name}: {fact}" for row in rows for fact in row.facts]
    table.caption = escape("\n".join(lines)) or None
    return table


def judge(setting: Setting, row: Row) -> list[Verdict]:
    """Our row against the setting's limits. A ratio to ghost clipping is judged only where ghost clipping was measured."""
    limits, verdicts = setting.limits, []
    for what, value, limit, show in (
        ("CPU seconds over the non-private step's", row.cpu_ratio, limits.cpu, times),
        ("wall seconds over the non-private step's", row.wall_ratio, limits.wall, times),
        ("CPU seconds over Opacus ghost's", row.ghost_cpu_ratio, limits.ghost, times),
        ("extra peak memory", row.extra_peak, limits.memory, percent),
        ("error without noise, against the oracle", row.error, limits.error, small),
    ):
        if limit is not None and value is not None:
            met, margin = at_most(value, limit)
            verdicts.append(Verdict(setting.tokens, what, f"<= {show(limit)}", show(value), met, margin))
    return verdicts
