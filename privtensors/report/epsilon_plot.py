"""ε of each account over its releases or over time, as a picture."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from privtensors.errors import AccountingError, MissingExtra
from privtensors.report.text import printable

if TYPE_CHECKING:
    from privtensors.accounting import Account, Point

_KINDS = (".png", ".svg", ".pdf")


def plot_epsilon(
    histories: Mapping[Account, Sequence[Point]], path: str | os.PathLike[str], *, over: Literal["releases", "time"] = "releases"
) -> Path:
    """Draw ε of every account: solid by PLD (fixed schedule), dotted by the budget's filter, dashed the budget itself.

    Args:
        histories: What ``Accounts.history`` returned, per account.
        path: The picture: .png, .svg or .pdf; a file that is there is replaced.
        over: Number of releases, or time by the writers' clocks.

    Returns:
        The path.

    Raises:
        AccountingError: There is nothing to draw, the path has another ending, or it cannot be written.
        MissingExtra: matplotlib is not installed.
    """
    target = Path(path).expanduser()
    if target.suffix.lower() not in _KINDS:
        raise AccountingError("a plot is .png, .svg or .pdf", where=str(target), fix="Give a path with one of these endings")
    drawn = {account: points for account, points in histories.items() if points}
    if not drawn:
        raise AccountingError("no release and no budget is in this ledger", where="plot", fix="Plot after the first reservation")
    try:
        figures: Any = importlib.import_module("matplotlib.figure")  # no pyplot: it opens displays and keeps figures
    except ImportError as error:
        raise MissingExtra("matplotlib is not installed", where="plot", fix="Run: pip install privtensors[dp]") from error
    figure = figures.Figure(figsize=(8.0, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, (account, points) in enumerate(drawn.items()):
        _draw(axes, account, points, f"C{number % 10}", over)
    axes.set_xlabel("releases" if over == "releases" else "time (UTC)")
    axes.set_ylabel("ε, open reservations in full")
    axes.set_ylim(bottom=0)
    axes.grid(True, alpha=0.3)
    axes.legend(fontsize="small")
    if over == "time":
        axes.tick_params(axis="x", labelrotation=30)
    try:
        figure.savefig(target, dpi=150)
    except OSError as error:
        raise AccountingError(f"it cannot be written ({error.strerror})", where=str(target), fix="Choose another path") from error
    return target


def _draw(axes: Any, account: Account, points: Sequence[Point], colour: str, over: str) -> None:
    at: list[Any] = [point.releases if over == "releases" else datetime.fromisoformat(point.time) for point in points]
    name = printable(str(account)).replace("$", r"\$")  # else read as mathematics
    solid = [point.epsilon if math.isfinite(point.epsilon) else math.nan for point in points]
    axes.step(at, solid, where="post", color=colour, marker="o", markersize=3, label=f"{name}, fixed schedule")
    for values, style, what in (
        ([point.filtered for point in points], ":", "filter"),
        ([None if point.budget is None else point.budget.epsilon for point in points], "--", "budget"),
    ):
        if any(value is not None for value in values):
            known = [value if value is not None and math.isfinite(value) else math.nan for value in values]
            axes.step(at, known, where="post", color=colour, linestyle=style, label=f"{name}, {what}")
