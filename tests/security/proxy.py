"""A man in the middle on one link: he counts, keeps, cuts, changes, repeats and reorders TLS records, and cannot read them."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Direction = Literal["up", "down"]  # from the caller, to the caller
HEADER = 5


@dataclass(frozen=True)
class Event:
    """Where a trap went off.

    Attributes:
        link: On which link.
        record: The TLS record under way.
        at: Bytes of it that come before the trap.
        following: Records that arrived behind it.
    """

    link: Link
    record: bytes
    at: int
    following: list[bytes]


Trap = Callable[[Event], list[bytes]]  # gives what to forward instead; an empty piece ends the connection


@dataclass
class Record:
    """One TLS record as an observer of the network sees it."""

    direction: Direction
    kind: int
    size: int


@dataclass
class Link:
    """Forwards callers of its own port to ``target``, which may change.

    Attributes:
        passed: Bytes forwarded so far, by direction.
        records: What passed, where ``keep`` is set.
        data: The bytes themselves, where ``keep`` is set.
    """

    target: tuple[str, int]
    keep: bool = False
    passed: dict[Direction, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    records: list[Record] = field(default_factory=list)
    data: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._traps: dict[Direction, tuple[int, Trap]] = {}
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self._mute = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> tuple[str, int]:
        """Where callers connect."""
        host, port = self._listener.getsockname()
        return str(host), int(port)

    def arm(self, direction: Direction, after: int, trap: Trap) -> None:
        """Call ``trap`` once, ``after`` bytes from now."""
        with self._lock:
            self._traps[direction] = (self.passed[direction] + after, trap)

    def disarm(self) -> None:
        """Forward everything again."""
        with self._lock:
            self._traps.clear()
            self._mute.clear()

    def mute(self) -> None:
        """Swallow everything until :meth:`disarm`: the cable is pulled, nobody is told."""
        self._mute.set()

    def cut(self) -> None:
        """Close every connection."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for sock in pair:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()

    def close(self) -> None:
        """End."""
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            try:
                called = socket.create_connection(self.target, 2)
            except OSError:
                caller.close()
                continue
            called.settimeout(None)
            for sock in (caller, called):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._pairs.append((caller, called))
            ways: list[tuple[socket.socket, socket.socket, Direction]] = [(caller, called, "up"), (called, caller, "down")]
            for source, sink, direction in ways:
                threading.Thread(target=self._pump, args=(source, sink, direction), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, direction: Direction) -> None:
        waiting = bytearray()
        with contextlib.suppress(OSError):
            while chunk := source.recv(1 << 18):
                waiting += chunk
                records = _take_records(waiting)
                while records:
                    out = self._through(records, direction)
                    if not self._mute.is_set():
                        for piece in out:
                            sink.sendall(piece)
                            if not piece:
                                for sock in (source, sink):
                                    sock.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            if not self._mute.is_set():
                sink.sendall(bytes(waiting))
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def _through(self, records: list[bytes], direction: Direction) -> list[bytes]:
        record = records.pop(0)
        with self._lock:
            at, trap = self._traps.get(direction, (0, None))
            inside = at - self.passed[direction]
            due = trap is not None and inside < len(record)
            if due:
                del self._traps[direction]
            self.passed[direction] += len(record)
            if self.keep:
                self.records.append(Record(direction, record[0], len(record)))
                self.data += record
        if not due:
            return [record]
        assert trap is not None
        following = records[:]
        records.clear()
        return trap(Event(self, record, max(0, inside), following))


def _take_records(waiting: bytearray) -> list[bytes]:
    found = []
    while len(waiting) >= HEADER:
        size = HEADER + int.from_bytes(waiting[3:5], "big")
        if len(waiting) < size:
            break
        found.append(bytes(waiting[:size]))
        del waiting[:size]
    return found


def cut(event: Event) -> list[bytes]:
    """Forward a part of the record, then close the connection."""
    return [event.record[: event.at], b""] if event.at else [b""]


def flip(event: Event) -> list[bytes]:
    """Flip one bit of the record's content."""
    changed = bytearray(event.record)
    changed[max(HEADER, min(event.at, len(changed) - 1))] ^= 0x10
    return [bytes(changed), *event.following]


def replay(event: Event) -> list[bytes]:
    """Send the record twice."""
    return [event.record, event.record, *event.following]


def swap(event: Event) -> list[bytes]:
    """Send the record after the next one, where that is there; else after its own copy with nothing in between: replayed."""
    if not event.following:
        return replay(event)
    return [event.following[0], event.record, *event.following[1:]]


def pull(event: Event) -> list[bytes]:
    """The cable is pulled."""
    event.link.mute()
    return []
