"""The simulated network, and the recording of who saw what."""

from __future__ import annotations

import time
from collections.abc import Mapping

import pytest
import torch

from privtensors.errors import ParameterError
from privtensors.transport.base import Message, pack
from privtensors.transport.frames import Kind, Layout, decode_words, encode_words, op_id
from privtensors.transport.memory import MemoryChannel
from privtensors.transport.record import RecordingChannel, Tape
from privtensors.transport.shaped import LAN, WAN, Link, ShapedChannel
from privtensors.transport.tcp import TcpChannel
from privtensors.transport.tls import Identity
from tests.unit.transport.loopback import WAIT, pair, together

WORDS = torch.arange(-500, 500).view(2, 500)
ROUNDS = [[Message(WORDS, 64), Message(WORDS.to(torch.int32), 20)], [Message(WORDS & 1, 1)], []]


def test_the_links_of_the_benchmarks() -> None:
    assert LAN.seconds(0) == pytest.approx(0.0005) and LAN.seconds(125_000_000) == pytest.approx(1.0005)
    assert WAN.seconds(0) == pytest.approx(0.020) and WAN.seconds(12_500_000) == pytest.approx(1.020)
    for bits, rtt in ((0, 0.1), (-1.0, 0.1), (1e9, -0.1), (float("nan"), 0.1), (1e9, float("nan"))):
        with pytest.raises(ParameterError):
            Link(bits, rtt)


def test_waits_as_long_as_the_link_takes_and_changes_nothing_else() -> None:
    slept: list[float] = []
    channel = ShapedChannel(MemoryChannel(), WAN, sleep=slept.append)
    assert channel.parties == (0, 1)
    for messages in ROUNDS:
        received = channel.exchange(messages)
        assert all(torch.equal(words, m.words[1]) for words, m in zip(received, messages, strict=True))
    sizes = [500 * 8 + 500 * 3, 63, 0]
    assert slept == pytest.approx([0.020 + 8 * size / 100e6 for size in sizes])
    assert (channel.rounds, channel.bytes_sent, channel.delay_s) == (3, sum(sizes), pytest.approx(sum(slept)))


def test_really_sleeps() -> None:
    start = time.perf_counter()
    ShapedChannel(MemoryChannel(), Link(1e9, 0.05)).exchange([])
    assert 0.025 <= time.perf_counter() - start < 1


def test_recording_both_views_in_one_process() -> None:
    tape = Tape()
    channel = RecordingChannel(MemoryChannel(), tape)
    for messages in ROUNDS:
        channel.exchange(messages)
    assert tape.view("party0") == b"".join(pack(m.words[1], m.bits) for messages in ROUNDS for m in messages)
    assert tape.view("party1") == b"".join(pack(m.words[0], m.bits) for messages in ROUNDS for m in messages)
    assert [(e.number, e.bits, e.shape, e.peer) for e in tape.received("party0")] == [
        (0, 64, (500,), "party1"), (0, 20, (500,), "party1"), (1, 1, (500,), "party1")]  # fmt: skip
    assert [e.data for e in tape.sent("party0")] == [e.data for e in tape.received("party1")]
    assert channel.rounds == 3 and "data" not in repr(tape.entries[0]) and repr(tape) == "Tape(12 entries)"


def test_recording_is_the_same_over_sockets(identities: Mapping[str, Identity]) -> None:
    together_tape, tapes, wire = Tape(), (Tape(), Tape()), Tape()
    both = RecordingChannel(MemoryChannel(), together_tape)
    with pair(identities) as peers, together() as start:
        wire.watch(peers[1], "client")

        def party(number: int) -> None:
            tcp = TcpChannel(peers[number], number)
            tcp.step("layer 1")
            channel = RecordingChannel(tcp, tapes[number])
            for messages in ROUNDS:
                channel.exchange([Message(m.words[number : number + 1], m.bits) for m in messages])

        running = [start(lambda n=n: party(n)) for n in (0, 1)]
        for messages in ROUNDS:
            both.exchange(messages)
        for done in running:
            done.result(WAIT)
    for number in (0, 1):
        name = f"party{number}"
        assert tapes[number].entries == [e for e in together_tape.entries if e.party == name] and tapes[number].view(name)
    # The frames hold those words, their shapes and bits, and nothing else.
    frames = wire.received("client")
    assert [(f.kind, f.op, f.number, f.peer) for f in frames] == [(Kind.EXCHANGE, op_id("layer 1"), i, "server") for i in range(3)]
    for frame, messages in zip(frames, ROUNDS, strict=True):
        assert frame.data == b"".join(encode_words(messages))
        words = decode_words(memoryview(bytearray(frame.data)), [Layout.of(m) for m in messages])
        assert [pack(w, m.bits) for w, m in zip(words, messages, strict=True)] == [pack(m.words[0], m.bits) for m in messages]
    assert len(wire.sent("client")) == 4  # the last is the goodbye
