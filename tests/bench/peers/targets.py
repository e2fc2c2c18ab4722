"""What ``mpc`` must reach on MiniLM, and by how much it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.peers.contender import Summary


@dataclass(frozen=True, slots=True)
class Target:
    """One limit on one figure at one length.

    Attributes:
        tokens: 0: at every length.
        figure: A field of :class:`~tests.bench.peers.contender.Summary`.
        limit: At most this, in the field's unit.
        stretch: A better one to aim at.
        unit: Divides both for display, with its name.
    """

    tokens: int
    figure: str
    limit: float
    stretch: float | None = None
    unit: tuple[float, str] = (1.0, "")


MB = (1e6, " MB")
S = (1.0, " s")
TARGETS: tuple[Target, ...] = (
    Target(32, "total_s", 0.50, 0.35, S),
    Target(32, "online_s", 0.20, None, S),
    Target(128, "total_s", 1.8, 1.4, S),
    Target(128, "online_s", 0.8, None, S),
    Target(0, "rounds", 225, 180),
    Target(32, "bytes_sent", 20e6, None, MB),
    Target(128, "bytes_sent", 110e6, None, MB),
    Target(32, "dealer_bytes", 100e6, None, MB),
    Target(128, "dealer_bytes", 550e6, None, MB),
    Target(0, "error_max", 0.02),
    Target(0, "error_mean", 0.0015),
)
FASTER: dict[str, dict[int, float]] = {"spu": {32: 20.0, 128: 20.0}, "crypten": {32: 8.0, 128: 5.0}}
PEAK_RATIO = 6.0
LABELS = {
    "total_s": "total",
    "online_s": "online",
    "rounds": "rounds",
    "bytes_sent": "sent by a party",
    "dealer_bytes": "from the dealer",
    "error_max": "largest error",
    "error_mean": "mean error",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One target beside the figure."""

    tokens: int
    what: str
    wanted: str
    got: str
    met: bool
    margin: str


def at_most(value: float, limit: float) -> tuple[bool, str]:
    """Whether ``value`` keeps ``limit``, and how far it is from it."""
    if value <= limit:
        return True, f"met, {100 * (1 - value / limit):.0f} % to spare"
    return False, f"missed by {100 * (value / limit - 1):.0f} %"


def at_least(value: float, limit: float) -> tuple[bool, str]:
    """Whether ``value`` reaches ``limit``, and how far it is from it."""
    if value >= limit:
        return True, f"met, {100 * (value / limit - 1):.0f} % more"
    return False, f"missed by {100 * (1 - value / limit):.0f} %"


def faster(us: Summary, peer: Summary) -> float | None:
    """The peer's total seconds over ours; None unless both were measured, on the same length and network."""
    if us.total_s is None or peer.total_s is None or us.computed or peer.computed:
        return None
    if (us.tokens, us.network) != (peer.tokens, peer.network):
        raise ValueError(f"{us.name} and {peer.name} were not measured at the same length and network")
    return peer.total_s / us.total_s


def judge(us: Summary, others: Sequence[Summary]) -> list[Verdict]:
    """Every target that applies to ``us``, a loopback row; ``others`` are rows of the same length and network."""
    verdicts = []
    for target in TARGETS:
        value = getattr(us, target.figure)
        if target.tokens in (0, us.tokens) and value is not None:
            scale, unit = target.unit
            met, margin = at_most(value, target.limit)
            if met and target.stretch is not None:
                margin += f"; stretch {target.stretch / scale:g}{unit} {at_most(value, target.stretch)[1]}"
            wanted = f"<= {target.limit / scale:g}{unit}"
            verdicts.append(Verdict(us.tokens, LABELS[target.figure], wanted, f"{value / scale:.4g}{unit}", met, margin))
    for other in others:
        wanted_ratio, ratio = FASTER.get(other.role, {}).get(us.tokens), faster(us, other)
        if wanted_ratio is not None:
            what, wanted = f"faster than {other.name}", f">= {wanted_ratio:g} x"
            if ratio is None:
                verdicts.append(Verdict(us.tokens, what, wanted, "not measured", False, other.reason))
            else:
                verdicts.append(Verdict(us.tokens, what, wanted, f"{ratio:.1f} x", *at_least(ratio, wanted_ratio)))
        if other.role == "plain" and us.peak_mib and other.peak_mib:
            ratio = us.peak_mib / other.peak_mib
            wanted = f"<= {PEAK_RATIO:g} x"
            verdicts.append(Verdict(us.tokens, "peak memory over plain's process", wanted, f"{ratio:.1f} x", *at_most(ratio, PEAK_RATIO)))
    return verdicts
