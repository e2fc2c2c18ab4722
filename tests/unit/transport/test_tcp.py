"""Connections and the channel over real sockets: any start order, full duplex, counters."""

from __future__ import annotations

import re
import selectors
import socket
import time
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from privtensors.errors import FrameError, PeerLost, PeerTimeout, TransportError, VersionMismatch
from privtensors.transport.base import Message
from privtensors.transport.frames import Kind, Layout, describe, op_id
from privtensors.transport.memory import MemoryChannel
from privtensors.transport.tcp import Limits, Listener, Peer, TcpChannel, connect
from privtensors.transport.tls import Identity
from tests.unit.transport.loopback import WAIT, Relay, elapsed, free_port, pair, together, words

Identities = Mapping[str, Identity]

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
