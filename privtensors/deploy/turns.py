"""Whose turn it is: requests of all sessions wait in one line, first come, first served."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from privtensors.errors import PartyBusy


class Turn:
    """A place in the line."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def ready(self, seconds: float = 0.0) -> bool:
        """Whether it is this one's turn, waiting up to ``seconds`` for it."""
        return self._event.wait(seconds)

    def call(self) -> None:
        """Say that it is."""
        self._event.set()


class Turns:
    """A line with a limited number of places at its head and of places to wait.

    A session has one request at a time, so clients that keep asking take turns.

    Args:
        running: Requests that run at a time.
        waiting: Requests that may wait.
    """

    def __init__(self, running: int, waiting: int) -> None:
        self._running, self._waiting = running, waiting
        self._lock = threading.Lock()
        self._active = 0
        self._line: deque[Turn] = deque()

    @property
    def running(self) -> int:
        """Requests that run now."""
        return self._active

    @property
    def length(self) -> int:
        """Requests that wait now."""
        return len(self._line)

    @contextmanager
    def turn(self) -> Iterator[Turn]:
        """A place in the line, given up at the end, whether its turn came or not.

        Raises:
            PartyBusy: No room to wait.
        """
        place = Turn()
        with self._lock:
            if self._active < self._running and not self._line:
                self._active += 1
                place.call()
            elif len(self._line) >= self._waiting:
                raise PartyBusy(f"{len(self._line)} requests wait already", where="queue", fix="try again later, or raise limits.waiting")
            else:
                self._line.append(place)
        try:
            yield place
        finally:
            with self._lock:
                if place.ready():
                    self._active -= 1
                else:
                    self._line.remove(place)
                while self._line and self._active < self._running:
                    self._active += 1
                    self._line.popleft().call()
