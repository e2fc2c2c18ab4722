"""Frames under arbitrary bytes, cuts and changes: the frames that were sent, or a typed error."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privtensors.errors import FrameError, TransportError, VersionMismatch
from privtensors.testing.strategies import shapes
from privtensors.transport.base import Message
from privtensors.transport.frames import (
    HEADER_SIZE,
    FrameReader,
    FrameWriter,
    Hello,
    Kind,
    Layout,
    decode_words,
    encode_words,
    parse_description,
    parse_header,
)

SESSION = b"0123456789abcdef"
LIMIT = 1 << 16
KINDS = st.sampled_from(Kind)
FRAMES = st.lists(st.tuples(KINDS, st.lists(st.binary(max_size=300), max_size=3), st.integers(0, 2**32 - 1)), max_size=5)


def encoded(frames: list[tuple[Kind, list[bytes], int]]) -> list[bytes]:
    writer = FrameWriter()
    writer.session = SESSION
    return [b"".join(writer.frame(kind, payload, op)) for kind, payload, op in frames]


def feed(data: bytes, cuts: list[int]) -> tuple[list[tuple[Kind, bytes, int]], bool]:
    """The frames of ``data`` given in pieces of the lengths ``cuts``, over and over; and whether nothing is half read."""
    reader = FrameReader(LIMIT)
    reader.session = SESSION
    frames, at, turn = [], 0, 0
    while at < len(data):
        room = reader.room()
        count = min(len(room), cuts[turn % len(cuts)], len(data) - at)
        room[:count] = data[at : at + count]
        at, turn = at + count, turn + 1
        frame = reader.filled(count)
        if frame is not None:
            frames.append((frame.kind, bytes(frame.payload), frame.header.op))
    return frames, reader.between


@given(FRAMES, st.lists(st.integers(1, 100), min_size=1, max_size=4))
def test_any_cutting_gives_the_frames_back(frames: list[tuple[Kind, list[bytes], int]], cuts: list[int]) -> None:
    got, between = feed(b"".join(encoded(frames)), cuts)
    assert got == [(kind, b"".join(payload), op) for kind, payload, op in frames] and between


@given(FRAMES.filter(bool), st.data())
def test_a_cut_off_stream_gives_whole_frames_only(frames: list[tuple[Kind, list[bytes], int]], data: st.DataObject) -> None:
    whole = encoded(frames)
    stream = b"".join(whole)
    cut = data.draw(st.integers(0, len(stream) - 1))
    got, between = feed(stream[:cut], [50])
    ends = [sum(len(f) for f in whole[: i + 1]) for i in range(len(whole))]
    assert len(got) == sum(end <= cut for end in ends)
    assert between == (cut in [0, *ends])


@given(st.binary(max_size=400))
@settings(max_examples=300)
def test_garbage_is_never_a_frame(data: bytes) -> None:
    try:
        got, between = feed(data, [37])
    except (FrameError, VersionMismatch):
        return
    assert got == [] and (len(data) < HEADER_SIZE) and between == (not data)


@given(FRAMES.filter(bool), st.data())
@settings(max_examples=300)
def test_one_changed_byte(frames: list[tuple[Kind, list[bytes], int]], data: st.DataObject) -> None:
    # TLS finds such a change first. Without it: a typed error, an unfinished frame, or a difference in kind, step or payload.
    stream = b"".join(encoded(frames))
    at = data.draw(st.integers(0, len(stream) - 1))
    changed = stream[:at] + bytes([stream[at] ^ data.draw(st.integers(1, 255))]) + stream[at + 1 :]
    try:
        got, between = feed(changed, [64])
    except (FrameError, VersionMismatch):
        return
    assert not between or got != [(kind, b"".join(payload), op) for kind, payload, op in frames]


@given(FRAMES.filter(lambda f: len(f) > 1), st.data())
def test_any_other_order_is_refused(frames: list[tuple[Kind, list[bytes], int]], data: st.DataObject) -> None:
    whole = encoded(frames)
    order = data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=6).filter(lambda o: o != list(range(len(o)))))
    with pytest.raises(FrameError, match="is due"):
        feed(b"".join(whole[i] for i in order), [64])


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_parsers_know_only_their_own_errors(data: bytes) -> None:
    for parse in (parse_header, Hello.decode, parse_description):
        try:
            parse(data)
        except TransportError:
            continue


@given(st.binary(max_size=60), st.lists(st.tuples(st.integers(1, 64), shapes()), max_size=3))
def test_a_garbage_payload_is_never_tensors(data: bytes, layouts: list[tuple[int, tuple[int, ...]]]) -> None:
    expected = [Layout(*x) for x in layouts]
    try:
        decode_words(memoryview(bytearray(data)), expected)
    except TransportError:
        return
    assert parse_description(data)[0] == expected  # hypothesis found a good payload


WIDTH = {torch.int64: 64, torch.int32: 32, torch.int16: 16, torch.int8: 8}


@given(st.lists(st.tuples(st.sampled_from(list(WIDTH)), st.integers(1, 64), shapes(), st.integers(0, 2**20)), max_size=4))
@settings(max_examples=200)
def test_words_arrive_as_they_left(specs: list[tuple[torch.dtype, int, tuple[int, ...], int]]) -> None:
    messages = []
    for dtype, bits, shape, number in specs:
        generator = torch.Generator().manual_seed(number)
        words = torch.randint(-(1 << 62), 1 << 62, (1, *shape), generator=generator).to(dtype)
        messages.append(Message(words, min(bits, WIDTH[dtype])))
    data = memoryview(bytearray(b"".join(encode_words(messages))))
    for message, words in zip(messages, decode_words(data, [Layout.of(m) for m in messages]), strict=True):
        own = message.words[0]
        mask = -1 if message.bits == WIDTH[own.dtype] else (1 << message.bits) - 1
        assert words.dtype == own.dtype and torch.equal(words, own & mask)
