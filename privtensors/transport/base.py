"""The transport interface: one exchange is one round; a message states how many low bits of each word it carries."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from privtensors.errors import TransportError


@dataclass(frozen=True, slots=True)
class Message:
    """One tensor to be sent to the other computing party.

    Attributes:
        words: Integer tensor of shape ``(parties held here, *shape)``: each party's own words.
        bits: Low bits of each word that travel; whatever is above them never leaves the party.
        receiver: The only party that receives the other's words, 0 or 1; None for both.
    """

    words: Tensor
    bits: int
    receiver: int | None = None

    def reaches(self, party: int) -> bool:
        """Whether ``party`` receives the other party's words."""
        return self.receiver is None or self.receiver == party

    def size(self) -> int:
        """Bytes on the wire per party, see :func:`packed_size`."""
        return packed_size(math.prod(self.words.shape[1:]), self.bits)


def packed_size(count: int, bits: int) -> int:
    """Bytes of ``count`` words of ``bits`` bits: 1, 2 and 4-bit words are packed into bytes, larger ones take whole bytes."""
    if bits in (1, 2, 4):
        return (count * bits + 7) // 8
    return count * ((bits + 7) // 8)


def pack(words: Tensor, bits: int) -> bytes:
    """The low ``bits`` of each integer of ``words``, little endian, in :func:`packed_size` bytes."""
    return bytes(packed(words, bits))


def packed(words: Tensor, bits: int) -> memoryview:
    """As :func:`pack`, without the last copy: for sending."""
    if not 1 <= bits <= 64:
        raise TransportError(f"cannot pack {bits} bits per word", where="pack", fix="use 1 to 64")
    flat = words.detach().cpu().contiguous().view(-1).numpy()
    count = len(flat)
    if bits == 1:
        return _view(np.packbits((flat & 1).astype(np.uint8), bitorder="little"))
    if bits in (2, 4):
        per = 8 // bits
        low = np.zeros(-(-count // per) * per, dtype=np.uint8)
        low[:count] = flat & ((1 << bits) - 1)
        parts = low.reshape(-1, per) << (np.arange(per, dtype=np.uint8) * bits)
        return _view(np.bitwise_or.reduce(parts, axis=1).astype(np.uint8))
    width = (bits + 7) // 8
    if bits == 8 * flat.itemsize:
        return _view(flat.view(np.uint8))
    # Each word is written whole, the next one over its upper bytes: copies run upwards. Twenty times faster than moving bytes.
    whole = 4 if width <= 4 else 8
    out = np.empty(count * width + whole, dtype=np.uint8)
    spaced = np.ndarray((count,), f"<i{whole}", out.data, 0, (width,))
    spaced[...] = flat.astype(np.int64) & ((1 << bits) - 1) if bits % 8 else flat
    return _view(out[: count * width])


def _view(array: npt.NDArray[np.uint8]) -> memoryview:
    view: memoryview = array.data
    return view


def unpack(data: bytes | memoryview, bits: int, shape: tuple[int, ...]) -> Tensor:
    """Inverse of :func:`pack`: an int64 tensor of ``shape``, zero above ``bits``.

    Raises:
        TransportError: ``data`` has another length than ``shape`` and ``bits`` demand.
    """
    count = math.prod(shape)
    if not 1 <= bits <= 64 or len(data) != packed_size(count, bits):
        raise TransportError(
            f"{len(data)} bytes cannot hold {count} words of {bits} bits", where="unpack", fix="the peer runs another program or version"
        )
    if not count:
        return torch.zeros(shape, dtype=torch.int64)
    raw = np.frombuffer(data, dtype=np.uint8)
    if bits == 1:
        words = np.unpackbits(raw, count=count, bitorder="little").astype(np.int64)
    elif bits in (2, 4):
        per = 8 // bits
        words = ((raw[:, None] >> (np.arange(per, dtype=np.uint8) * bits)) & ((1 << bits) - 1)).reshape(-1)[:count].astype(np.int64)
    else:
        width = (bits + 7) // 8
        padded = np.empty(count * width + 8 - width, dtype=np.uint8)  # room for the last word's read of 8 bytes
        padded[: count * width] = raw
        padded[count * width :] = 0
        words = np.ndarray((count,), "<i8", padded.data, 0, (width,)).astype(np.int64)  # overlapping reads, one per word
        if width < 8:
            words &= (1 << (8 * width)) - 1
    return torch.from_numpy(words).view(shape)


class Channel(Protocol):
    """Exchanges messages between the two computing parties.

    Attributes:
        parties: Parties held by this process: ``(0, 1)`` in one process, ``(0,)`` or ``(1,)`` in a deployment, none at the dealer.
    """

    parties: tuple[int, ...]

    def step(self, label: str) -> None:
        """Name the rounds that follow: parties at different steps do not go on."""

    def exchange(self, messages: list[Message]) -> list[Tensor]:
        """One round. Send each message's words to the other party; return what the first party held here received.

        Each returned tensor has the message's ``shape`` without the party axis; only its low ``bits`` are meaningful. For a
        message that does not reach that party it is zero.
        """
