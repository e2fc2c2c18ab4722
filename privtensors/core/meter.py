"""Counts what was spent: routed operations, rounds, bytes, offline and online seconds, largest declared error."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Reading:
    """A meter's state at one moment, or the difference of two.

    Attributes:
        rounds: Sequential online exchanges.
        bytes_sent: Online bytes sent by one computing party (both send the same).
        dealer_bytes: Offline bytes from the dealer to the computing parties.
        offline_seconds: Wall seconds spent making and expanding correlated randomness.
        busy_seconds: Wall seconds inside kernels, offline included.
        ops: Calls per routed operation.
        error: Largest declared error of any kernel run.
    """

    rounds: int = 0
    bytes_sent: int = 0
    dealer_bytes: int = 0
    offline_seconds: float = 0.0
    busy_seconds: float = 0.0
    ops: Counter[str] = field(default_factory=Counter)
    error: float = 0.0

    def __sub__(self, earlier: Reading) -> Reading:
        """What was spent since ``earlier``; ``error`` stays the largest seen."""
        return Reading(
            self.rounds - earlier.rounds,
            self.bytes_sent - earlier.bytes_sent,
            self.dealer_bytes - earlier.dealer_bytes,
            self.offline_seconds - earlier.offline_seconds,
            self.busy_seconds - earlier.busy_seconds,
            self.ops - earlier.ops,
            self.error,
        )


class Meter:
    """Mutable counters of one session. Read with :meth:`reading`; measure a stretch of code with :meth:`scope`."""

    def __init__(self) -> None:
        self.rounds = 0
        self.bytes_sent = 0
        self.dealer_bytes = 0
        self.offline_seconds = 0.0
        self.busy_seconds = 0.0
        self.error = 0.0
        self.ops: Counter[str] = Counter()
        self._offline_depth = 0

    def reading(self) -> Reading:
        """A frozen copy of the counters."""
        return Reading(
            self.rounds,
            self.bytes_sent,
            self.dealer_bytes,
            self.offline_seconds,
            self.busy_seconds,
            Counter(self.ops),
            self.error,
        )

    @contextmanager
    def scope(self) -> Iterator[Scope]:
        """Measure what the enclosed code spends; read ``scope.spent`` afterwards."""
        scope = Scope(self)
        try:
            yield scope
        finally:
            scope.close()

    @contextmanager
    def offline(self) -> Iterator[None]:
        """Count the enclosed wall time as offline work; nested uses count once."""
        if self._offline_depth:
            yield
            return
        self._offline_depth = 1
        start = time.perf_counter()
        try:
            yield
        finally:
            self._offline_depth = 0
            self.offline_seconds += time.perf_counter() - start


class Scope:
    """A stretch of code being measured by :meth:`Meter.scope`."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._start = meter.reading()
        self._spent: Reading | None = None

    @property
    def spent(self) -> Reading:
        """What was spent since the scope was opened, up to now or to its end."""
        return self._spent if self._spent is not None else self._meter.reading() - self._start

    def close(self) -> None:
        """Freeze :attr:`spent`."""
        self._spent = self._meter.reading() - self._start
