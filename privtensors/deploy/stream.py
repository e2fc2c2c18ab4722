"""The dealer's corrections on their way to party 1: sent ahead of use, within what the receiver has room for."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Final

import numpy as np

from privtensors.deploy.links import KEEPALIVE_S, Label, ask, hear, interrupt, number, read_number
from privtensors.errors import CorrelationError, FrameError, PrivTensorsError, TransportError
from privtensors.transport.frames import Kind, op_id
from privtensors.transport.peer import Peer

_PARTS: Final = 4  # of the window: the largest frame, and the least that is granted at once
LEAST_WINDOW: Final = 1 << 20


class CorrectionStream:
    """Party 1's end: a thread receives ahead of use into a bounded buffer. Raises of that thread come out of :meth:`take`.

    Until it has received everything, or :meth:`close` was called, the connection belongs to this object.

    Args:
        peer: Connection to the dealer.
        total: Bytes of corrections that will come.
        window: Most bytes buffered or on their way.
        idle_s: Seconds without a byte from the dealer after which it counts as stalled.
    """

    def __init__(self, peer: Peer, total: int, window: int, idle_s: float) -> None:
        self._peer, self._total, self._window, self._idle_s = peer, total, window, idle_s
        self._chunks: deque[memoryview] = deque()
        self._change = threading.Condition()
        self._granted, self._received, self._consumed = min(window, total), 0, 0
        self._error: PrivTensorsError | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._receive, name="corrections", daemon=True)
        if total:
            self._thread.start()

    def __repr__(self) -> str:
        return f"CorrectionStream({self._received} of {self._total} bytes)"

    @property
    def total(self) -> int:
        """Bytes that come."""
        return self._total

    def take(self, size: int) -> memoryview:
        """The next ``size`` bytes, the caller's to keep; without a copy where they came in one piece.

        Raises:
            TransportError: The dealer is gone or stalled, or sends what was not due.
            CorrelationError: There are no more.
        """
        if self._consumed + size > self._total:
            what = "the dealer sent less than this forward needs"
            raise CorrelationError(what, where="corrections", fix="give all parties the same model")
        whole = self._next(size)
        if len(whole) == size:
            return whole
        out = np.empty(size, dtype=np.uint8).data
        at = len(whole)
        out[:at] = whole
        while at < size:
            piece = self._next(size - at)
            out[at : at + len(piece)] = piece
            at += len(piece)
        return out

    def _next(self, most: int) -> memoryview:
        """Up to ``most`` bytes of the first chunk, at least one unless ``most`` is 0."""
        if not most:
            return memoryview(bytearray())
        with self._change:
            while not self._chunks:
                if self._error is not None:
                    raise self._error
                if not self._change.wait(2 * self._idle_s):
                    raise TransportError("no corrections came", where="corrections", fix="see the dealer's log")
            first = self._chunks.popleft()
            if len(first) > most:
                self._chunks.appendleft(first[most:])
                first = first[:most]
            self._consumed += len(first)
            self._change.notify_all()
            return first

    def finish(self) -> None:
        """After the last use.

        Raises:
            CorrelationError: Corrections are left over.
        """
        if self._consumed != self._total:
            left = self._total - self._consumed
            raise CorrelationError(f"{left} bytes of corrections are left over", where="corrections", fix="give all parties the same model")
        self.close()

    def close(self) -> None:
        """End the thread; where it still waits for the dealer, that connection ends with it. Never raises."""
        with self._change:
            self._stopped = True
            self._change.notify_all()
        if not self._total:
            return
        if self._received < self._total and self._thread.is_alive():
            interrupt(self._peer)
        self._thread.join(self._idle_s)

    def _receive(self) -> None:
        try:
            while self._received < self._total:
                if not self._make_room():
                    return
                frame = self._peer.recv(Kind.CORRELATION, op=op_id(Label.DATA), timeout=self._idle_s)
                with self._change:
                    self._received += len(frame.payload)
                    if self._received > self._granted or not len(frame.payload):
                        raise FrameError("corrections that were not due", where="corrections", fix="install the same release")
                    self._chunks.append(frame.payload)
                    self._change.notify_all()
        except PrivTensorsError as error:
            with self._change:
                self._error = error
                self._change.notify_all()

    def _make_room(self) -> bool:
        """Grant the dealer what there is room for; False once stopped. Returns when a whole frame may be on its way."""
        frame = self._window // _PARTS
        while True:
            with self._change:
                if self._stopped:
                    return False
                room = min(self._window + self._consumed, self._total) - self._granted
                enough = self._granted == self._total or self._granted - self._received >= frame
                grant = room if room >= frame or self._granted + room == self._total else 0
                if not enough and not grant:
                    self._change.wait(KEEPALIVE_S)
                    room = min(self._window + self._consumed, self._total) - self._granted
                    grant = room if room >= frame or self._granted + room == self._total else 0
                self._granted += grant
            if grant or not enough:
                ask(self._peer, Label.CREDIT, number(grant))  # of nothing: a sign of life while the buffer is full
            if enough or grant:
                return True


def send_corrections(peer: Peer, chunks: Iterator[memoryview], window: int) -> int:
    """The dealer's end: send as far ahead as the receiver has room.

    Args:
        peer: Connection to party 1.
        chunks: The corrections, in order.
        window: What the receiver said it buffers: its first credit; a frame is at most a quarter of it.

    Returns:
        Bytes sent.

    Raises:
        TransportError: Party 1 is gone or stalled.
    """
    credit, sent, most = window, 0, max(1, window // _PARTS)
    for chunk in chunks:
        for at in range(0, len(chunk), most):
            piece = chunk[at : at + most]
            while credit < len(piece):
                note = hear(peer, Label.CREDIT, asked=True)
                if note is None:
                    raise TransportError("party 1 said goodbye", where="corrections", fix="see its log")
                credit += read_number(note.data)
            peer.send(Kind.CORRELATION, [piece], op=op_id(Label.DATA))
            credit -= len(piece)
            sent += len(piece)
    return sent
