"""Runs protocols. A protocol is a generator: it yields the messages of one round and receives what they open to."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar, cast
from typing import Protocol as Interface

import torch
from torch import Tensor

from privtensors.backends.mpc.dealer import Correlations
from privtensors.backends.mpc.watch import Watch
from privtensors.core.meter import Meter
from privtensors.transport.base import Channel, Message

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Open:
    """One tensor to be opened: masked and to both parties, or a result to the one party that may learn it.

    Attributes:
        words: ``(parties held here, *shape)``, any integer dtype.
        bits: Low bits that travel.
        xor: Boolean shares instead of additive ones.
        receiver: The only party that learns what is opened, 0 or 1; None for both.
    """

    words: Tensor
    bits: int
    xor: bool = False
    receiver: int | None = None


# One round per yield; the reply holds the opened tensors in the same order, without the party axis.
Protocol = Generator[list[Open], list[Tensor], T]


def parallel(*protocols: Protocol[Any]) -> Protocol[tuple[Any, ...]]:
    """Run protocols side by side: their messages share rounds, so the whole takes as many rounds as the longest."""
    results: list[Any] = [None] * len(protocols)
    waiting: dict[int, list[Open]] = {}
    for index, protocol in enumerate(protocols):
        try:
            waiting[index] = next(protocol)
        except StopIteration as stop:
            results[index] = stop.value
    while waiting:
        replies = yield [message for messages in waiting.values() for message in messages]
        position, after = 0, {}
        for index, messages in waiting.items():
            reply = replies[position : position + len(messages)]
            position += len(messages)
            try:
                after[index] = protocols[index].send(reply)
            except StopIteration as stop:
                results[index] = stop.value
        waiting = after
    return tuple(results)


class Runtime:
    """What a protocol run needs: the channel, the dealer's randomness, the meter and the fixed-point format.

    Attributes:
        frac: Fractional bits of a normal value.
        parties: How many parties are held here: 2 in one process, 1 at a party, 0 at the dealer.
        first: Row of party 0 among the parties held here, or None.
        headroom: Integer bits that every product keeps free for its magnitude: ``62 - 2 · frac``.
        watch: Collects range checks; None where ranges are not checked.
    """

    def __init__(self, channel: Channel, dealer: Correlations, meter: Meter, frac: int, watch: Watch | None = None) -> None:
        self.channel, self.dealer, self.meter, self.frac = channel, dealer, meter, frac
        self.parties = len(channel.parties)
        self.first = channel.parties.index(0) if 0 in channel.parties else None
        self.headroom = 62 - 2 * frac
        self.watch = watch
        self._runs = 0

    def add_public(self, shares: Tensor, value: Tensor | int) -> Tensor:
        """Add a public value to additive shares in place: party 0's share takes it, where that party is held."""
        if self.first is not None:
            shares[self.first] += value
        return shares

    def flip_public(self, bits: Tensor, value: Tensor | int = 1) -> Tensor:
        """XOR a public value into boolean shares in place: party 0's share takes it."""
        if self.first is not None:
            bits[self.first] ^= value
        return bits

    def constant(self, value: Tensor) -> Tensor:
        """A public value as shares: party 0's share is the value, the other's zero."""
        return self.add_public(torch.zeros(self.parties, *value.shape, dtype=value.dtype), value)

    def run(self, protocol: Protocol[T]) -> T:
        """Drive ``protocol`` to its end, one exchange per round.

        Parties at different protocols, or at the same one with other shapes, do not go on.
        """
        self._runs += 1
        name = getattr(protocol, "__qualname__", "")
        self.channel.step(f"{self._runs} {name}")
        if self.watch is not None:
            self.watch.begin(name)
        try:
            outgoing = next(protocol)
            while True:
                messages = [Message(o.words, o.bits, o.receiver) for o in outgoing]
                received = self.channel.exchange(messages)  # on the CPU where they came over the network
                self.meter.rounds += 1
                self.meter.bytes_sent += sum(m.size() for m in messages)
                outgoing = protocol.send([self._joined(own, other) for own, other in zip(outgoing, received, strict=True)])
        except StopIteration as stop:
            return cast(T, stop.value)

    def _joined(self, own: Open, other: Tensor) -> Tensor:
        if not self.parties:
            return other
        other = other.to(own.words.device)
        return torch.bitwise_xor(own.words[0], other) if own.xor else own.words[0] + other


class Host(Interface):
    """The part of the backend that kernels use."""

    frac: int
    runtime: Runtime

    def run(self, protocol: Protocol[T]) -> T:
        """Drive a protocol to its end."""

    def encode(self, x: Tensor, frac: int) -> Tensor:
        """Fixed-point words of a public tensor."""
