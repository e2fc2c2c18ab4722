"""The transport interface: one exchange is one round; a message states how many low bits of each word it carries."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

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
    if not 1 <= bits <= 64:
        raise TransportError(f"cannot pack {bits} bits per word", where="pack", fix="use 1 to 64")
    flat = words.contiguous().reshape(-1).to(torch.int64)
    if bits in (1, 2, 4):
        per = 8 // bits
        flat = flat & ((1 << bits) - 1)
        flat = torch.nn.functional.pad(flat, (0, -flat.numel() % per)).view(-1, per)
        packed = (flat << (torch.arange(per) * bits)).sum(1).to(torch.uint8)
        return bytes(packed.numpy())
    if bits < 64:
        flat = flat & ((1 << bits) - 1)
    width = (bits + 7) // 8
    return bytes(flat.view(torch.uint8).view(-1, 8)[:, :width].contiguous().numpy())


def unpack(data: bytes | memoryview, bits: int, shape: tuple[int, ...]) -> Tensor:
    """Inverse of :func:`pack`: an int64 tensor of ``shape``, zero above ``bits``.

    Raises:
        TransportError: ``data`` has another length than ``shape`` and ``bits`` demand.
    """
    count = 1
    for n in shape:
        count *= n
    if not 1 <= bits <= 64 or len(data) != packed_size(count, bits):
        raise TransportError(
            f"{len(data)} bytes cannot hold {count} words of {bits} bits", where="unpack", fix="the peer runs another program or version"
        )
    raw = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    if bits in (1, 2, 4):
        per = 8 // bits
        words = (raw.to(torch.int64).unsqueeze(1) >> (torch.arange(per) * bits)) & ((1 << bits) - 1)
        return words.reshape(-1)[:count].reshape(shape)
    width = (bits + 7) // 8
    wide = torch.zeros(count, 8, dtype=torch.uint8)
    wide[:, :width] = raw.view(count, width)
    return wide.view(torch.int64).reshape(shape)


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
