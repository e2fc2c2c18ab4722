"""A channel slowed down to a stated network, for benchmarks on one machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from privtensors.errors import ParameterError
from privtensors.transport.base import Channel, Message


@dataclass(frozen=True, slots=True)
class Link:
    """A network between two parties, the same in both directions, which do not slow each other down.

    Attributes:
        bits_per_s: Bandwidth per direction.
        rtt_s: Round-trip time, seconds.
    """

    bits_per_s: float
    rtt_s: float

    def __post_init__(self) -> None:
        if not self.bits_per_s > 0 or not self.rtt_s >= 0:
            raise ParameterError(
                f"impossible link {self}", where="Link", fix="give a positive bandwidth and a round-trip time of 0 or more"
            )

    def seconds(self, size: int) -> float:
        """From the first byte sent to the last of ``size`` bytes received: half a round trip and the time on the line."""
        return self.rtt_s / 2 + 8 * size / self.bits_per_s


LAN: Final = Link(1e9, 0.001)
WAN: Final = Link(100e6, 0.040)


class ShapedChannel:
    """Waits before each exchange as long as ``link`` would take for its words; what the inner channel takes comes on top.

    Args:
        inner: The channel that does the exchange.
        link: The network to simulate.
        sleep: For tests.

    Attributes:
        rounds: Exchanges done.
        bytes_sent: Packed words per party and direction.
        delay_s: Seconds waited in all.
    """

    def __init__(self, inner: Channel, link: Link, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self.inner, self.link = inner, link
        self.parties: tuple[int, ...] = inner.parties
        self.rounds = self.bytes_sent = 0
        self.delay_s = 0.0
        self._sleep = sleep

    def step(self, label: str) -> None:
        """Passed on to the inner channel."""
        self.inner.step(label)

    def exchange(self, messages: list[Message]) -> list[Tensor]:
        """One round of the inner channel, later."""
        size = sum(m.size() for m in messages)
        delay = self.link.seconds(size)
        self._sleep(delay)
        received = self.inner.exchange(messages)
        self.rounds += 1
        self.bytes_sent += size
        self.delay_s += delay
        return received
