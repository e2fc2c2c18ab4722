"""What a connection tolerates, and what went over it."""

from __future__ import annotations

from dataclasses import dataclass

from privtensors.errors import TransportError
from privtensors.transport.frames import PAYLOAD_LIMIT


@dataclass(frozen=True, slots=True)
class Limits:
    """What a connection tolerates; the two ends may differ.

    Attributes:
        payload: Largest payload accepted or sent, bytes.
        idle_s: Seconds without a byte after which a peer counts as stalled.
        rate: Bytes per second. A frame may take ``idle_s`` plus its size over ``rate`` in all: dripping does not hold a party.
    """

    payload: int = PAYLOAD_LIMIT
    idle_s: float = 8.0
    rate: float = 1e6

    def __post_init__(self) -> None:
        if self.payload < 1 or not 0 < self.idle_s < float("inf") or not 0 < self.rate < float("inf"):
            raise TransportError(f"impossible limits {self}", where="Limits", fix="give positive finite numbers")


@dataclass(slots=True)
class Traffic:
    """What went over one connection. ``wire`` counts bytes of TLS records that carry data: no handshake, no TCP/IP headers."""

    frames_sent: int = 0
    frames_received: int = 0
    payload_sent: int = 0
    payload_received: int = 0
    wire_sent: int = 0
    wire_received: int = 0
