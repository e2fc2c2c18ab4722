"""What the tests of the mpc protocols share: fixed seeds, channels that record or add junk, shares made by hand."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from privtensors.backends.mpc.backend import MPCBackend
from privtensors.backends.mpc.dealer import Dealer
from privtensors.backends.mpc.runtime import Protocol, Runtime
from privtensors.backends.mpc.shares import Shares, sign_extend
from privtensors.core.meter import Meter
from privtensors.transport.base import Channel, Message, pack, unpack
from privtensors.transport.memory import MemoryChannel

FRAC = 18
ULP = 2.0**-FRAC


def seed(n: int) -> bytes:
    """A fixed 32-byte seed: tests only."""
    return n.to_bytes(32, "big")


def above(words: Tensor, bits: int, generator: torch.Generator) -> Tensor:
    """``words`` with random bits at and above ``bits``."""
    width = 8 * words.element_size()
    if bits >= width:
        return words
    junk = torch.randint(-(1 << 62), 1 << 62, words.shape, generator=generator)
    return words ^ ((junk >> 3) << bits).to(words.dtype)


class JunkChannel(MemoryChannel):
    """Every received word has random junk above the bits that were meant to travel."""

    def __init__(self, seed_value: int = 0) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed_value)
        self.messages = 0

    def exchange(self, messages: list[Message]) -> list[Tensor]:
        self.messages += len(messages)
        return [above(m.words[1], m.bits, self.generator) for m in messages]


class PackedChannel(MemoryChannel):
    """Every message goes through the bytes a socket would carry; ``sent`` counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = 0

    def exchange(self, messages: list[Message]) -> list[Tensor]:
        received = []
        for m in messages:
            wire = [pack(row, m.bits) for row in m.words]
            assert len(wire[0]) == len(wire[1]) == m.size()
            self.sent += len(wire[0])
            received.append(unpack(wire[1], m.bits, tuple(m.words.shape[1:])))
        return received


class Lab:
    """A runtime whose dealer and input owner have fixed seeds, so that a run can be repeated word for word."""

    def __init__(self, channel: Channel | None = None, *, number: int = 1, frac: int = FRAC, seeded: bool = True) -> None:
        self.meter = Meter()
        seeds, inputs = (seed(number), seed(number + 1000)), (seed(number + 2000), seed(number + 3000))
        dealer = Dealer(self.meter, seeds, inputs) if seeded else Dealer(self.meter)
        self.backend = MPCBackend(types.SimpleNamespace(fractional_bits=frac), self.meter, channel=channel, dealer=dealer)
        self.rt: Runtime = self.backend.runtime
        self.generator = torch.Generator().manual_seed(number)

    def run(self, protocol: Protocol[Any]) -> Any:
        return self.rt.run(protocol)

    def words(self, words: Tensor, frac: int, ring: int = 64) -> Shares:
        """Shares of integers, with random junk above ``ring`` in both rows."""
        first = torch.randint(-(1 << 62), 1 << 62, words.shape, generator=self.generator) * 2 + torch.randint(
            0, 2, words.shape, generator=self.generator
        )
        data = torch.stack([first, words - first])
        return Shares(above(data, ring, self.generator), frac, ring)

    def share(self, x: Tensor, frac: int = FRAC, ring: int = 64) -> Shares:
        """Shares of numbers, rounded to ``2^-frac``."""
        return self.words((x.double() * 2.0**frac).round().to(torch.int64), frac, ring)

    def kernel(self, name: str, kinds: str, *args: Any, **kwargs: Any) -> Any:
        return self.backend.kernels[(name, kinds)].run(self.backend, *args, **kwargs)


def words_of(x: Shares) -> Tensor:
    """The shared integers."""
    return sign_extend(x.data[0] + x.data[1], x.ring)


def value(x: Shares) -> Tensor:
    """The shared numbers, float64."""
    return words_of(x).double() / 2.0**x.frac


def bits_of(x: Tensor) -> Tensor:
    """The plain bit of XOR-shared single bits."""
    return (x[0] ^ x[1]) & 1


def worst(got: Tensor, want: Tensor) -> float:
    """Largest absolute difference, 0 for empty tensors."""
    return float((got.double() - want.double()).abs().max()) if got.numel() else 0.0


@dataclass(frozen=True)
class Round:
    """A message as an observer of both parties sees it: only the bits that travel."""

    words: Tensor
    bits: int


class Tape:
    """Records every message, masked to the bits that travel."""

    def __init__(self) -> None:
        self.messages: list[Round] = []

    def __call__(self, message: Message) -> None:
        low = message.words.to(torch.int64)
        if message.bits < 64:
            low = low & ((1 << message.bits) - 1)
        self.messages.append(Round(low.clone(), message.bits))

    def channel(self) -> MemoryChannel:
        return MemoryChannel(observe=self)


def same(run: Callable[[Lab], Any], *, number: int = 1) -> None:
    """``run`` must give the same shares, bit for bit in their rings, with and without junk on the wire, and through packed bytes."""
    junk, packed, plain = JunkChannel(number), PackedChannel(), MemoryChannel()
    results = [flat(run(Lab(channel, number=number))) for channel in (plain, junk, packed)]
    for other in results[1:]:
        assert len(other) == len(results[0]) > 0
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)
    assert junk.messages > 0


def flat(result: Any) -> list[Tensor]:
    """Every tensor of a result, shares cut to their ring."""
    if isinstance(result, Shares):
        return [sign_extend(result.data, result.ring)]
    if isinstance(result, Tensor):
        return [result & 1 if result.dtype == torch.int8 else result]
    if isinstance(result, tuple | list):
        return [t for r in result for t in flat(r)]
    return []
