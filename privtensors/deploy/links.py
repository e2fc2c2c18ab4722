"""Control messages between parties: what a frame's step says, and how a wait is kept alive.

Each message is one frame: REQUEST from whoever asks, REPLY from whoever serves; the step's id in its header says which
message it is. Payloads have fixed layouts. A party that lets another wait sends WAITING every second, so a long wait for a
turn is told from a stalled party.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final

from privtensors.errors import FrameError, PartyBusy, RequestRefused, TransportError
from privtensors.transport.frames import Kind, op_id
from privtensors.transport.peer import Peer

KEEPALIVE_S: Final = 1.0
ID_SIZE: Final = 16
SEED_SIZE: Final = 32
NOTE_LIMIT: Final = (1 << 24) + 64  # a descriptor is the largest

_NUMBER: Final = struct.Struct("<Q")


class Label(StrEnum):
    """What a control message says."""

    OPEN = "privtensors open"
    READY = "privtensors ready"
    FORWARD = "privtensors forward"
    PREPARE = "privtensors prepare"
    FORGET = "privtensors forget"
    SEEDS = "privtensors input seeds"
    GO = "privtensors go"
    WAITING = "privtensors waiting"
    NO = "privtensors no"
    SEED = "privtensors seed"
    CREDIT = "privtensors credit"
    DATA = "privtensors corrections"


_LABELS: Final = {op_id(label): label for label in Label}


class Refusal(IntEnum):
    """Why a request is not taken. The session goes on."""

    BUSY = 1
    TOO_LARGE = 2
    UNKNOWN_CACHE = 3
    DISAGREE = 4
    USED_ID = 5
    NOT_STORED = 6
    NO_ROOM = 7
    UNSUITED = 8


_SAID: Final = {
    Refusal.BUSY: ("too many requests wait already", "try again later"),
    Refusal.TOO_LARGE: ("the request is over the party's limit of batch times tokens", "send smaller batches or shorter texts"),
    Refusal.UNKNOWN_CACHE: ("the key-value cache is not kept there any more", "start the generation again"),
    Refusal.DISAGREE: ("client and server describe the request differently", "run the same release at every party"),
    Refusal.USED_ID: ("the request's id was used before", "send the request again: it gets a new id"),
    Refusal.NOT_STORED: ("the dealer has no usable stored randomness for it", "deal more at the dealer: privtensors deal"),
    Refusal.NO_ROOM: ("the server has no room to prepare another request", "prepare fewer, or raise limits.prepared_mib at the server"),
    Refusal.UNSUITED: ("the model does not take such a request", "send what its tokenizer or image processor returns, within its length"),
}


def refusal_error(code: int, where: str) -> TransportError:
    """The error that a refusal stands for at the party that asked."""
    if code not in _SAID:
        return FrameError(f"an unknown refusal {code}", where=where, fix="install the same release at every party")
    what, fix = _SAID[Refusal(code)]
    return (PartyBusy if code == Refusal.BUSY else RequestRefused)(what, where=where, fix=fix)


@dataclass(frozen=True, slots=True)
class Note:
    """One control message. ``data`` may hold a seed: it is not shown."""

    label: Label
    data: memoryview

    def __repr__(self) -> str:
        return f"Note({self.label})"


def say(peer: Peer, label: Label, *data: bytes | memoryview, asking: bool = False, timeout: float | None = None) -> None:
    """Send one message; raises as :meth:`Peer.send`."""
    peer.send(Kind.REQUEST if asking else Kind.REPLY, data, op=op_id(label), timeout=timeout)


def ask(peer: Peer, label: Label, *data: bytes | memoryview) -> None:
    """Send one request; raises as :meth:`Peer.send`."""
    say(peer, label, *data, asking=True)


def hear(peer: Peer, *labels: Label, asked: bool = False, timeout: float | None = None) -> Note | None:
    """The next message, one of ``labels``; None for a goodbye where requests are due.

    Raises:
        FrameError: Another message.
        TransportError: As :meth:`Peer.recv`.
    """
    frame = peer.recv(*((Kind.REQUEST, Kind.BYE) if asked else (Kind.REPLY,)), most=NOTE_LIMIT, timeout=timeout)
    if frame.kind is Kind.BYE:
        return None
    label = _LABELS.get(frame.header.op)
    if label is None or label not in labels:
        raise FrameError(f"message {str(label or 'unknown')!r}, due is {' or '.join(labels)}", where=peer.name, fix="see the peer's log")
    return Note(label, frame.payload)


def answer(peer: Peer, label: Label) -> memoryview:
    """What a peer answers with ``label``, waiting for as long as it says that it works on it.

    Raises:
        PartyBusy, RequestRefused: It says no.
        TransportError: As :meth:`Peer.recv`.
    """
    while True:
        note = hear(peer, label, Label.WAITING, Label.NO)
        if note is not None and note.label == Label.NO:
            raise refusal_error(note.data[0] if len(note.data) == 1 else 0, peer.name)
        if note is not None and note.label == label:
            return note.data


def refuse(peer: Peer, code: Refusal) -> None:
    """Say no to a request; the session goes on."""
    say(peer, Label.NO, bytes([code]))


def keep_waiting(peers: Sequence[Peer], ready: Callable[[float], bool]) -> None:
    """Wait for ``ready(seconds)`` to be true, and tell the peers every second that the wait goes on.

    Raises:
        TransportError: A peer is gone.
    """
    while not ready(KEEPALIVE_S):
        for peer in peers:
            say(peer, Label.WAITING)


def number(value: int) -> bytes:
    """``value`` as 8 bytes."""
    return _NUMBER.pack(value)


def read_number(data: memoryview) -> int:
    """Inverse of :func:`number`.

    Raises:
        FrameError: Not 8 bytes.
    """
    if len(data) != _NUMBER.size:
        raise FrameError("a malformed number", where="control message", fix="install the same release at every party")
    return int(_NUMBER.unpack(data)[0])


def interrupt(peer: Peer) -> None:
    """End a connection under a thread that waits on it, which then raises PeerLost. Never raises."""
    with contextlib.suppress(OSError, ValueError):
        number_of = peer.fileno()
        if number_of >= 0:
            with socket.socket(fileno=os.dup(number_of)) as twin:
                twin.shutdown(socket.SHUT_RDWR)
