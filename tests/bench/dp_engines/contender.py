"""The contenders of ``dp``, each in a process of its own, and the row of each."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from tests.bench.dp_engines.settings import Arrays, Setting
from tests.bench.peers.environment import NotMeasured, Say
from tests.bench.peers.remote import Launch, Worker

ROLES: Final[Mapping[str, str]] = {
    "plain": "non-private",
    "ours": "us",
    "loop": "us, one pass per example",
    "ghost": "Opacus ghost",
    "hooks": "Opacus hooks",
}
PEERS: Final[Mapping[str, tuple[str, ...]]] = {"opacus": ("ghost", "hooks")}
LIMIT_S: Final = 900.0


@dataclass(frozen=True, slots=True)
class Step:
    """Seconds of one step, all threads together for CPU; the noise is part of it."""

    cpu_s: float
    wall_s: float
    noise_cpu_s: float
    noise_wall_s: float


@dataclass(frozen=True, slots=True)
class Row:
    """One contender on one setting: medians over its counted steps. Ratios are medians of those of steps in the same turn.

    Attributes:
        cpu_ratio: CPU seconds over those of the non-private step; ``wall_ratio`` the same of wall seconds.
        ghost_cpu_ratio: CPU seconds over those of Opacus's ghost clipping; ``ghost_wall_ratio`` the same of wall seconds.
        loaded_mib: Peak resident memory of the process before its first step.
        peak_mib: The same after its last.
        extra_peak: ``peak_mib`` over that of the non-private process, less 1.
        error: Of the clipped sum without noise against the oracle, over all parameters, relative.
        worst: The same of the parameter where it is largest, relative to its own norm.
        facts: What a reader must know.
        refused: Why Opacus cannot train this model, in its words.
        reason: Why it was not measured.
    """

    setting: str
    role: str
    name: str
    steps: int = 0
    parameters: int | None = None
    cpu_s: float | None = None
    wall_s: float | None = None
    noise_cpu_s: float | None = None
    noise_wall_s: float | None = None
    cpu_ratio: float | None = None
    wall_ratio: float | None = None
    ghost_cpu_ratio: float | None = None
    ghost_wall_ratio: float | None = None
    loaded_mib: float | None = None
    peak_mib: float | None = None
    extra_peak: float | None = None
    error: float | None = None
    worst: float | None = None
    facts: tuple[str, ...] = ()
    refused: str = ""
    reason: str = ""


class Contender:
    """One contender on one setting.

    Args:
        role: A key of :data:`ROLES`.
        setting: What it trains.
        batch: On what.
        threads: Of torch.
    """

    def __init__(self, role: str, setting: Setting, batch: Arrays, threads: int) -> None:
        self.role, self.name = role, ROLES[role]
        self.refused = ""
        self._setting = setting
        self._worker: Worker | None = None
        load = {"setting": setting.name, "threads": threads}
        self._launch = Launch([sys.executable, "-m", "tests.bench.dp_engines.worker", role], load=load, arrays=batch)
        self._facts: dict[str, Any] = {}

    def set_up(self, say: Say) -> None:
        """Start the process and load the model.

        Raises:
            NotMeasured: Why not.
        """
        say(f"{self._setting.name}: starting {self.name}")
        self._worker = Worker(self._launch, LIMIT_S)
        self._facts = {"parameters": self._ask("load", self._launch)["parameters"], "loaded_mib": self._worker.peak_mib()}

    def run(self, turn: int) -> Step:
        """One step.

        Raises:
            NotMeasured: It failed, or cannot train the model.
        """
        reply = self._ask("step")
        if "refused" in reply:
            self.refused = str(reply["refused"]).splitlines()[0]
            raise NotMeasured(self.refused)
        return Step(**reply)

    def finish(self, row: Row) -> Row:
        """``row`` with the memory of the steps, and then with the error against the oracle.

        Raises:
            NotMeasured: The oracle's part failed.
        """
        assert self._worker is not None
        row = replace(row, peak_mib=self._worker.peak_mib(), **self._facts)
        if self.role != "plain":
            found = self._ask("exactness")
            row = replace(row, error=found["relative"], worst=found["worst"])
        return replace(row, facts=tuple(self._ask("facts")["facts"]))

    def close(self) -> None:
        """End the process. Safe to call at any time."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _ask(self, do: str, launch: Launch | None = None) -> dict[str, Any]:
        assert self._worker is not None
        self._worker.tell({"do": do, **(launch.load if launch else {})}, dict(launch.arrays) if launch else None)
        reply: dict[str, Any] = self._worker.hear()[0]
        return reply


def paired(mine: Sequence[Step], others: Sequence[Step], figure: Callable[[Step], float]) -> float | None:
    """The median of the ratios of steps in the same turn; None unless both took the same turns."""
    if not mine or len(mine) != len(others):
        return None
    return statistics.median(figure(a) / figure(b) for a, b in zip(mine, others, strict=True))


def measured(row: Row, steps: Sequence[Step], plain: Sequence[Step], ghost: Sequence[Step]) -> Row:
    """``row`` with the medians of its steps and their ratios to the others'."""
    private = row.role != "plain"
    return replace(
        row,
        steps=len(steps),
        cpu_s=statistics.median(s.cpu_s for s in steps),
        wall_s=statistics.median(s.wall_s for s in steps),
        noise_cpu_s=statistics.median(s.noise_cpu_s for s in steps) if private else None,
        noise_wall_s=statistics.median(s.noise_wall_s for s in steps) if private else None,
        cpu_ratio=paired(steps, plain, lambda s: s.cpu_s),
        wall_ratio=paired(steps, plain, lambda s: s.wall_s),
        ghost_cpu_ratio=paired(steps, ghost, lambda s: s.cpu_s),
        ghost_wall_ratio=paired(steps, ghost, lambda s: s.wall_s),
    )


def with_extra_peak(rows: Sequence[Row]) -> list[Row]:
    """Every row's peak memory beside the non-private process's."""
    base = next((row.peak_mib for row in rows if row.role == "plain"), None)
    return [replace(row, extra_peak=row.peak_mib / base - 1) if base and row.peak_mib else row for row in rows]
