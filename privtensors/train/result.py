"""What a private run reports: nothing in it was computed from training data without noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Evaluation:
    """Figures on held-out data, which the promise does not cover, after ``step`` steps."""

    step: int
    figures: Mapping[str, float]


@dataclass(frozen=True)
class FitResult:
    """A run that ended.

    Attributes:
        dataset: Name under which its privacy is counted.
        unit: ``"example"`` or ``"user"``.
        units: Number of them.
        steps: Steps that ran.
        planned: Steps that were planned.
        noise_multiplier: sigma, standard deviation over the clipping norm; 0 for a run without privacy.
        clipping_norm: C.
        rate: Sampling rate.
        batch_size: Expected number of units in a step.
        epsilon: What the steps that ran cost by PLD, for a number of steps fixed in advance; infinite without noise. Where what
            was seen on the way decided to stop, ``target`` and the ledger's filter hold instead.
        delta: Its δ.
        target: ε of the planned steps.
        rule: How the ledger admitted it: ``"unlimited"``, ``"filter"``, ``"schedule"``, ``"resumed"`` or ``"declassified"``.
        reservation: Row of the ledger; None where nothing was charged.
        ledger_head: Head of the ledger afterwards; kept elsewhere, it shows a ledger that was cut or rewritten.
        engines: How gradients were bounded, layer by layer.
        seconds: Wall time of the steps.
        evaluations: On held-out data.
    """

    dataset: str
    unit: str
    units: int
    steps: int
    planned: int
    noise_multiplier: float
    clipping_norm: float
    rate: float
    batch_size: int
    epsilon: float
    delta: float
    target: float
    rule: str
    reservation: int | None
    ledger_head: str
    engines: tuple[tuple[str, str], ...] = field(repr=False)
    seconds: float
    evaluations: tuple[Evaluation, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, for a privacy card; an infinite ε is the text "inf"."""
        found = asdict(self)
        for name in ("epsilon", "target"):
            if found[name] == float("inf"):
                found[name] = "inf"
        return found

    def __str__(self) -> str:
        cost = f"ε {self.epsilon:.3g} at δ {self.delta:.1g} per {self.unit} of {self.dataset!r}"
        return (
            f"{self.steps} of {self.planned} steps in {self.seconds:.1f} s: {cost} (noise multiplier {self.noise_multiplier:.3f}, "
            f"clipping norm {self.clipping_norm:g}, rate {self.rate:.4f}, batch {self.batch_size}); ledger head {self.ledger_head}"
        )
