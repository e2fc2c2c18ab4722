"""One authenticated connection: frames over TLS, every wait bounded in time.

Sockets never block: a party reads while it writes, so two parties that send 100 MB to each other at once do not wait for each
other. After any error a connection is closed and refuses further use; nothing half received is ever returned.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Final, Self

from privtensors.errors import FrameError, PeerLost, PeerTimeout, TransportError, VersionMismatch, WrongPeer
from privtensors.transport.frames import (
    GREETING_LIMIT,
    HEADER_SIZE,
    NO_SESSION,
    Frame,
    FrameReader,
    FrameWriter,
    Header,
    Hello,
    Kind,
    Reason,
    reason_for,
    refusal,
    session_id,
)
from privtensors.transport.limits import Limits, Traffic
from privtensors.transport.tls import Identity, party_of, transport_error

Buffers = Sequence[bytes | memoryview]
# Steps yield the poll events they wait for and never block themselves, so that one loop can serve many connections.
Steps = Generator[int, None, Frame | None]
Observer = Callable[[bool, Kind, int, Buffers], None]

_PIECE: Final = 1 << 17
_RECORD: Final = 1 << 14  # largest TLS record
_RECORD_EXTRA: Final = 22  # bytes that a TLS 1.3 record adds: header 5, content type 1, tag 16
_LINGER_S: Final = 0.25


class Peer:
    """An authenticated connection to one party, from ``tcp.connect`` or ``tcp.Listener``. One thread at a time.

    As a context manager it says goodbye at the end, and aborts on an exception.

    Attributes:
        name: The peer's party name, as its certificate proves.
        session: 16-byte id of this connection, the same at both ends.
        limits: What is tolerated.
        traffic: Counters.
        observe: Where set, called with ``(sent, kind, op, payload)`` for every frame. Payloads hold shares: for tests.
    """

    def __init__(self, sock: ssl.SSLSocket, limits: Limits, where: str) -> None:
        self.name = ""
        self.session = NO_SESSION
        self.limits = limits
        self.traffic = Traffic()
        self.observe: Observer | None = None
        self._sock, self._where = sock, where
        self._reader, self._writer = FrameReader(GREETING_LIMIT), FrameWriter()
        self._reader.check = self._on_header
        self._expect: Callable[[Header], None] | None = None
        self._inbox: deque[Frame] = deque()
        self._secure = self._half_sent = False
        self._failure: TransportError | None = None
        self._busy = threading.Lock()
        self._poll = select.poll()
        self._poll.register(sock)
        self._deadline = self._moved_at = 0.0

    def __repr__(self) -> str:
        return f"Peer({self.name or '?'}, {'open' if self._failure is None else 'closed'})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def fileno(self) -> int:
        """For selectors. Look at :attr:`pending` as well: bytes that TLS holds already do not wake a selector."""
        return self._sock.fileno()

    @property
    def pending(self) -> bool:
        """Whether received bytes wait in memory."""
        return bool(self._inbox) or (self._failure is None and self._sock.pending() > 0)

    def send(self, kind: Kind, payload: Buffers = (), *, op: int = 0, timeout: float | None = None) -> None:
        """Send one frame. What the peer sends meanwhile is kept, up to ``limits.payload`` bytes, so that neither end blocks.

        Args:
            payload: Buffers of bytes, sent one after the other.
            op: Id of the step, see :func:`~privtensors.transport.frames.op_id`.
            timeout: Seconds without progress; default ``limits.idle_s``.

        Raises:
            PeerLost: The peer is gone, or aborted.
            PeerTimeout: It does not take the bytes.
            FrameError: It sends what is no frame, or not the next one.
            VersionMismatch: It speaks another version.
            TransportError: The connection was closed or aborted before, or the payload is over the limit (nothing is sent then).
        """
        self._run((kind, payload, op), None, timeout)

    def recv(self, *kinds: Kind, op: int | None = None, most: int | None = None, timeout: float | None = None) -> Frame:
        """The next frame: one of ``kinds``, of step ``op`` unless None. With ``Kind.BYE`` among them a clean end is no error.

        A payload over ``most`` bytes (default ``limits.payload``) is refused before memory is taken for it.

        Raises:
            PeerLost, PeerTimeout, FrameError, VersionMismatch, TransportError: As :meth:`send`.
        """
        return self._run(None, lambda header: _due(header, kinds, op, None, most), timeout)

    def exchange(self, kind: Kind, payload: Buffers, *, due: int | None = None, op: int = 0, timeout: float | None = None) -> Frame:
        """Send a frame and at the same time receive one of the same kind and step, of ``due`` bytes; default as many as are sent.

        Raises:
            PeerLost, PeerTimeout, FrameError, VersionMismatch, TransportError: As :meth:`send`; FrameError also for a peer out of step.
        """
        size = sum(len(part) for part in payload) if due is None else due
        return self._run((kind, payload, op), lambda header: _due(header, (kind,), op, size), timeout)

    def check_open(self) -> None:
        """Raises TransportError where the connection was closed or has failed."""
        if self._failure is not None:
            raise TransportError(f"the connection cannot be used any more: {self._failure.what}", where=self._where, fix="connect again")

    def abort(self, reason: Reason = Reason.LOCAL) -> None:
        """Tell the peer to give up, where it still listens, and close. Takes a quarter of a second at most and never raises."""
        self._fail(TransportError("it was aborted here", where=self._where), reason)

    def close(self) -> None:
        """Say goodbye and close; harmless on a closed connection. Takes a second at most and never raises."""
        if self._failure is None and self.session != NO_SESSION:
            with contextlib.suppress(TransportError):
                self._run((Kind.BYE, (), 0), None, 1.0)
        self._fail(TransportError("it was closed here", where=self._where), None)

    def _run(self, outgoing: tuple[Kind, Buffers, int] | None, expect: Callable[[Header], None] | None, timeout: float | None) -> Frame:
        """Send and receive at most one frame each; an empty BYE stands for "nothing was due"."""
        self.check_open()
        size = sum(len(part) for part in outgoing[1]) if outgoing else 0
        if size > self.limits.payload:
            raise TransportError(f"a payload of {size} bytes", where=self._where, fix=f"raise Limits.payload, now {self.limits.payload}")
        if not self._busy.acquire(blocking=False):
            raise TransportError("two threads use one connection", where=self._where, fix="give each its own")
        try:
            with self.guard():
                return self.drive(self._talk(outgoing, expect), self.limits.idle_s if timeout is None else timeout, size) or _NOTHING
        finally:
            self._busy.release()

    def drive(self, steps: Steps, idle: float, size: int = 0) -> Frame | None:
        """Run steps to their end; PeerTimeout after ``idle`` seconds without a byte. Within :meth:`guard`."""
        self._moved_at = time.monotonic()
        self._deadline = self._moved_at + idle + size / self.limits.rate
        while True:
            try:
                events = next(steps)
            except StopIteration as stop:
                frame: Frame | None = stop.value
                return frame
            self._poll.modify(self._sock, events)
            left = min(self._deadline, self._moved_at + idle) - time.monotonic()
            ready = self._poll.poll(max(0.0, left) * 1000)
            now = time.monotonic()
            if now >= self._deadline or (not ready and now >= self._moved_at + idle):
                fix = "see whether the peer runs; else raise Limits.idle_s"
                raise PeerTimeout(f"no answer for {idle:.3g} s", where=self._where, fix=fix)

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Turn any error inside into a typed one and close the connection."""
        try:
            yield
        except TransportError as error:
            self._fail(error, reason_for(error))
            raise
        except OSError as error:
            failure = transport_error(error, self._where)
            self._fail(failure, None)
            raise failure from None
        except BaseException:  # an interrupt may leave half a frame behind
            self._fail(TransportError("it was interrupted", where=self._where), Reason.LOCAL)
            raise

    def _fail(self, error: TransportError, reason: Reason | None) -> None:
        if self._failure is not None:
            return
        self._failure = error
        self._inbox.clear()
        with contextlib.suppress(OSError):
            # ERROR would land inside a half-sent frame, or start a handshake of its own.
            if reason is not None and self._secure and not self._half_sent:
                for buffer in self._writer.frame(Kind.ERROR, [bytes([reason])]):
                    self._sock.send(buffer)
                self._sock.shutdown(socket.SHUT_WR)
                if reason is not Reason.TIMEOUT:
                    self._linger()
        self._sock.close()

    def _linger(self) -> None:
        """Read and forget for a moment: closing with unread bytes would reset the connection and lose the last frame sent."""
        until, waste = time.monotonic() + _LINGER_S, bytearray(1 << 16)
        self._poll.modify(self._sock, select.POLLIN)
        while (left := until - time.monotonic()) > 0:
            if self._poll.poll(left * 1000) and not self._sock.recv_into(waste):  # raw bytes: shutdown took TLS off
                return

    def greet(self, identity: Identity, parties: Sequence[str], terms: Mapping[str, str], *, listening: bool) -> Steps:
        """Handshake, check of names, greetings. The listener greets first: its greeting shows that it accepted the caller's certificate."""
        while not self._secure:
            try:
                self._sock.do_handshake()
                self._secure = True
            except ssl.SSLWantReadError:
                yield select.POLLIN
            except ssl.SSLWantWriteError:
                yield select.POLLOUT
        self.name = party_of(self._sock.getpeercert() or {}, identity, parties)
        self._where = f"{identity.name} to {self.name}"
        mine = Hello(identity.name, self.name, terms)
        greeting = (Kind.HELLO, [mine.encode()], 0)
        if listening:
            yield from self._talk(greeting, None)
        frame = yield from self._talk(None, lambda header: _due(header, (Kind.HELLO,), 0, None))
        assert frame is not None
        if not listening:
            yield from self._talk(greeting, None)
        theirs = Hello.decode(frame.payload)
        if (theirs.sender, theirs.receiver) != (mine.receiver, mine.sender):
            raise WrongPeer(
                f"{theirs.sender!r} greets {theirs.receiver!r}", where=self._where, fix="check names and addresses of the parties"
            )
        if differing := sorted(k for k in mine.terms.keys() | theirs.terms.keys() if mine.terms.get(k) != theirs.terms.get(k)):
            what = f"the parties differ in {', '.join(differing)}"
            raise VersionMismatch(what, where=self._where, fix="give both the same", terms=tuple(differing))
        nonces = (mine.nonce, theirs.nonce) if listening else (theirs.nonce, mine.nonce)
        self.session = self._reader.session = self._writer.session = session_id(*nonces)
        self._reader.limit = self.limits.payload
        return None

    def _talk(self, outgoing: tuple[Kind, Buffers, int] | None, expect: Callable[[Header], None] | None) -> Steps:
        """Send a frame and receive one, or either, side by side."""
        traffic, frame = self.traffic, None
        out: deque[memoryview] = deque()
        if outgoing is not None:
            kind, payload, op = outgoing
            self._half_sent = True
            out.extend(self._writer.frame(kind, payload, op))
            traffic.frames_sent += 1
            traffic.payload_sent += sum(len(part) for part in payload)
            if self.observe is not None:
                self.observe(True, kind, op, payload)
        if expect is not None and self._inbox:
            frame = self._inbox.popleft()
            expect(frame.header)
        while True:
            before = traffic.wire_sent + traffic.wire_received
            arrived = None
            try:
                events = self._write(out)
            except OSError:
                self._last_words()
                raise
            self._half_sent = bool(out)
            waiting = expect is not None and frame is None
            if not out and not waiting:
                return frame
            # While the peer takes nothing, make room for it by reading ahead.
            if waiting or sum(HEADER_SIZE + f.header.length for f in self._inbox) < self.limits.payload:
                self._expect = expect if waiting else None
                arrived, more = self._read()
                events |= more
                if arrived is not None and waiting:
                    assert expect is not None
                    expect(arrived.header)  # once more: it may have been read ahead of its check
                    frame = arrived
                elif arrived is not None:
                    self._inbox.append(arrived)
            if traffic.wire_sent + traffic.wire_received != before:
                self._moved_at = time.monotonic()
            if arrived is None:
                yield events

    def _write(self, out: deque[memoryview]) -> int:
        """Write until done or blocked; the events to wait for."""
        while out:
            try:
                # In pieces, for progress to show. After a refusal TLS wants the same piece again, and gets it.
                sent = self._sock.send(out[0][:_PIECE])
            except ssl.SSLWantWriteError:
                return select.POLLOUT
            except ssl.SSLWantReadError:
                return select.POLLIN
            self.traffic.wire_sent += sent + -(-sent // _RECORD) * _RECORD_EXTRA
            if sent < len(out[0]):
                out[0] = out[0][sent:]
            else:
                out.popleft()
        return 0

    def _last_words(self) -> None:
        """Where writing fails, the peer may have said why before it went: raise that."""
        with contextlib.suppress(OSError):
            while self._read()[0] is not None:
                pass

    def _read(self) -> tuple[Frame | None, int]:
        """Read until a frame is there or no byte is; the frame and the events to wait for."""
        receive, events = self._sock.recv_into, 0
        while not events:
            room = self._reader.room()
            size, have = len(room), 0
            try:
                while have < size:  # a record at a time: this loop runs for every 16 KB
                    count = receive(room[have:] if have else room)
                    if not count:
                        raise PeerLost("the connection was closed without a goodbye", where=self._where, fix="see why the peer ended")
                    have += count
                    # A record that did not fit is counted with its rest.
                    self.traffic.wire_received += count + (0 if have == size and self._sock.pending() else _RECORD_EXTRA)
            except ssl.SSLWantReadError:
                events = select.POLLIN
            except ssl.SSLWantWriteError:
                events = select.POLLOUT
            frame = self._reader.filled(have) if have else None
            if frame is not None:
                self._arrived(frame)
                return frame, 0
        return None, events

    def _on_header(self, header: Header) -> None:
        self._deadline += header.length / self.limits.rate
        if header.kind is Kind.ERROR and header.length != 1:
            raise FrameError("a malformed ERROR frame", where=self._where, fix="install the same release at every party")
        if self._expect is not None:
            self._expect(header)

    def _arrived(self, frame: Frame) -> None:
        self.traffic.frames_received += 1
        self.traffic.payload_received += frame.header.length
        if self.observe is not None:
            self.observe(False, frame.kind, frame.header.op, [frame.payload])
        if frame.kind is Kind.ERROR:
            raise refusal(frame.payload[0], self._where)


def _due(header: Header, kinds: Sequence[Kind], op: int | None, size: int | None, most: int | None = None) -> None:
    """Refuse a frame that is not the one due; ERROR always is."""
    if header.kind is Kind.ERROR or (header.kind is Kind.BYE and Kind.BYE in kinds):
        return
    if header.kind is Kind.BYE:
        raise PeerLost("the peer said goodbye", where="lockstep", fix="see why the peer ended")
    fix = "the parties are out of step: give them the same program, policy and model"
    if header.kind not in kinds:
        raise FrameError(f"a frame {header.kind.name}, due is {'/'.join(k.name for k in kinds)}", where="lockstep", fix=fix)
    if op is not None and header.op != op:
        raise FrameError(f"a frame of step {header.op:#010x}, due is {op:#010x}", where="lockstep", fix=fix)
    if most is not None and header.length > most:
        raise FrameError(f"a message of {header.length} bytes, {most} are allowed", where="lockstep", fix="send less")
    if size is not None and header.length != size:
        raise FrameError(f"a payload of {header.length} bytes, due are {size}", where="lockstep", fix=fix)


_NOTHING: Final = Frame(Header(Kind.BYE, NO_SESSION, 0, 0, 0), memoryview(b""))
