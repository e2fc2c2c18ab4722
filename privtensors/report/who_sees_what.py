"""The who-sees-what table of an explanation, at whatever width the reader has."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from privtensors.policy import Explanation

if TYPE_CHECKING:
    from rich.console import Group


def who_sees_what(explanation: Explanation) -> Group:
    """One line per party and form, then who learns more together, then the assumptions.

    Args:
        explanation: What ``Policy.explain()`` or ``PrivateModel.explain()`` returned.

    Returns:
        A rich renderable; the assumptions are numbered as in ``str(explanation)``.
    """
    from rich import box
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Who sees what", title_justify="left", title_style="bold", box=box.HORIZONTALS)
    table.add_column("party", no_wrap=True)
    table.add_column("sees", ratio=3, min_width=12)
    table.add_column("of", ratio=5, min_width=18)
    table.add_column("guarantee, or why", ratio=4, min_width=17)
    notes: list[str] = []
    for (_, party), group in groupby(explanation.rows, key=lambda row: (row.stage, row.party)):
        cells: dict[tuple[str, str], list[str]] = {}
        for row in sorted(group, key=lambda r: -max((f.exposure for f in r.forms), default=0)):
            if row.guarantee == "-":
                basis = row.assumption
            else:
                if row.assumption not in notes:
                    notes.append(row.assumption)
                basis = f"{row.guarantee} [{notes.index(row.assumption) + 1}]"
            cells.setdefault((row.form, basis), []).append(row.asset)
        for number, ((form, basis), assets) in enumerate(cells.items()):
            table.add_row(*map(Text, (party if number == 0 else "", form, ", ".join(assets), basis)))
        table.add_section()
    lines = [f"If {' and '.join(c.parties)} collude, they see {', '.join(c.assets)} in plain." for c in explanation.collusions]
    notes = [f"[{number}] {note}." for number, note in enumerate(notes, 1)]
    return Group(table, *(Padding(Text(line), (0, 1)) for line in (*lines, "", *notes)))
