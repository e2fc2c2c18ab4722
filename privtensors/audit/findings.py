"""What a detector reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One detector's verdict on one set-up.

    Attributes:
        detector: ``"oracle"``, ``"noise"``, ``"sampler"`` or ``"audit"``.
        passed: Whether nothing is wrong.
        detail: The worst thing that was found, in words.
        value: The figure that decided: a relative error (oracle), the smallest p-value times the number of tests (noise, sampler),
            the bound on ε (audit).
        limit: What it was held against.
    """

    detector: str
    passed: bool
    detail: str
    value: float
    limit: float

    def __str__(self) -> str:
        return f"{self.detector}: {'passes' if self.passed else 'FAILS'}: {self.detail}"


def worst_of(detector: str, p_values: dict[str, float], significance: float) -> Finding:
    """The finding of several tests at once: the smallest p-value, times their number (Bonferroni), against ``significance``."""
    name, smallest = min(p_values.items(), key=lambda pair: pair[1])
    corrected = min(1.0, smallest * len(p_values))
    detail = f"{name}: p-value {corrected:.2g} of {len(p_values)} tests"
    return Finding(detector, corrected >= significance, detail, corrected, significance)
