"""Headers, readers and writers, greetings, and how tensors lie in a payload."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch

from privtensors.errors import FrameError, PeerLost, TransportError, VersionMismatch, WrongPeer
from privtensors.transport.base import Message
from privtensors.transport.frames import (
    HEADER_SIZE,
    NO_SESSION,
    FrameReader,
    FrameWriter,
    Header,
    Hello,
    Kind,
    Layout,
    Reason,
    decode_words,
    describe,
    encode_words,
    op_id,
    parse_description,
    parse_header,
    payload_size,
    reason_for,
    refusal,
    session_id,
)

SESSION = bytes(range(16))
HEADER = Header(Kind.EXCHANGE, SESSION, 7, op_id("layer 3"), 1000)


def feed(reader: FrameReader, data: bytes) -> list[tuple[Kind, bytes]]:
    """The frames of ``data``, given to the reader as it asks for it."""
    frames, at = [], 0
    while at < len(data):
        room = reader.room()
        piece = data[at : at + len(room)]
        room[: len(piece)] = piece
        at += len(piece)
        frame = reader.filled(len(piece))
        if frame is not None:
            frames.append((frame.kind, bytes(frame.payload)))
    return frames


def test_the_header_as_documented() -> None:
    raw = HEADER.encode()
    assert len(raw) == HEADER_SIZE == 44
    assert raw == b"PVTF" + struct.pack("<HBB", 1, 2, 0) + SESSION + struct.pack("<QIQ", 7, op_id("layer 3"), 1000)
    assert parse_header(raw) == HEADER


def test_step_ids() -> None:
    assert op_id("") == 0 != op_id("a") != op_id("b")
    assert op_id("layer 3") == op_id("layer 3") < 2**32


@pytest.mark.parametrize(
    ("raw", "error", "says"),
    [
        (HEADER.encode()[:-1], FrameError, "43 bytes"),
        (b"HTTP" + HEADER.encode()[4:], FrameError, "not a privtensors frame"),
        (HEADER.encode(version=2), VersionMismatch, "version 2"),
        (HEADER.encode()[:6] + b"\x08" + HEADER.encode()[7:], FrameError, "kind 8"),
        (HEADER.encode()[:6] + b"\x00" + HEADER.encode()[7:], FrameError, "kind 0"),
        (HEADER.encode()[:7] + b"\x01" + HEADER.encode()[8:], FrameError, "kind"),
        (HEADER.encode()[:-8] + b"\xff" * 8, FrameError, "over the limit of 2000"),
    ],
)
def test_bad_headers(raw: bytes, error: type[TransportError], says: str) -> None:
    with pytest.raises(error, match=says):
        parse_header(raw, 2000)


def test_the_limit_is_inclusive() -> None:
    assert parse_header(HEADER.encode(), 1000).length == 1000
    with pytest.raises(FrameError, match="limit"):
        parse_header(HEADER.encode(), 999)


def written(count: int) -> list[bytes]:
    writer = FrameWriter()
    writer.session = SESSION
    return [b"".join(writer.frame(Kind.EXCHANGE, [b"part", bytes([i]) * 20000, b"", b"end"])) for i in range(count)]


def reading() -> FrameReader:
    reader = FrameReader()
    reader.session = SESSION
    return reader


def test_writer_to_reader() -> None:
    reader = reading()
    frames = feed(reader, b"".join(written(3)))
    assert frames == [(Kind.EXCHANGE, b"part" + bytes([i]) * 20000 + b"end") for i in range(3)]
    assert reader.between


def test_small_parts_travel_together_and_large_ones_are_not_copied() -> None:
    large = bytes(1 << 20)
    buffers = FrameWriter().frame(Kind.REPLY, [b"a", large, b"b", b"c"])
    assert [len(b) for b in buffers] == [HEADER_SIZE + 1, 1 << 20, 2] and buffers[1].obj is large
    assert [len(b) for b in FrameWriter().frame(Kind.BYE)] == [HEADER_SIZE]
    assert [len(b) for b in FrameWriter().frame(Kind.REPLY, [b"", large, b""])] == [HEADER_SIZE, 1 << 20]


def test_an_empty_payload() -> None:
    writer = FrameWriter()
    assert feed(FrameReader(), b"".join(writer.frame(Kind.BYE) + writer.frame(Kind.HELLO, [b""]))) == [(Kind.BYE, b""), (Kind.HELLO, b"")]


@pytest.mark.parametrize(
    ("order", "says"), [([0, 0], "0 is replayed, 1 is due"), ([1], "1 is out of order, 0 is due"), ([0, 2], "2 is out")]
)
def test_replay_and_reordering(order: list[int], says: str) -> None:
    frames, reader = written(3), reading()
    with pytest.raises(FrameError, match=says):
        feed(reader, b"".join(frames[i] for i in order))


def test_another_session() -> None:
    reader = FrameReader()
    reader.session = bytes(15) + b"\1"
    with pytest.raises(FrameError, match="another session"):
        feed(reader, written(1)[0])
    with pytest.raises(FrameError, match="another session"):
        feed(reader, Header(Kind.HELLO, NO_SESSION, 0, 0, 0).encode())


def test_a_refusal_is_understood_before_the_session_is_known() -> None:
    assert feed(reading(), Header(Kind.ERROR, NO_SESSION, 0, 0, 1).encode() + b"\2") == [(Kind.ERROR, b"\2")]


def test_no_room_is_made_before_the_header_is_checked() -> None:
    reader = reading()

    def refuse(header: Header) -> None:
        assert len(reader.room()) == 0  # still the header's own buffer
        raise FrameError(f"{header.length} refused")

    reader.check = refuse
    with pytest.raises(FrameError, match="1073741824 refused"):
        feed(reader, Header(Kind.REQUEST, SESSION, 0, 0, 1 << 30).encode())


@pytest.mark.parametrize("size", [1, 16, 300])
def test_memory_that_was_not_filled_is_never_handed_out(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = 0xA5
    monkeypatch.setattr(np, "empty", lambda count, dtype: np.full(count, stale, dtype))  # what the process had there before
    header, payload = Header(Kind.EXCHANGE, SESSION, 0, 0, size).encode(), bytes(range(100)) * 3
    for cut in range(size):
        reader = reading()
        assert feed(reader, header + payload[:cut]) == [] and not reader.between
        assert len(reader.room()) == size - cut and set(reader.room()) == {stale}
        assert feed(reader, payload[cut:size]) == [(Kind.EXCHANGE, payload[:size])] and reader.between


def test_a_half_read_frame_is_seen() -> None:
    reader = reading()
    assert reader.between
    assert feed(reader, written(1)[0][:10]) == [] and not reader.between
    assert feed(reader, written(1)[0][10:100]) == [] and not reader.between


def test_payloads_are_not_shown() -> None:
    reader, frame = reading(), None
    data = Header(Kind.REPLY, SESSION, 0, 0, 6).encode() + b"secret"
    for i in range(len(data)):
        reader.room()[0] = data[i]
        frame = reader.filled(1)
    assert frame is not None and bytes(frame.payload) == b"secret" and "payload" not in repr(frame)


def test_greetings() -> None:
    hello = Hello("server", "client", {"policy": "abc", "model": "ß"})
    assert Hello.decode(hello.encode()) == hello
    assert Hello("a", "b", {}).nonce != Hello("a", "b", {}).nonce
    assert session_id(b"x" * 16, b"y" * 16) != session_id(b"y" * 16, b"x" * 16)
    for bad in (b"", hello.encode()[:-1], hello.encode() + b"\1", hello.nonce, hello.encode()[:24], hello.nonce + b"\1\0\xff\1\0a"):
        with pytest.raises(FrameError):
            Hello.decode(bad)
    with pytest.raises(FrameError, match="terms"):
        Hello("server", "client", {str(i): "x" * 9000 for i in range(9)}).encode()


def test_reasons_and_what_they_become() -> None:
    assert reason_for(FrameError("x")) is Reason.FRAME and reason_for(PeerLost("x")) is None
    assert isinstance(refusal(Reason.VERSION, ""), VersionMismatch) and isinstance(refusal(Reason.WRONG_PEER, ""), WrongPeer)
    assert isinstance(refusal(Reason.TIMEOUT, ""), PeerLost) and "timeout" in str(refusal(Reason.TIMEOUT, ""))
    assert "200" in str(refusal(200, ""))


MESSAGES = [
    Message(torch.arange(-6, 6).view(1, 3, 4), 64),
    Message(torch.arange(-6, 6).view(1, 3, 4), 52),
    Message(torch.tensor([[-1, 5, 2**31 - 1]], dtype=torch.int32), 32),
    Message(torch.tensor([[-1, 5, 9]], dtype=torch.int32), 20),
    Message(torch.tensor([[-1, 77]], dtype=torch.int16), 16),
    Message(torch.tensor([[-1, 77, 3]], dtype=torch.int8), 8),
    Message(torch.tensor([[1, 0, 1]], dtype=torch.int8), 1),
    Message(torch.tensor([7]), 64),
    Message(torch.empty(1, 0, 3, dtype=torch.int64), 64),
    Message(torch.arange(24).view(1, 4, 6)[:, ::2].transpose(1, 2), 64),
]


def test_tensors_in_a_payload() -> None:
    layouts = [Layout.of(m) for m in MESSAGES]
    data = bytearray(b"".join(encode_words(MESSAGES)))
    assert len(data) == payload_size(layouts) == len(describe(layouts)) + sum(m.size() for m in MESSAGES)
    for message, words in zip(MESSAGES, decode_words(memoryview(data), layouts), strict=True):
        own = message.words[0]
        assert words.dtype == own.dtype and words.shape == own.shape
        mask = -1 if message.bits == 8 * own.element_size() else (1 << message.bits) - 1
        assert torch.equal(words, own & mask)
    assert [(x.bits, x.shape) for x in parse_description(data)[0]] == [(x.bits, x.shape) for x in layouts]


def test_no_tensors() -> None:
    assert decode_words(memoryview(bytearray(b"".join(encode_words([])))), []) == []


@pytest.mark.parametrize(
    ("due", "says"),
    [
        ([Layout(64, (3, 4))], "sent 2 tensors, 1 are due"),
        ([Layout(64, (3, 4)), Layout(51, (3, 4))], "tensor 1 has 52 bits"),
        ([Layout(64, (4, 3)), Layout(52, (3, 4))], r"tensor 0 has 64 bits and shape \(3, 4\)"),
        ([Layout(64, (12,)), Layout(52, (3, 4))], "tensor 0"),
    ],
)
def test_parties_out_of_step(due: list[Layout], says: str) -> None:
    with pytest.raises(FrameError, match=says):
        decode_words(memoryview(bytearray(b"".join(encode_words(MESSAGES[:2])))), due)


def test_words_of_another_length() -> None:
    data = bytearray(b"".join(encode_words(MESSAGES[:2])))
    for wrong in (data[:-1], data + b"\0"):
        with pytest.raises(FrameError, match="payload of"):
            decode_words(memoryview(wrong), [Layout.of(m) for m in MESSAGES[:2]])


@pytest.mark.parametrize(
    "raw",
    [b"", b"\1\0\0", struct.pack("<I", 1), struct.pack("<IBB", 1, 65, 0) + bytes(2), struct.pack("<IBB", 1, 0, 0) + bytes(2),
     struct.pack("<IBB", 1, 8, 65) + bytes(600), struct.pack("<IBB", 1, 8, 2) + bytes(9), struct.pack("<I", 2**32 - 1) + bytes(100),
     struct.pack("<IBB", 1, 8, 0) + b"\0\1"],
)  # fmt: skip
def test_malformed_descriptions(raw: bytes) -> None:
    with pytest.raises(FrameError):
        parse_description(raw)
