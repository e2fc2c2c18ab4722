"""The wire format: one header and one payload per frame, no pickle. Nothing here does input or output.

Integers are little endian. A header is 44 bytes::

    magic "PVTF" | version u16 | kind u8 | zero u8 | session 16 bytes | sequence u64 | op u32 | payload length u64

TLS protects integrity and order on the way, so there is no checksum. The checks here find a peer that is out of step, runs
another version, or is wrong: every frame carries its session and the next number of its direction, starting at 0 with HELLO.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

import numpy as np
import torch
from torch import Tensor

from privtensors.errors import FrameError, PartyBusy, PeerLost, PeerTimeout, TransportError, VersionMismatch, WrongPeer
from privtensors.transport.base import Message, packed, packed_size, unpack

MAGIC: Final = b"PVTF"
VERSION: Final = 1
NO_SESSION: Final = bytes(16)  # HELLO is sent before there is a session
GREETING_LIMIT: Final = 1 << 16
PAYLOAD_LIMIT: Final = 1 << 30

_HEADER: Final = struct.Struct("<4sHBB16sQIQ")
HEADER_SIZE: Final = _HEADER.size
_MAX_DIMS: Final = 64
_MAX_TENSORS: Final = 1 << 16
_JOIN: Final = 1 << 14  # buffers below this are joined: each write makes a TLS record, and with TCP_NODELAY a packet


class Kind(IntEnum):
    """What a frame is for."""

    HELLO = 1
    EXCHANGE = 2
    CORRELATION = 3
    REQUEST = 4
    REPLY = 5
    ERROR = 6
    BYE = 7


class Reason(IntEnum):
    """Why a party aborts: all that an ERROR frame says, so that no private value can get into it."""

    UNSPECIFIED = 0
    FRAME = 1
    VERSION = 2
    WRONG_PEER = 3
    TIMEOUT = 4
    LOCAL = 5
    BUSY = 6
    REFUSED = 7


def reason_for(error: TransportError) -> Reason | None:
    """What to tell the peer about an error; None where it is gone anyway."""
    kinds = {VersionMismatch: Reason.VERSION, WrongPeer: Reason.WRONG_PEER, FrameError: Reason.FRAME, PeerTimeout: Reason.TIMEOUT}
    return next((reason for kind, reason in kinds.items() if isinstance(error, kind)), None)


def refusal(code: int, where: str) -> TransportError:
    """The error that an ERROR frame's code stands for at its receiver."""
    if code == Reason.VERSION:
        return VersionMismatch("the peer refuses our version, policy or model", where=where, fix="see the peer's message")
    if code == Reason.WRONG_PEER:
        return WrongPeer("the peer expects another party", where=where, fix="see the peer's message")
    if code == Reason.BUSY:
        return PartyBusy("the peer has no room for another session", where=where, fix="try again later")
    # A request is refused by a reply, after which the session goes on; an ERROR frame ends it, whatever it says.
    said = Reason(code).name.lower() if code in Reason.__members__.values() else str(code)
    return PeerLost(f"the peer aborted ({said})", where=where, fix="see the peer's message")


@dataclass(frozen=True, slots=True)
class Header:
    """A frame's header.

    Attributes:
        session: 16 bytes, :data:`NO_SESSION` in HELLO.
        sequence: Number of the frame in its direction.
        op: :func:`op_id` of the protocol step, 0 where there is none.
        length: Bytes of payload.
    """

    kind: Kind
    session: bytes
    sequence: int
    op: int
    length: int

    def encode(self, version: int = VERSION) -> bytes:
        """The 44 bytes on the wire."""
        return _HEADER.pack(MAGIC, version, self.kind, 0, self.session, self.sequence, self.op, self.length)


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """A header with its payload, which may hold shares: it is not shown."""

    header: Header
    payload: memoryview = field(repr=False)

    @property
    def kind(self) -> Kind:
        """What the frame is for."""
        return self.header.kind


def op_id(label: str) -> int:
    """The 32-bit id of a protocol step: the first 4 bytes of SHA-256 of its label; 0 for the empty label."""
    return int.from_bytes(hashlib.sha256(label.encode()).digest()[:4], "little") if label else 0


def parse_header(data: bytes | bytearray | memoryview, limit: int = PAYLOAD_LIMIT) -> Header:
    """Read a header.

    Raises:
        FrameError: Not 44 bytes, no magic, an unknown kind, or a payload over ``limit`` bytes.
        VersionMismatch: Another version of this format.
    """
    if len(data) != HEADER_SIZE:
        raise FrameError(f"a header of {len(data)} bytes, {HEADER_SIZE} needed", where="frame", fix="the frame was cut off")
    magic, version, kind, zero, session, sequence, op, length = _HEADER.unpack(data)
    if magic != MAGIC:
        raise FrameError("what arrived is not a privtensors frame", where="frame", fix="check the address: another program answers there")
    if version != VERSION:
        raise VersionMismatch(f"the peer speaks version {version} of the wire format, this is {VERSION}", fix="install the same release")
    if zero or kind not in Kind.__members__.values():
        raise FrameError(f"unknown kind {kind} of frame", where="frame", fix="install the same release at every party")
    if length > limit:
        raise FrameError(f"a payload of {length} bytes is over the limit of {limit}", where="frame", fix="raise Limits.payload at both")
    return Header(Kind(kind), session, sequence, op, length)


