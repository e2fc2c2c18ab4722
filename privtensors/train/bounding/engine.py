"""What an engine is: one way to bound a batch's gradients. :class:`~.bounder.GradientBounder` keeps what engines share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from privtensors.train.bounding.sums import RunningSum
from privtensors.train.roles import Batch, Loss


@dataclass(frozen=True)
class Choice:
    """How one module's gradients are bounded.

    Attributes:
        module: Dotted name; empty for the model itself.
        parameters: How many trainable numbers it holds.
        method: ``"instantiate"``, ``"gram"``, ``"outer"``, ``"replay"``, ``"example by example"`` or ``"opacus"``;
            ``"by length"`` before a batch was seen.
        reason: Why, in words.
    """

    module: str
    parameters: int
    method: str
    reason: str


class Engine(Protocol):
    """One way to clip each example's gradient and to add them up.

    Attributes:
        name: What ``make_bounder(engine=…)`` calls it.
    """

    name: str

    def bound(self, batch: Batch, loss: Loss, examples: int, clipping_norm: float, sums: RunningSum) -> None:
        """Add the clipped gradients of a checked batch of at least one example to ``sums``; on an error ``sums`` is what it was."""

    def describe(self) -> tuple[Choice, ...]: ...

    def close(self) -> None: ...
