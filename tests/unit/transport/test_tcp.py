"""Connections and the channel over real sockets: any start order, full duplex, counters, and every fault ends in a typed error."""

from __future__ import annotations

import contextlib
import re
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from privtensors.errors import FrameError, PeerLost, PeerTimeout, TransportError, VersionMismatch, WrongPeer
from privtensors.transport.base import Message
from privtensors.transport.frames import HEADER_SIZE, Header, Kind, Layout, Reason, describe, encode_words, op_id
from privtensors.transport.memory import MemoryChannel
from privtensors.transport.tcp import Limits, Listener, Peer, TcpChannel, connect
from privtensors.transport.tls import Identity, server_context
from tests.unit.transport.loopback import QUICK, WAIT, Relay, Rogue, elapsed, pair, together

Identities = Mapping[str, Identity]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def words(count: int, seed: int = 0, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.randint(-(1 << 62), 1 << 62, (2, count), generator=torch.Generator().manual_seed(seed)).to(dtype)


# A connection.


def test_frames_of_every_kind_pass_in_order(identities: Identities) -> None:
    with pair(identities) as (server, client):
        for kind in (Kind.REQUEST, Kind.CORRELATION, Kind.REPLY, Kind.EXCHANGE):
            client.send(kind, [b"some ", b"bytes"], op=op_id("step"))
        for kind in (Kind.REQUEST, Kind.CORRELATION, Kind.REPLY, Kind.EXCHANGE):
            frame = server.recv(kind, op=op_id("step"))
            assert (frame.kind, bytes(frame.payload)) == (kind, b"some bytes")
        client.close()
        assert server.recv(Kind.REQUEST, Kind.BYE).kind is Kind.BYE


def test_the_client_may_come_first(identities: Identities) -> None:
    port = free_port()
    with together() as start:
        calling = start(lambda: connect(("127.0.0.1", port), identities["client"], "server", timeout=WAIT))
        time.sleep(0.3)
        with Listener(identities["server"], ["client"], port=port) as listener, listener.accept(WAIT) as server, calling.result(WAIT):
            assert server.name == "client"


def test_the_client_may_come_long_before_the_listener_accepts(identities: Identities) -> None:
    with Listener(identities["server"], ["client"]) as listener, together() as start:
        calling = start(lambda: connect(listener.address, identities["client"], "server", timeout=WAIT))
        time.sleep(0.3)
        with listener.accept(WAIT), calling.result(WAIT) as client:
            assert client.name == "server"


def test_a_listener_that_is_restarted(identities: Identities) -> None:
    """The first one takes the call and dies in the handshake; the caller tries again and meets the second."""
    port = free_port()
    with together() as start, socket.create_server(("127.0.0.1", port)) as first:
        calling = start(lambda: connect(("127.0.0.1", port), identities["client"], "server", timeout=WAIT))
        taken, _ = first.accept()
        first.close()
        taken.close()
        with Listener(identities["server"], ["client"], port=port) as listener, listener.accept(WAIT), calling.result(WAIT) as client:
            assert client.name == "server"


def test_nobody_there(identities: Identities) -> None:
    start = time.monotonic()
    with pytest.raises(PeerTimeout, match=r"not reached within 0\.3 s"):
        connect(("127.0.0.1", free_port()), identities["client"], "server", timeout=0.3)
    with Listener(identities["server"], ["client"]) as listener, pytest.raises(PeerTimeout, match="nobody connected"):
        listener.accept(0.1)
    assert elapsed(start) < 2
    with pytest.raises(TransportError, match="closed"):
        listener.accept(0.1)


def test_an_address_that_is_taken(identities: Identities) -> None:
    with Listener(identities["server"], ["client"]) as listener, pytest.raises(TransportError, match="cannot listen"):
        Listener(identities["server"], ["client"], port=listener.address[1])


@pytest.mark.parametrize("bad", [{"payload": 0}, {"idle_s": 0}, {"rate": -1}, {"idle_s": float("nan")}, {"rate": float("inf")}])
def test_limits_are_checked(bad: dict[str, Any]) -> None:
    with pytest.raises(TransportError, match="impossible"):
        Limits(**bad)


def test_one_listener_serves_several_parties(identities: Identities) -> None:
    with Listener(identities["server"], ["client", "dealer"]) as listener, together() as start:
        calls = [
            start(lambda n=n: connect(listener.address, identities[n], "server", timeout=WAIT)) for n in ("dealer", "client", "client")
        ]
        here = [listener.accept(WAIT) for _ in calls]
        there = [call.result(WAIT) for call in calls]
        assert sorted(p.name for p in here) == ["client", "client", "dealer"]
        assert len({p.session for p in here}) == 3 and {p.session for p in here} == {p.session for p in there}
        for peer in [*here, *there]:
            peer.close()


def test_100_mb_each_way_at_once(identities: Identities) -> None:
    size = 100_000_000
    with pair(identities) as (server, client), together() as start:
        going = start(lambda: server.exchange(Kind.EXCHANGE, [b"\1" * size]))
        here = client.exchange(Kind.EXCHANGE, [b"\2" * size])
        there = going.result(WAIT)
        assert here.payload[0] == here.payload[-1] == 1 and there.payload[0] == there.payload[-1] == 2
        assert len(here.payload) == len(there.payload) == size


def test_both_send_before_either_receives(identities: Identities) -> None:
    with pair(identities) as (server, client), together() as start:

        def turn(peer: Peer) -> list[bytes]:
            for part in (b"a" * 20_000_000, b"b"):
                peer.send(Kind.REQUEST, [part])
            return [bytes(peer.recv(Kind.REQUEST).payload[:1]) for _ in range(2)]

        both = [start(lambda p=p: turn(p)) for p in (server, client)]
        assert [b.result(WAIT) for b in both] == [[b"a", b"b"]] * 2


def test_counters_against_the_bytes_that_a_relay_saw(identities: Identities) -> None:
    with Listener(identities["server"], ["client"]) as listener, Relay(listener.address) as relay, together() as start:
        calling = start(lambda: connect(relay.address, identities["client"], "server", timeout=WAIT))
        with listener.accept(WAIT) as server, calling.result(WAIT) as client:
            first = start(lambda: server.exchange(Kind.EXCHANGE, [b"x"]))
            client.exchange(Kind.EXCHANGE, [b"y"])
            first.result(WAIT)
            up, down, sent, got = relay.up, relay.down, client.traffic.wire_sent, client.traffic.wire_received
            payload = [bytes(300_000), b"tail", bytes(70_000)]
            second = start(lambda: server.exchange(Kind.EXCHANGE, payload))
            client.exchange(Kind.EXCHANGE, payload)
            second.result(WAIT)
            assert relay.up - up == client.traffic.wire_sent - sent > 370_004
            assert relay.down - down == client.traffic.wire_received - got > 370_004
            assert client.traffic == server.traffic  # the exchange is symmetric
            greeting = client.traffic.payload_sent - 370_005
            assert client.traffic.frames_sent == 3 and 16 < greeting < 100


def test_a_selector_wakes_and_pending_tells_what_is_in_memory(identities: Identities) -> None:
    with pair(identities) as (server, client), selectors.DefaultSelector() as selector:
        selector.register(server, selectors.EVENT_READ)
        assert not selector.select(0) and not server.pending
        client.send(Kind.REQUEST, [b"one"])
        client.send(Kind.REQUEST, [b"two"])
        assert selector.select(WAIT)
        assert bytes(server.recv(Kind.REQUEST).payload) == b"one"
        assert server.pending or selector.select(WAIT)
        assert bytes(server.recv(Kind.REQUEST).payload) == b"two" and not server.pending


def test_closed_is_closed(identities: Identities) -> None:
    with pair(identities) as (server, client):
        client.close()
        client.close()
        for use in (lambda: client.send(Kind.REQUEST), lambda: client.recv(Kind.REPLY), lambda: client.exchange(Kind.EXCHANGE, [])):
            with pytest.raises(TransportError, match="cannot be used any more"):
                use()
        assert client.fileno() == -1 and not client.pending and "closed" in repr(client)
        with pytest.raises(PeerLost, match="goodbye"):
            server.recv(Kind.REQUEST)


def test_an_exception_aborts_both_ends(identities: Identities) -> None:
    with pair(identities) as (server, client):
        with pytest.raises(ZeroDivisionError), client:
            raise ZeroDivisionError
        with pytest.raises(PeerLost, match=r"aborted \(local\)"):
            server.recv(Kind.REQUEST)


def test_an_interrupt_closes(identities: Identities) -> None:
    with pair(identities) as (server, client):

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        client.observe = interrupt
        with pytest.raises(KeyboardInterrupt):
            client.send(Kind.REQUEST)
        with pytest.raises(TransportError, match="interrupted"):
            client.recv(Kind.REPLY)
        with pytest.raises(PeerLost):
            server.recv(Kind.REQUEST)


def test_two_threads_on_one_connection(identities: Identities) -> None:
    with pair(identities) as (server, client), together() as start:
        waiting = start(lambda: server.recv(Kind.REQUEST))
        time.sleep(0.1)
        with pytest.raises(TransportError, match="two threads"):
            server.send(Kind.REPLY)
        client.send(Kind.REQUEST)  # the first thread's wait is not disturbed
        assert waiting.result(WAIT).kind is Kind.REQUEST


def test_over_our_own_limit_nothing_is_sent(identities: Identities) -> None:
    with pair(identities, limits=Limits(payload=1000)) as (server, client):
        with pytest.raises(TransportError, match="1001 bytes"):
            client.send(Kind.REQUEST, [bytes(1001)])
        client.send(Kind.REQUEST, [bytes(1000)])
        assert len(server.recv(Kind.REQUEST).payload) == 1000


@pytest.mark.parametrize(
    ("ours", "theirs", "says"),
    [({"policy": "1"}, {"policy": "2"}, "differ in policy"), ({}, {"model": "x"}, "model"), ({"a": "1", "b": "1"}, {}, "a, b")],
)
def test_parties_that_do_not_agree(identities: Identities, ours: dict[str, str], theirs: dict[str, str], says: str) -> None:
    with Listener(identities["server"], ["client"], terms=ours) as listener, together() as start:
        calling = start(lambda: connect(listener.address, identities["client"], "server", terms=theirs, timeout=WAIT))
        with pytest.raises(VersionMismatch, match=says):
            listener.accept(1)
        with pytest.raises(VersionMismatch, match=says):
            calling.result(WAIT)


# The channel.


def test_the_channel_gives_what_memory_gives(identities: Identities) -> None:
    rounds = [
        [
            Message(words(1000), 64),
            Message(words(1000, 1), 52),
            Message(words(10, 2, torch.int32), 32),
            Message(words(10, 3, torch.int32), 20),
        ],
        [Message(words(9, 4, torch.int16), 16), Message(words(9, 5, torch.int8), 8), Message(words(9, 6, torch.int8) & 1, 1)],
        [],
        [Message(words(6, 7).view(2, 3, 1, 2).transpose(1, 3), 64), Message(words(2, 8).view(2, 2)[:, 0], 64), Message(words(0), 64)],
    ]
    with pair(identities) as (server, client), together() as start:
        channels = [TcpChannel(server, 0), TcpChannel(client, 1)]

        def party(row: int) -> list[list[torch.Tensor]]:
            return [channels[row].exchange([Message(m.words[row : row + 1], m.bits) for m in messages]) for messages in rounds]

        both = [start(lambda row=row: party(row)) for row in (0, 1)]
        received = [b.result(WAIT) for b in both]
    for number, messages in enumerate(rounds):
        expected = MemoryChannel().exchange(messages)
        for m, reference, at0, at1 in zip(messages, expected, received[0][number], received[1][number], strict=True):
            assert at0.dtype == at1.dtype == reference.dtype and at0.shape == at1.shape == reference.shape
            mask = -1 if m.bits == 8 * reference.element_size() else (1 << m.bits) - 1
            assert torch.equal(at0, reference & mask) and torch.equal(at1, m.words[0] & mask)
    size = sum(m.size() for messages in rounds for m in messages)
    assert [(c.parties, c.rounds, c.bytes_sent) for c in channels] == [((0,), 4, size), ((1,), 4, size)]
    described = sum(len(describe([Layout.of(m) for m in messages])) for messages in rounds)
    greeting = server.traffic.payload_sent - size - described
    assert 16 < greeting < 100


def test_a_message_for_one_party_goes_one_way(identities: Identities) -> None:
    both = [Message(words(5, 1), 64, receiver=0), Message(words(7, 2), 20), Message(words(3, 3), 64, receiver=1)]
    with pair(identities) as (server, client), together() as start:
        channels = [TcpChannel(server, 0), TcpChannel(client, 1)]

        def party(row: int) -> list[torch.Tensor]:
            return channels[row].exchange([Message(m.words[row : row + 1], m.bits, m.receiver) for m in both])

        at0, at1 = (b.result(WAIT) for b in [start(lambda row=row: party(row)) for row in (0, 1)])
    assert torch.equal(at0[0], both[0].words[1]) and not at0[2].any()
    assert torch.equal(at1[2], both[2].words[0]) and not at1[0].any()
    assert [c.bytes_sent for c in channels] == [both[1].size() + both[2].size(), both[0].size() + both[1].size()]


def test_the_channel_holds_one_party(identities: Identities) -> None:
    with pair(identities) as (server, client):
        with pytest.raises(TransportError, match="party 2"):
            TcpChannel(server, 2)
        for wrong in (words(3), torch.tensor(1)):
            with pytest.raises(TransportError, match="number of parties"):
                TcpChannel(server, 0).exchange([Message(wrong, 64)])
        client.send(Kind.REQUEST)  # nothing was sent and nothing broke
        assert server.recv(Kind.REQUEST)


@pytest.mark.parametrize(
    ("theirs", "label", "says"),
    [
        ([Message(words(8)[:1], 64)], "b", "step"),
        ([Message(words(9)[:1], 64)], "a", "payload of"),
        ([], "a", "payload of"),
        ([Message(words(8)[:1].view(1, 2, 4), 64)], "a", "payload of"),
        ([Message(words(8)[:1].view(torch.int32), 32)], "a", r"tensor 0 has 32 bits and shape \(16,\)"),
    ],
)
def test_out_of_step(identities: Identities, theirs: list[Message], label: str, says: str) -> None:
    with pair(identities) as (server, client), together() as start:
        ours, other = TcpChannel(server, 0), TcpChannel(client, 1)
        ours.step("a")
        other.step(label)
        going = start(lambda: other.exchange(theirs))
        with pytest.raises(FrameError) as found:
            ours.exchange([Message(words(8)[:1], 64)])
        error = going.exception(WAIT)
        assert isinstance(error, FrameError | PeerLost)  # it sees for itself, or is told
        texts = str(found.value), str(error)
        assert any(re.search(says, text) for text in texts), texts
        for channel in (ours, other):
            with pytest.raises(TransportError, match="cannot be used any more"):
                channel.exchange([])


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
    Fault("goodbye in the middle", send(lambda r: r.frame(Kind.BYE)), PeerLost, "goodbye"),
    Fault("aborted by the peer", send(lambda r: r.frame(Kind.ERROR, bytes([Reason.BUSY]))), PeerLost, "busy"),
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
