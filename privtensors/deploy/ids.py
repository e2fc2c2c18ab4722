"""Where correlated randomness comes from, and which request ids were used: none is dealt twice under one id."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol

from privtensors.backends.mpc.program import DealerState, Program
from privtensors.deploy.journal import Journal, Mark
from privtensors.errors import IdUsed

SEED_SIZE: Final = 32


class Ids(Protocol):
    """Remembers used ids. One that survives restarts makes the promise hold across crashes."""

    def use(self, request: bytes) -> None:
        """Mark the 16-byte id as used, durably where the implementation is durable, before anything is sent under it.

        Raises:
            IdUsed: It was used before.
            CorrelationError: It cannot be marked.
        """


class MemoryIds:
    """Remembers for as long as the process runs. Seeds are drawn fresh per request, so a restart cannot repeat randomness."""

    def __init__(self) -> None:
        self._used: set[bytes] = set()
        self._lock = threading.Lock()

    def use(self, request: bytes) -> None:
        """See :class:`Ids`."""
        with self._lock:
            if request in self._used:
                raise IdUsed("this request id was used before", where="dealer", fix="send the request under a new id")
            self._used.add(request)


class DurableIds:
    """Remembers in a journal on disk, across restarts and crashes.

    Args:
        journal: Open; its owner closes it.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def use(self, request: bytes) -> None:
        """See :class:`Ids`."""
        self._journal.use(Mark.REQUEST, request)


@dataclass(frozen=True, slots=True, eq=False)
class Dealt:
    """Correlated randomness for one run of a program.

    Attributes:
        seeds: The client's and the server's 32-byte seeds.
        corrections: The server's corrections, in order.
        stored: Whether it was dealt ahead.
    """

    seeds: tuple[bytes, bytes] = field(repr=False)
    corrections: Iterator[memoryview] = field(repr=False)
    stored: bool = False


class SessionSupply(Protocol):
    """A supply within one session of a client and the server, whose weights' masks are drawn once."""

    def set_up(self, program: Program, state: DealerState) -> Dealt:
        """Randomness for the session's set-up; its masks go to ``state``.

        Raises:
            CorrelationError: There is none.
        """

    def draw(self, program: Program, state: DealerState, *, kind: str | None) -> Dealt:
        """Randomness for one request.

        Args:
            program: What the request draws.
            state: Masks that this session drew earlier: of its weights, of a generation's cache.
            kind: See :func:`~privtensors.deploy.kinds.kind_of`; None for a step of a generation, whose masks go to ``state``.

        Raises:
            CorrelationError: There is none.
        """

    def close(self) -> None:
        """The session is over; what was set aside for it is burnt. Never raises."""


class Supply(Protocol):
    """Makes correlated randomness, or has it in store. What it hands out once it never hands out again."""

    def open(self) -> SessionSupply:
        """For a session that begins."""


class FreshSupply:
    """Deals while the parties compute, from seeds of the operating system: the same for every session."""

    def open(self) -> SessionSupply:
        """See :class:`Supply`."""
        return self

    def set_up(self, program: Program, state: DealerState) -> Dealt:
        """See :class:`SessionSupply`."""
        seeds = two_seeds()
        return Dealt(seeds, program.deal(seeds, state, keep=True))

    def draw(self, program: Program, state: DealerState, *, kind: str | None) -> Dealt:
        """See :class:`SessionSupply`."""
        seeds = two_seeds()
        return Dealt(seeds, program.deal(seeds, state, keep=kind is None))

    def close(self) -> None:
        """See :class:`SessionSupply`."""


def two_seeds() -> tuple[bytes, bytes]:
    """Fresh seeds of the operating system, the client's and the server's."""
    return secrets.token_bytes(SEED_SIZE), secrets.token_bytes(SEED_SIZE)
