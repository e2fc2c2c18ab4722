"""Parties on the network: TCP with TLS 1.3, both sides authenticated. Any start order; every wait is bounded in time."""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Self

import torch
from torch import Tensor

from privtensors.errors import FrameError, PeerLost, PeerTimeout, TransportError
from privtensors.transport.base import Message
from privtensors.transport.frames import Kind, Layout, Reason, decode_words, encode_words, op_id, payload_size
from privtensors.transport.limits import Limits, Traffic
from privtensors.transport.peer import Peer, Steps
from privtensors.transport.tls import Identity, client_context, server_context, transport_error

__all__ = ["Limits", "Listener", "Peer", "TcpChannel", "Traffic", "connect"]

_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0
_CROWDED_S: Final = 1.5
_NO_TERMS: Final[Mapping[str, str]] = {}


def _secured(sock: socket.socket, context: ssl.SSLContext, limits: Limits, where: str, *, listening: bool) -> Peer:
    """A peer that has not shaken hands yet; takes over ``sock``."""
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        wrapped = context.wrap_socket(sock, server_side=listening, do_handshake_on_connect=False, suppress_ragged_eofs=False)
    except OSError as error:
        sock.close()
        raise transport_error(error, where) from None
    return Peer(wrapped, limits, where)


def connect(
    address: tuple[str, int],
    identity: Identity,
    party: str,
    *,
    terms: Mapping[str, str] = _NO_TERMS,
    limits: Limits = Limits(),  # noqa: B008  (frozen)
    timeout: float = 30.0,
) -> Peer:
    """Connect to ``party``, trying again until it listens.

    Args:
        address: Host and port.
        identity: Who we are.
        party: Whose certificate the other end must show.
        terms: What both must agree on, e.g. digests of policy and model: sent to the peer once it is authenticated.
        limits: What the connection tolerates.
        timeout: Seconds for everything, retries included.

    Raises:
        WrongPeer: Wrong authority, expired, another party's certificate, or ours is refused; nothing was sent but our certificate.
        VersionMismatch: Another version of TLS or of the wire format, or other terms.
        FrameError: What answers does not speak TLS, or no frames.
        PeerTimeout: Not reached within ``timeout``.
        TransportError: ``identity`` cannot be used.
    """
    context, where = client_context(identity), f"{identity.name} to {party} at {address[0]}:{address[1]}"
    deadline, pause = time.monotonic() + timeout, _FIRST_PAUSE_S
    while True:
        left = deadline - time.monotonic()
        try:
            peer = _secured(_dial(address, max(0.001, left), where), context, limits, where, listening=False)
            with peer.guard():
                peer.drive(peer.greet(identity, (party,), terms, listening=False), max(0.001, deadline - time.monotonic()))
            return peer
        except PeerLost as error:
            reason = error.what
        if deadline - time.monotonic() <= pause:
            raise PeerTimeout(f"not reached within {timeout:g} s ({reason})", where=where, fix="start the peer and check the address")
        time.sleep(pause)
        pause = min(_LONGEST_PAUSE_S, 1.5 * pause)


def _dial(address: tuple[str, int], timeout: float, where: str) -> socket.socket:
    try:
        sock = socket.create_connection(address, timeout)
    except OSError as error:
        raise PeerLost(f"no connection: {error.strerror or type(error).__name__}", where=where, fix="start the peer") from None
    if sock.getsockname() == sock.getpeername():  # TCP joins a free local port to itself when both are drawn alike
        sock.close()
        raise PeerLost("nobody listens", where=where, fix="start the peer")
    return sock


@dataclass(slots=True)
class _Caller:
    """A connection that is still shaking hands."""

    peer: Peer
    steps: Steps
    since: float
    events: int = select.POLLIN | select.POLLOUT


