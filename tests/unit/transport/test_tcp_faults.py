"""Faults on real sockets: rogue peers, garbage, cut and slow networks. Every one ends in a typed error, in time."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest

from privtensors.errors import FrameError, PartyBusy, PeerLost, PeerTimeout, TransportError, VersionMismatch, WrongPeer
from privtensors.transport.base import Message
from privtensors.transport.frames import HEADER_SIZE, Header, Kind, Reason, encode_words
from privtensors.transport.tcp import Limits, Listener, TcpChannel, connect
from privtensors.transport.tls import Identity, server_context
from tests.unit.transport.loopback import QUICK, WAIT, Relay, Rogue, elapsed, pair, together, words

Identities = Mapping[str, Identity]

# Faults. A rogue holds the client's certificate and speaks to the server's channel.


@dataclass(frozen=True)
class Fault:
    name: str
    act: Callable[[Rogue], None]
    error: type[TransportError]
    says: str = ""
    told: Reason | None = None  # what the rogue is told, where it still listens


MESSAGE = [Message(words(500)[:1], 64)]
PAYLOAD = b"".join(encode_words(MESSAGE))


def send(data: Callable[[Rogue], bytes]) -> Callable[[Rogue], None]:
    return lambda rogue: rogue.sock.sendall(data(rogue))


def half(rogue: Rogue, then: Callable[[Rogue], None], count: int) -> None:
    rogue.sock.sendall(rogue.frame(Kind.EXCHANGE, PAYLOAD)[:count])
    then(rogue)


def replay(rogue: Rogue) -> None:
    frame = rogue.frame(Kind.EXCHANGE, PAYLOAD)
    rogue.sock.sendall(frame + frame)


def oversize(rogue: Rogue) -> None:
    rogue.sock.sendall(Header(Kind.EXCHANGE, rogue.session, rogue.sequence, 0, (1 << 30) + 1).encode())


def end_tls(rogue: Rogue) -> None:
    """A proper end of TLS, which the other side reads as an end of file."""
    with contextlib.suppress(OSError):
        rogue.sock.unwrap()


def drip(rogue: Rogue) -> None:
    with contextlib.suppress(OSError):
        for byte in rogue.frame(Kind.EXCHANGE, PAYLOAD):
            rogue.sock.sendall(bytes([byte]))
            time.sleep(0.05)


FAULTS = [
    Fault("killed before it answers", Rogue.reset, PeerLost),
    Fault("killed within a header", lambda r: half(r, Rogue.reset, 20), PeerLost),
    Fault("killed within a payload", lambda r: half(r, Rogue.reset, 2000), PeerLost),
    Fault("closed without a goodbye", Rogue.close, PeerLost),
    Fault("truncated in a header", lambda r: half(r, Rogue.close, 43), PeerLost),
    Fault("truncated in a payload", lambda r: half(r, Rogue.close, HEADER_SIZE + 1), PeerLost),
    Fault("TLS ended within a payload", lambda r: half(r, end_tls, HEADER_SIZE + 1000), PeerLost, "without a goodbye"),
    Fault("TLS ended within a header", lambda r: half(r, end_tls, 20), PeerLost, "without a goodbye"),
    Fault("goodbye in the middle", send(lambda r: r.frame(Kind.BYE)), PeerLost, "goodbye"),
    Fault("aborted by the peer", send(lambda r: r.frame(Kind.ERROR, bytes([Reason.LOCAL]))), PeerLost, "aborted"),
    Fault("refused as busy", send(lambda r: r.frame(Kind.ERROR, bytes([Reason.BUSY]))), PartyBusy, "no room"),
    Fault("stalled at once", lambda r: None, PeerTimeout, "0.5 s", Reason.TIMEOUT),
    Fault("stalled within a header", lambda r: half(r, lambda _: None, 20), PeerTimeout, "", Reason.TIMEOUT),
    Fault("stalled within a payload", lambda r: half(r, lambda _: None, 2000), PeerTimeout, "", Reason.TIMEOUT),
    Fault("dripping", drip, PeerTimeout, "", Reason.TIMEOUT),
    Fault("garbage", send(lambda r: b"\x7fELF" * 100), FrameError, "not a privtensors frame", Reason.FRAME),
    Fault("replayed", replay, FrameError, "replayed", Reason.FRAME),
    Fault("reordered", send(lambda r: r.frame(Kind.EXCHANGE, PAYLOAD, step=1)), FrameError, "out of order", Reason.FRAME),
    Fault("another session", send(lambda r: r.frame(Kind.EXCHANGE, PAYLOAD, session=bytes(16))), FrameError, "session", Reason.FRAME),
    Fault("another kind", send(lambda r: r.frame(Kind.REPLY, PAYLOAD)), FrameError, "a frame REPLY", Reason.FRAME),
    Fault("another step", send(lambda r: r.frame(Kind.EXCHANGE, PAYLOAD, op=5)), FrameError, "step", Reason.FRAME),
    Fault("oversize", oversize, FrameError, "over the limit", Reason.FRAME),
    Fault("another length", send(lambda r: r.frame(Kind.EXCHANGE, PAYLOAD + b"\0")), FrameError, "payload", Reason.FRAME),
    Fault("other shapes", send(lambda r: r.frame(Kind.EXCHANGE, bytes(len(PAYLOAD)))), FrameError, "0 tensors", Reason.FRAME),
    Fault("malformed ERROR", send(lambda r: r.frame(Kind.ERROR, b"")), FrameError, "ERROR", Reason.FRAME),
    Fault("another version", send(lambda r: r.frame(Kind.EXCHANGE, PAYLOAD, version=2)), VersionMismatch, "version 2", Reason.VERSION),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.name)
def test_fault(identities: Identities, fault: Fault) -> None:
    with Listener(identities["server"], ["client"], limits=QUICK) as listener, together() as start:
        calling = start(lambda: Rogue(identities["client"], listener.address))
        accepting = start(lambda: listener.accept(WAIT))
        rogue = calling.result(WAIT)
        rogue.greet()
        channel = TcpChannel(accepting.result(WAIT), 0)
        begin = time.monotonic()
        acting = start(lambda: fault.act(rogue))
        with pytest.raises(fault.error, match=fault.says or None) as found:
            for _ in range(2):  # a replayed frame shows in the second round
                channel.exchange(MESSAGE)
        assert type(found.value) is fault.error and elapsed(begin) < 3
        with pytest.raises(TransportError, match="cannot be used any more"):
            channel.exchange(MESSAGE)
        assert channel.peer.fileno() == -1 and channel.rounds == (1 if fault.name == "replayed" else 0)
        acting.result(WAIT)
        if fault.told is not None and fault.name != "dripping":
            header, payload = rogue.read_frame()
            while header.kind is Kind.EXCHANGE:
                header, payload = rogue.read_frame()
            assert header.kind is Kind.ERROR and payload == bytes([fault.told])
            with pytest.raises(OSError):
                rogue.read(1)
        rogue.close()
        # The next request is served.
        again = start(lambda: connect(listener.address, identities["client"], "server", timeout=WAIT))
        with listener.accept(WAIT) as server, again.result(WAIT) as client:
            client.send(Kind.REQUEST, [b"next"])
            assert bytes(server.recv(Kind.REQUEST).payload) == b"next"


@pytest.mark.parametrize("greeting", ["version", "name", "kind", "malformed", "terms"])
def test_faulty_greetings(identities: Identities, greeting: str) -> None:
    errors: list[TransportError] = []
    with Listener(identities["server"], ["client"], on_refused=errors.append) as listener, together() as start:

        def act() -> bytes:
            rogue = Rogue(identities["client"], listener.address)
            try:
                if greeting == "name":
                    rogue.name = "dealer"
                if greeting == "kind":
                    rogue.read_frame()
                    rogue.sock.sendall(rogue.frame(Kind.REQUEST))
                elif greeting == "malformed":
                    rogue.read_frame()
                    rogue.sock.sendall(rogue.frame(Kind.HELLO, b"hi"))
                else:
                    rogue.greet({"a": "b"} if greeting == "terms" else None, version=9 if greeting == "version" else 1)
                return rogue.read_frame()[1]
            finally:
                rogue.close()

        acting = start(act)
        expected = {"version": VersionMismatch, "name": WrongPeer, "terms": VersionMismatch}.get(greeting, FrameError)
        with pytest.raises(expected):
            listener.accept(1)
        told = {VersionMismatch: Reason.VERSION, WrongPeer: Reason.WRONG_PEER, FrameError: Reason.FRAME}[expected]
        assert acting.result(WAIT) == bytes([told])
        assert [type(e) for e in errors] == [expected]


def test_a_listener_of_another_version(identities: Identities) -> None:
    """What the caller sends to it: its certificate, then only that it refuses."""
    context = server_context(identities["server"])
    with socket.create_server(("127.0.0.1", 0)) as server, together() as start:
        calling = start(lambda: connect(server.getsockname(), identities["client"], "server", timeout=WAIT))
        raw, _ = server.accept()
        with context.wrap_socket(raw, server_side=True) as sock:
            sock.sendall(Header(Kind.HELLO, bytes(16), 0, 0, 0).encode(version=2))
            with pytest.raises(VersionMismatch):
                calling.result(WAIT)
            data = sock.recv(1000)
            assert data[HEADER_SIZE:] == bytes([Reason.VERSION])


def garbage(address: tuple[str, int], data: bytes, stop: threading.Event) -> None:
    with socket.create_connection(address, WAIT) as sock:
        sock.sendall(data)
        stop.wait(WAIT)


@pytest.mark.parametrize("data", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", bytes(5000), b"\x16\x03\x01\x02\x00" + b"\xff" * 600], ids=len)
def test_garbage_on_the_port(identities: Identities, data: bytes) -> None:
    errors: list[TransportError] = []
    stop = threading.Event()
    with Listener(identities["server"], ["client"], handshake_s=0.4, on_refused=errors.append) as listener, together() as start:
        noise = [start(lambda: garbage(listener.address, data, stop)) for _ in range(3)]
        time.sleep(0.1)
        begin = time.monotonic()
        with pytest.raises(PeerTimeout if not data else FrameError):
            listener.accept(0.8)
        assert elapsed(begin) < 3 and len(errors) == 3
        more = start(lambda: garbage(listener.address, data, stop))
        time.sleep(0.1)
        calling = start(lambda: connect(listener.address, identities["client"], "server", timeout=WAIT))
        with listener.accept(WAIT), calling.result(WAIT):
            pass
        assert elapsed(begin) < 4
        stop.set()
        for call in [*noise, more]:
            call.result(WAIT)


def test_silent_callers_cannot_use_up_the_handshakes(identities: Identities) -> None:
    stop = threading.Event()
    with Listener(identities["server"], ["client"], handshake_s=0.4, callers=2) as listener, together() as start:
        noise = [start(lambda: garbage(listener.address, b"", stop)) for _ in range(4)]
        time.sleep(0.1)
        calling = start(lambda: connect(listener.address, identities["client"], "server", timeout=WAIT))
        with listener.accept(WAIT), calling.result(WAIT):
            pass
        stop.set()
        for call in noise:
            call.result(WAIT)


def test_garbage_where_a_listener_should_be(identities: Identities) -> None:
    stop = threading.Event()
    for data, error in ((b"220 mail.example.org ESMTP\r\n" * 9, FrameError), (b"", PeerTimeout)):
        with socket.create_server(("127.0.0.1", 0)) as server, together() as start:
            calling = start(lambda server=server: connect(server.getsockname(), identities["client"], "server", timeout=0.7))
            sock, _ = server.accept()
            with sock:
                sock.sendall(data)
                with pytest.raises(error):
                    calling.result(WAIT)
    stop.set()


def through(identities: Identities, relay: Callable[[tuple[str, int]], Relay]) -> tuple[BaseException | None, BaseException | None, float]:
    """What two rounds of 1 MB each way end in at server and client, with ``relay`` between them."""
    limits = Limits(idle_s=1.0)
    big = [Message(words(125_000)[:1], 64)]
    with Listener(identities["server"], ["client"], limits=limits) as listener, relay(listener.address) as between, together() as start:
        calling = start(lambda: connect(between.address, identities["client"], "server", limits=limits, timeout=WAIT))
        with listener.accept(WAIT) as server, calling.result(WAIT) as client:
            begin = time.monotonic()

            def party(channel: TcpChannel) -> None:
                for _ in range(2):  # a party that has got its part finds out in the next round
                    channel.exchange(big)

            both = [start(lambda c=c: party(c)) for c in (TcpChannel(server, 0), TcpChannel(client, 1))]
            errors = [b.exception(WAIT) for b in both]
            return errors[0], errors[1], elapsed(begin)


def test_a_network_that_cuts_holds_or_changes_bytes(identities: Identities) -> None:
    at = 500_000
    assert through(identities, Relay)[:2] == (None, None)
    cut = through(identities, lambda address: Relay(address, cut_at=at))
    assert [type(e) for e in cut[:2]] == [PeerLost, PeerLost] and cut[2] < 3
    held = through(identities, lambda address: Relay(address, hold_at=at))
    assert type(held[0]) is PeerTimeout and isinstance(held[1], PeerTimeout | PeerLost) and held[2] < 4
    spoilt = through(identities, lambda address: Relay(address, spoil_at=at))
    assert type(spoilt[0]) is FrameError and isinstance(spoilt[1], PeerLost) and spoilt[2] < 3


def test_a_peer_that_takes_nothing(identities: Identities) -> None:
    with pair(identities, limits=QUICK) as (server, client):
        begin = time.monotonic()
        with pytest.raises(PeerTimeout):
            server.send(Kind.CORRELATION, [bytes(50_000_000)])
        assert elapsed(begin) < 3
        with pytest.raises(PeerLost):  # a whole frame or nothing
            client.recv(Kind.CORRELATION)


def test_a_slow_but_steady_peer_is_no_stalled_one(identities: Identities) -> None:
    with Listener(identities["server"], ["client"], limits=QUICK) as listener, together() as start:
        calling = start(lambda: Rogue(identities["client"], listener.address))
        accepting = start(lambda: listener.accept(WAIT))
        rogue = calling.result(WAIT)
        rogue.greet()
        payload = bytes(2_000_000)

        def act() -> None:
            frame = rogue.frame(Kind.REPLY, payload)
            for i in range(5):
                rogue.sock.sendall(frame[i * 500_000 : (i + 1) * 500_000])
                time.sleep(0.2)

        with accepting.result(WAIT) as server:
            acting = start(act)
            assert bytes(server.recv(Kind.REPLY).payload) == payload  # took 0.8 s, idle is 0.5 s
            acting.result(WAIT)
            rogue.close()
