"""Parties with a valid certificate that do not follow the protocol: frames changed in their own writer, messages made by hand."""

from __future__ import annotations

import secrets
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Self

from privtensors.deploy.config import DEALER, SERVER
from privtensors.deploy.links import SEED_SIZE, Label, answer, ask
from privtensors.deploy.rooms import SETUP
from privtensors.transport.frames import HEADER_SIZE, FrameWriter, Kind, op_id
from privtensors.transport.peer import Peer
from privtensors.transport.tcp import connect
from privtensors.transport.tls import Identity
from tests.unit.deploy.places import Running

_LENGTH: Final = HEADER_SIZE - 8
_SEQUENCE: Final = 24
ROUNDS: Final = 18  # of the tiny BERT's set-up


def _with(at: int, code: str, change: Callable[[int], int]) -> Callable[[bytearray], bytes]:
    def apply(frame: bytearray) -> bytes:
        (value,) = struct.unpack_from(code, frame, at)
        struct.pack_into(code, frame, at, change(value))
        return bytes(frame)

    return apply


def _resized(by: int) -> Callable[[bytearray], bytes]:
    def apply(frame: bytearray) -> bytes:
        struct.pack_into("<Q", frame, _LENGTH, len(frame) - HEADER_SIZE + by)
        return bytes(frame[:by] if by < 0 else frame + bytes(by))

    return apply


# What a frame may be turned into. All but the last ones are told at once; those leave the peer waiting.
CHANGES: Final[dict[str, Callable[[bytearray], bytes]]] = {
    "no magic": _with(0, "<I", lambda _: 0),
    "another version": _with(4, "<H", lambda v: v + 1),
    "another kind": _with(6, "<B", lambda k: Kind.CORRELATION if k != Kind.CORRELATION else Kind.EXCHANGE),
    "an unknown kind": _with(6, "<B", lambda _: 99),
    "another session": _with(8, "<Q", lambda s: s ^ 1),
    "a frame left out": _with(_SEQUENCE, "<Q", lambda s: s + 1),
    "an old number": _with(_SEQUENCE, "<Q", lambda s: s - 1),
    "another step": _with(32, "<I", lambda op: op ^ 1),
    "shorter": _resized(-8),
    "longer": _resized(8),
    "longer than memory": lambda frame: _with(_LENGTH, "<Q", lambda _: 1 << 40)(frame)[:HEADER_SIZE],
    "sent twice": lambda frame: bytes(frame + frame),
    "a goodbye": lambda frame: _stated(frame, Kind.BYE, b""),
    "an error": lambda frame: _stated(frame, Kind.ERROR, b"\x07"),
    "an empty error": lambda frame: _stated(frame, Kind.ERROR, b""),
    "cut off": lambda frame: bytes(frame[:-4]),
    "never sent": lambda _: b"",
}
SLOW: Final = frozenset({"cut off", "never sent"})


def _stated(frame: bytearray, kind: Kind, payload: bytes) -> bytes:
    (number,) = struct.unpack_from("<Q", frame, _SEQUENCE)
    return struct.pack("<4sHBB16sQIQ", b"PVTF", 1, kind, 0, bytes(frame[8:24]), number, 0, len(payload)) + payload


@dataclass
class Change:
    """Turns the ``nth`` frame of a kind (and step) that one side of this process sends into something else.

    Attributes:
        name: Of :data:`CHANGES`.
        kind: Of the frame.
        client: Whether the client, in the main thread, sends it; else a service.
        nth: Which one, from 0.
        step: Its step; empty for any.
        done: Whether it happened.
    """

    name: str
    kind: Kind
    client: bool
    nth: int
    step: str = ""
    done: bool = False
    _seen: int = field(default=0)

    def matches(self, kind: Kind, op: int) -> bool:
        """Whether this is the frame."""
        here = (threading.current_thread() is threading.main_thread()) == self.client
        if not here or kind is not self.kind or (self.step and op != op_id(self.step)) or self.done:
            return False
        self._seen += 1
        self.done = self._seen > self.nth
        return self.done

    @contextmanager
    def applied(self, monkeypatch: Any) -> Iterator[Self]:
        """Until the block ends."""
        honest = FrameWriter.frame

        def frame(writer: FrameWriter, kind: Kind, payload: Sequence[bytes | memoryview] = (), op: int = 0) -> list[memoryview]:
            buffers = honest(writer, kind, payload, op)
            if not self.matches(kind, op):
                return buffers
            sent = CHANGES[self.name](bytearray(b"".join(buffers)))
            return [memoryview(sent)] if sent else []

        with monkeypatch.context() as patch:
            patch.setattr(FrameWriter, "frame", frame)
            yield self


class Rogue:
    """A client that speaks by hand, with the certificate of ``other``."""

    def __init__(self, place: Running, party: str = "other") -> None:
        self._place, self._open = place, ExitStack()
        identity = Identity.load(place.deployment.keys, party)
        self.server: Peer = self._open.enter_context(connect(place.deployment.server, identity, SERVER, terms=place.server.terms))
        self.dealer: Peer = self._open.enter_context(connect(place.deployment.dealer, identity, DEALER, terms=place.server.dealer_terms))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(None, None, None)

    def greet(self) -> Self:
        """Open a session as an honest client does."""
        ask(self.dealer, Label.OPEN, self.server.session)
        ask(self.server, Label.OPEN)
        answer(self.server, Label.READY)
        answer(self.dealer, Label.READY)
        self.server.exchange(Kind.REQUEST, [b"\x05" * SEED_SIZE], due=SEED_SIZE, op=op_id(Label.SEEDS))
        return self

    def announce(self, body: bytes, view: bytes | None = None, *, request: bytes) -> memoryview:
        """Announce a request to both; what the dealer says."""
        ask(self.server, Label.FORWARD, request, body)
        answer(self.server, "privtensors go")
        ask(self.dealer, Label.FORWARD, request, body if view is None else view)
        return answer(self.dealer, Label.SEED)

    def set_up(self) -> Self:
        """Run the set-up: words of the right sizes, whatever they are."""
        self.announce(SETUP, request=secrets.token_bytes(16))
        for _ in range(ROUNDS):
            frame = self.server.recv(Kind.EXCHANGE)
            self.server.send(Kind.EXCHANGE, [bytes(frame.payload)], op=frame.header.op)
        return self