class FrameWriter:
    """Numbers the frames of one direction.

    Attributes:
        session: Put into every header; set once the session is known.
    """

    def __init__(self) -> None:
        self.session = NO_SESSION
        self._next = 0

    def frame(self, kind: Kind, payload: Sequence[bytes | memoryview] = (), op: int = 0) -> list[memoryview]:
        """The buffers of the next frame, small ones joined, none empty."""
        length = sum(len(part) for part in payload)
        header = Header(kind, self.session, self._next, op, length).encode()
        self._next += 1
        buffers: list[memoryview] = []
        small: list[bytes | memoryview] = [header]
        for part in payload:
            if len(part) < _JOIN:
                small.append(part)
                continue
            buffers += [memoryview(b"".join(small)), memoryview(part)] if small else [memoryview(part)]
            small = []
        return [*buffers, memoryview(b"".join(small))] if any(len(part) for part in small) else buffers


class FrameReader:
    """Puts the frames of one direction together from bytes as they come, and checks each header before its payload is read.

    Attributes:
        session: What every header must carry.
        limit: Largest payload accepted.
        check: Called with each good header before room is made for the payload; may raise.
    """

    def __init__(self, limit: int = PAYLOAD_LIMIT) -> None:
        self.session = NO_SESSION
        self.limit = limit
        self.check: Callable[[Header], None] | None = None
        self._next = 0
        self._header: Header | None = None
        self._begin(memoryview(bytearray(HEADER_SIZE)))

    def _begin(self, buffer: memoryview) -> None:
        self._buffer, self._have = buffer, 0

    @property
    def between(self) -> bool:
        """Whether no frame is half read."""
        return self._header is None and self._have == 0

    def room(self) -> memoryview:
        """Where the next bytes go; never empty."""
        return self._buffer[self._have :]

    def filled(self, count: int) -> Frame | None:
        """Take note that ``count`` bytes were written to :meth:`room`; the frame they complete, if they do.

        Raises:
            FrameError: Not a frame, replayed, out of order, of another session, or too large.
            VersionMismatch: Another version of this format.
        """
        self._have += count
        if self._have < len(self._buffer):
            return None
        if self._header is None:
            header = parse_header(self._buffer, self.limit)
            self._admit(header)
            self._header = header
            if header.length:
                self._begin(np.empty(header.length, dtype=np.uint8).data)  # not cleared: it may be large
                return None
            self._buffer = self._buffer[:0]
        frame = Frame(self._header, self._buffer)
        self._header = None
        self._begin(memoryview(bytearray(HEADER_SIZE)))
        return frame

    def _admit(self, header: Header) -> None:
        # A party that refuses a greeting says so before it knows the session.
        if header.session != self.session and not (header.kind is Kind.ERROR and header.session == NO_SESSION):
            raise FrameError("the frame belongs to another session", where="frame", fix="start the session again")
        if header.sequence != self._next:
            what = "replayed" if header.sequence < self._next else "out of order"
            raise FrameError(f"frame {header.sequence} is {what}, {self._next} is due", where="frame", fix="start the session again")
        if self.check is not None:
            self.check(header)
        self._next += 1


@dataclass(frozen=True, slots=True)
class Hello:
    """The first frame of each direction.

    Attributes:
        sender: Party name of the sender; its certificate must say the same.
        receiver: Party name of whom the sender means to talk to.
        terms: What both must agree on, e.g. release and digests of policy and model. Nothing secret: it is sent as is.
        nonce: 16 fresh bytes; both nonces make the session id.
    """

    sender: str
    receiver: str
    terms: Mapping[str, str]
    nonce: bytes = field(default_factory=lambda: secrets.token_bytes(16))

    def encode(self) -> bytes:
        """The payload of a HELLO frame."""
        texts = [self.sender, self.receiver, *(text for pair in sorted(self.terms.items()) for text in pair)]
        data = b"".join([self.nonce, *(struct.pack("<H", len(raw)) + raw for raw in (text.encode() for text in texts))])
        if len(data) > GREETING_LIMIT:
            raise FrameError(f"the terms take {len(data)} bytes", where="hello", fix="agree on digests instead of texts")
        return data

    @classmethod
    def decode(cls, data: bytes | memoryview) -> Hello:
        """Inverse of :meth:`encode`.

        Raises:
            FrameError: Malformed.
        """
        raw, texts, at = bytes(data), [], 16
        try:
            while at < len(raw):
                (length,) = struct.unpack_from("<H", raw, at)
                at += 2 + length
                texts.append(raw[at - length : at].decode())
        except (struct.error, UnicodeDecodeError):
            at = -1
        if at != len(raw) or len(texts) < 2 or len(texts) % 2:
            raise FrameError("malformed greeting", where="hello", fix="install the same release at every party")
        return cls(texts[0], texts[1], dict(zip(texts[2::2], texts[3::2], strict=True)), raw[:16])


