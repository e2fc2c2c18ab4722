"""Progress of a command on standard error: a bar while a stage runs, one line when it is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stages:
    """Shows stages one after the other. Without a terminal there are no bars, only the finished lines."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)

    @contextmanager
    def stage(self, title: str, *, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Run one stage; yields a function that is told how many of ``total`` were done since it was called last."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.text import Text

        counted = () if total is None else (BarColumn(bar_width=24), MofNCompleteColumn())
        columns = (SpinnerColumn("line"), TextColumn("{task.description}", markup=False), *counted, TimeElapsedColumn())
        start = time.perf_counter()
        with Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal) as progress:
            task = progress.add_task(title, total=total)
            yield lambda number: progress.advance(task, number)
        self._console.print(Text(f"{time.perf_counter() - start:7.1f} s  {title}"), soft_wrap=True)
