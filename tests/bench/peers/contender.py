"""What every contender answers to, and the medians of its samples."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from privtensors.transport.shaped import LAN, WAN, Link
from tests.bench.peers.environment import NotMeasured

NETWORKS: dict[str, Link | None] = {"loopback": None, "lan": LAN, "wan": WAN}


@dataclass(frozen=True, slots=True)
class Request:
    """One input, the same for all contenders.

    Attributes:
        ids: Token ids, int64, shape (1, tokens).
        hidden: The embedding block's output, which is what is shared, float32, shape (1, tokens, width).
        reference: The plain model's last hidden state, same shape.
        network: A name in :data:`NETWORKS`.
    """

    ids: np.ndarray
    hidden: np.ndarray
    reference: np.ndarray
    network: str = "loopback"

    @property
    def tokens(self) -> int:
        return int(self.ids.shape[1])

    @property
    def link(self) -> Link | None:
        return NETWORKS[self.network]


@dataclass(frozen=True, slots=True)
class Sample:
    """One answered request. None: this contender does not know.

    Attributes:
        total_s: Wall seconds from the plain input to the plain output; sharing, dealing and opening inside, pipes outside.
        online_s: Of these, what depends on the input.
        offline_s: Of these, making correlated randomness.
        cpu_s: CPU seconds of all its processes.
        rounds: Exchanges, one after another.
        bytes_sent: By one computing party.
        dealer_bytes: From a dealer to the computing parties.
        error_max: Largest absolute error of the output against plain.
        error_mean: Mean of the absolute error.
        peak_mib: Peak resident memory of its largest process so far.
    """

    total_s: float
    cpu_s: float
    error_max: float
    error_mean: float
    online_s: float | None = None
    offline_s: float | None = None
    rounds: int | None = None
    bytes_sent: int | None = None
    dealer_bytes: int | None = None
    peak_mib: float | None = None


class Contender(Protocol):
    """A system under test.

    Attributes:
        name: In the table.
        role: ``"plain"``, ``"us"`` or the peer's name in ``--vs``.
        runs: Counted runs per length and network.
        shapes: Whether it can really be run over a simulated network.
        remark: What a reader must know, or empty.
    """

    name: str
    role: str
    runs: int
    shapes: bool
    remark: str

    def set_up(self, say: Callable[[str], None]) -> None:
        """Processes started, weights shared.

        Raises:
            NotMeasured: Why not.
        """

    def run(self, request: Request) -> Sample:
        """Answer one request.

        Raises:
            NotMeasured: It failed; the contender takes no further part.
        """

    def close(self) -> None:
        """End its processes. Safe to call at any time."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Medians over the counted runs of one contender, length and network; the error is the largest and the mean over all.

    ``computed`` marks a row that was *not* measured (see :func:`over_link`), ``reason`` one that could not be.
    """

    name: str
    role: str
    tokens: int
    network: str
    runs: int = 0
    total_s: float | None = None
    cpu_s: float | None = None
    online_s: float | None = None
    offline_s: float | None = None
    rounds: float | None = None
    bytes_sent: float | None = None
    dealer_bytes: float | None = None
    error_max: float | None = None
    error_mean: float | None = None
    peak_mib: float | None = None
    computed: bool = False
    reason: str = ""


def errors(output: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Largest and mean absolute error; infinite where the output is not finite.

    Raises:
        NotMeasured: The output has another shape than the plain model's.
    """
    if output.shape != reference.shape:
        raise NotMeasured(f"answered with shape {output.shape} instead of {reference.shape}")
    if not np.isfinite(output).all():
        return float("inf"), float("inf")
    difference = np.abs(output.astype(np.float64) - reference)
    return float(difference.max()), float(difference.mean())


def summarize(name: str, role: str, tokens: int, network: str, samples: Sequence[Sample]) -> Summary:
    """Medians of at least one sample."""

    def median(field: str) -> float | None:
        values = [value for sample in samples if (value := getattr(sample, field)) is not None]
        return statistics.median(values) if values else None

    peaks = [s.peak_mib for s in samples if s.peak_mib is not None]
    return Summary(
        name,
        role,
        tokens,
        network,
        len(samples),
        median("total_s"),
        median("cpu_s"),
        median("online_s"),
        median("offline_s"),
        median("rounds"),
        median("bytes_sent"),
        median("dealer_bytes"),
        error_max=max(s.error_max for s in samples),
        error_mean=statistics.mean(s.error_mean for s in samples),
        peak_mib=max(peaks) if peaks else None,
    )


def over_link(measured: Summary, network: str, link: Link) -> Summary:
    """What a run without a network would take over ``link``: computed, not measured.

    Its measured seconds, half a round trip per exchange, and its bytes on the line. Exchanges that go out together are
    counted as if one waited for the other, so this is an upper estimate of the waiting.
    """
    if measured.total_s is None or measured.rounds is None or measured.bytes_sent is None:
        reason = measured.reason or "it reports neither rounds nor bytes"
        return Summary(measured.name, measured.role, measured.tokens, network, reason=reason)
    waiting = measured.rounds * link.rtt_s / 2 + 8 * measured.bytes_sent / link.bits_per_s
    return Summary(
        measured.name,
        measured.role,
        measured.tokens,
        network,
        measured.runs,
        total_s=measured.total_s + waiting,
        rounds=measured.rounds,
        bytes_sent=measured.bytes_sent,
        dealer_bytes=measured.dealer_bytes,
        computed=True,
    )