def session_id(listener: bytes, caller: bytes) -> bytes:
    """The session's 16-byte id from the nonces of both greetings."""
    return hashlib.sha256(b"privtensors session/1\0" + listener + caller).digest()[:16]


@dataclass(frozen=True, slots=True)
class Layout:
    """What one tensor of a payload looks like; the party axis is not part of ``shape``."""

    bits: int
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.int64

    @classmethod
    def of(cls, message: Message) -> Layout:
        """The layout of ``message`` as its receiver sees it."""
        return cls(message.bits, tuple(message.words.shape[1:]), message.words.dtype)

    def size(self) -> int:
        """Bytes of the packed words."""
        return packed_size(math.prod(self.shape), self.bits)


def describe(layouts: Sequence[Layout]) -> bytes:
    """Bits and shapes of every tensor, padded to a multiple of 8 bytes so that 64-bit words lie aligned.

    ``count u32``, then per tensor ``bits u8 | dims u8 | dim u64 …``. Dtypes stay at home: the words' low bits are what travels.
    """
    parts = [struct.pack("<I", len(layouts))]
    parts += [struct.pack(f"<BB{len(x.shape)}Q", x.bits, len(x.shape), *x.shape) for x in layouts]
    data = b"".join(parts)
    return data + bytes(-len(data) % 8)


def parse_description(data: bytes | bytearray | memoryview) -> tuple[list[Layout], int]:
    """The layouts at the start of a payload (as int64) and where the words begin.

    Raises:
        FrameError: Malformed.
    """
    layouts = []
    try:
        (count,) = struct.unpack_from("<I", data)
        if count > _MAX_TENSORS:
            raise FrameError(f"{count} tensors in one payload", where="payload", fix="install the same release")
        at = 4
        for _ in range(count):
            bits, dims = struct.unpack_from("<BB", data, at)
            if not 1 <= bits <= 64 or dims > _MAX_DIMS:
                raise FrameError("a tensor of impossible bits or dimensions", where="payload", fix="install the same release")
            layouts.append(Layout(bits, struct.unpack_from(f"<{dims}Q", data, at + 2)))
            at += 2 + 8 * dims
    except struct.error as error:
        raise FrameError("the description of the tensors is cut off", where="payload", fix="install the same release") from error
    end = at + -at % 8
    if len(data) < end or any(data[at:end]):
        raise FrameError("the description of the tensors is malformed", where="payload", fix="install the same release")
    return layouts, end


def encode_words(messages: Sequence[Message]) -> list[bytes | memoryview]:
    """The payload that carries row 0 of each message: the description, then each tensor's packed words.

    Words that travel whole are not copied.
    """
    payload: list[bytes | memoryview] = [describe([Layout.of(m) for m in messages])]
    for message in messages:
        row = message.words[0].detach().cpu()
        if message.bits == 8 * row.element_size():
            payload.append(row.contiguous().view(-1).view(torch.uint8).numpy().data)
        else:
            payload.append(packed(row, message.bits))
    return payload


def payload_size(layouts: Sequence[Layout]) -> int:
    """Bytes of the payload that :func:`encode_words` makes of messages with these layouts."""
    return len(describe(layouts)) + sum(x.size() for x in layouts)


def decode_words(payload: memoryview, expected: Sequence[Layout]) -> list[Tensor]:
    """The tensors of a payload, each in its expected shape and dtype; bits above the layout's are zero.

    They may share the payload's memory.

    Raises:
        FrameError: Number, bits or shapes of the tensors are not the expected ones: the parties are out of step.
    """
    ours = describe(expected)
    if payload[: len(ours)] != ours:
        raise FrameError(_difference(parse_description(payload)[0], expected), where="lockstep", fix="the parties run different programs")
    at, tensors = len(ours), []
    if len(payload) != payload_size(expected):
        raise FrameError(f"a payload of {len(payload)} bytes", where="lockstep", fix="the parties run different programs")
    for layout in expected:
        raw = payload[at : at + layout.size()]
        if len(raw) and layout.bits == 8 * layout.dtype.itemsize:
            flat = torch.frombuffer(raw, dtype=torch.uint8)
            aligned = flat if at % layout.dtype.itemsize == 0 else flat.clone()
            tensors.append(aligned.view(layout.dtype).view(layout.shape))
        else:
            tensors.append(unpack(raw, layout.bits, layout.shape).to(layout.dtype))
        at += len(raw)
    return tensors


def _difference(theirs: Sequence[Layout], ours: Sequence[Layout]) -> str:
    if len(theirs) != len(ours):
        return f"the peer sent {len(theirs)} tensors, {len(ours)} are due"
    for index, (got, due) in enumerate(zip(theirs, ours, strict=True)):
        if (got.bits, got.shape) != (due.bits, due.shape):
            return f"tensor {index} has {got.bits} bits and shape {got.shape}, due are {due.bits} bits and shape {due.shape}"
    return "the payload's description differs"