class Listener:
    """Waits for parties. Handshakes run side by side, so garbage or a silent caller does not keep a real one out.

    Args:
        identity: Who we are.
        parties: Who may connect.
        host, port: Where to listen; port 0 takes a free one, see :attr:`address`.
        terms: What callers must agree on, see :func:`connect`.
        limits: What each connection tolerates.
        handshake_s: Seconds a caller has to prove who it is; 1.5 at most while all places are taken.
        callers: Places: handshakes at a time; more wait in the system's queue.
        on_refused: Called with the error for each caller that was turned away; for logs.

    Raises:
        TransportError: ``identity`` cannot be used, or the address is taken.
    """

    def __init__(
        self,
        identity: Identity,
        parties: Sequence[str],
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        terms: Mapping[str, str] = _NO_TERMS,
        limits: Limits = Limits(),  # noqa: B008  (frozen)
        handshake_s: float = 5.0,
        callers: int = 16,
        on_refused: Callable[[TransportError], None] | None = None,
    ) -> None:
        self._identity, self._parties, self._terms, self._limits = identity, tuple(parties), dict(terms), limits
        self._handshake_s, self._most, self._on_refused = handshake_s, callers, on_refused
        self._context = server_context(identity)
        self._where = f"{identity.name} at {host}:{port}"
        self._callers: list[_Caller] = []
        self._last_refusal: TransportError | None = None
        try:
            self._sock = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=64)
        except OSError as error:
            raise TransportError(
                f"cannot listen: {error.strerror or type(error).__name__}", where=self._where, fix="choose another address"
            ) from None
        self._sock.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that callers use."""
        host, port = self._sock.getsockname()[:2]
        return str(host), int(port)

    def close(self) -> None:
        """Stop listening and drop whoever is still shaking hands. Connections handed out stay."""
        self._sock.close()
        for caller in self._callers:
            caller.peer.close()
        self._callers = []

    def accept(self, timeout: float = 30.0) -> Peer:
        """The next party that proves who it is; callers that fail to are turned away meanwhile.

        Raises:
            WrongPeer, VersionMismatch, FrameError, PeerLost: Nobody came within ``timeout`` but a caller turned away for that reason.
            PeerTimeout: Nobody came at all.
            TransportError: The listener is closed, or the system gives no more sockets.
        """
        if self._sock.fileno() < 0:
            raise TransportError("the listener is closed", where=self._where, fix="make another")
        deadline, self._last_refusal = time.monotonic() + timeout, None
        while True:
            self._take_calls()
            for caller in list(self._callers):
                if self._advance(caller):
                    return caller.peer
            now = time.monotonic()
            if now >= deadline:
                raise self._last_refusal or PeerTimeout(
                    f"nobody connected within {timeout:g} s", where=self._where, fix=f"start one of {', '.join(self._parties)}"
                )
            poll = select.poll()
            if len(self._callers) < self._most:
                poll.register(self._sock, select.POLLIN)
            for caller in self._callers:
                poll.register(caller.peer, caller.events)
            poll.poll(max(0.0, min([deadline, *map(self._deadline, self._callers)]) - now) * 1000)

    def _take_calls(self) -> None:
        while len(self._callers) < self._most:
            try:
                sock, address = self._sock.accept()
            except (BlockingIOError, ConnectionError):
                return
            except OSError as error:
                raise TransportError(f"cannot accept: {error.strerror}", where=self._where, fix="close connections") from None
            with self._turning_away():
                peer = _secured(sock, self._context, self._limits, f"{self._identity.name} from {address[0]}", listening=True)
                steps = peer.greet(self._identity, self._parties, self._terms, listening=True)
                self._callers.append(_Caller(peer, steps, time.monotonic()))

    def _patience(self) -> float:
        # Where all places are taken, silent callers must not keep a real party waiting.
        return self._handshake_s if len(self._callers) < self._most else min(self._handshake_s, _CROWDED_S)

    def _deadline(self, caller: _Caller) -> float:
        return caller.since + self._patience()

    def _advance(self, caller: _Caller) -> bool:
        """Take a handshake as far as it goes now; whether it is done."""
        with self._turning_away(), caller.peer.guard():
            if time.monotonic() >= self._deadline(caller):
                raise PeerTimeout(f"no handshake within {self._patience():g} s", where=self._where, fix="see who calls")
            try:
                caller.events = next(caller.steps)
                return False
            except StopIteration:
                self._callers.remove(caller)
                return True
        self._callers.remove(caller)
        return False

    @contextmanager
    def _turning_away(self) -> Iterator[None]:
        try:
            yield
        except TransportError as error:
            self._last_refusal = error
            if self._on_refused is not None:
                self._on_refused(error)


class TcpChannel:
    """The :class:`~privtensors.transport.base.Channel` of one computing party in a deployment.

    Args:
        peer: The connection to the other computing party.
        party: Which party this process is, 0 or 1.

    Attributes:
        rounds: Exchanges done.
        bytes_sent: Packed words sent, as :meth:`Message.size` counts them; ``peer.traffic`` counts what went over the wire.
    """

    def __init__(self, peer: Peer, party: int) -> None:
        if party not in (0, 1):
            raise TransportError(f"there is no party {party}", where="TcpChannel", fix="give 0 or 1, one to each process")
        self.peer = peer
        self.parties: tuple[int, ...] = (party,)
        self.rounds = self.bytes_sent = 0
        self._op = 0

    def step(self, label: str) -> None:
        """Name the exchanges from here on: both parties must be at the same step, or the exchange fails."""
        self._op = op_id(label)

    def exchange(self, messages: list[Message]) -> list[Tensor]:
        """One round: send row 0 of each message, return the other party's words in the message's dtype and device.

        Raises:
            FrameError: The other party is at another step, or sends other shapes or bits.
            PeerLost, PeerTimeout, VersionMismatch, TransportError: See :meth:`Peer.send`.
        """
        if any(m.words.dim() < 1 or m.words.shape[0] != 1 for m in messages):
            raise TransportError("a message holds another number of parties than one", where="TcpChannel", fix="pass this party's row only")
        (party,) = self.parties
        ours, theirs = [m for m in messages if m.reaches(1 - party)], [m for m in messages if m.reaches(party)]
        layouts = [Layout.of(m) for m in theirs]
        frame = self.peer.exchange(Kind.EXCHANGE, encode_words(ours), due=payload_size(layouts), op=self._op)
        try:
            received = iter(decode_words(frame.payload, layouts))
        except FrameError:
            self.peer.abort(Reason.FRAME)
            raise
        self.rounds += 1
        self.bytes_sent += sum(m.size() for m in ours)
        return [next(received).to(m.words.device) if m.reaches(party) else torch.zeros_like(m.words[0]) for m in messages]
