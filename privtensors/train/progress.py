"""The progress bar of a private run: steps, ε so far, time. It shows nothing that was computed from training data."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from privtensors.train.calibration import Plan

_REFRESHES = 10  # ε by PLD takes tens of milliseconds


@contextmanager
def progress_bar(plan: Plan, steps: int, wanted: bool | None) -> Iterator[Callable[[int], None]]:
    """Yields what to call with the number of steps done.

    Args:
        plan: The run's schedule.
        steps: How many steps will run.
        wanted: Show it; None only where stderr is a terminal.
    """
    if not (sys.stderr.isatty() if wanted is None else wanted):
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("training privately"), BarColumn(), MofNCompleteColumn(), TextColumn("ε {task.fields[spent]}"),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    every = max(1, steps // _REFRESHES)
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=steps, spent="0")

        def advance(done: int) -> None:
            bar.update(task, completed=done)
            if done % every == 0 or done == steps:
                bar.update(task, spent=f"{plan.epsilon(done):.2f}")

        yield advance
