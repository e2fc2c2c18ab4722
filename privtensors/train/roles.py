"""The roles of a private training step. A step samples a batch, bounds each example's gradient, adds noise and updates.

The loop (``train.dp_sgd``) knows nothing else of them, so that federated and split training can fill the same roles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor, nn

Batch = Mapping[str, Any]
"""The tensors of a batch by name. Every tensor's first axis runs over the batch's examples."""

Loss = Callable[[Batch], Tensor]
"""The loss of a batch: the mean over its examples of a loss that each example determines alone, 0-dimensional."""


class Sampler(Protocol):
    """Draws the examples of each step.

    Attributes:
        rate: Probability with which one example is in a step.
        expected: Expected number of examples in a step; the divisor of the update, whatever was drawn.
    """

    rate: float
    expected: float

    def __iter__(self) -> Iterator[Tensor]:
        """Per step the int64 indices that were drawn, ``(n,)``; n may be 0."""


class Bounder(Protocol):
    """Bounds what one example adds to a step: each example's gradient is clipped to an L2 norm, then they are summed.

    Attributes:
        clipping_norm: C, the L2 sensitivity of the sum under zero-out; read at every use, fixed for a run.
        parameters: The trainable parameters by name: those the sum is over.
    """

    clipping_norm: float

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]: ...

    def accumulate(self, batch: Batch, loss: Loss, examples: int) -> None:
        """Add the clipped gradients of ``examples`` examples to the running sum; no ``.grad`` is left behind.

        An example with a non-finite gradient adds zero, silently: an error would tell about it.

        Raises:
            PrivTensorsError: A parameter's use cannot be bounded; the running sum is what it was.
        """

    def take(self) -> dict[str, Tensor]:
        """The sum since the last call by parameter name, zeros where nothing was added; starts a new one."""

    def close(self) -> None:
        """Give the model back as it was."""


class Noiser(Protocol):
    """Adds noise to a bounded sum.

    Attributes:
        noise_multiplier: The standard deviation over the clipping norm.
    """

    noise_multiplier: float

    def add(self, sums: Mapping[str, Tensor], clipping_norm: float) -> None:
        """Add independent normal noise of standard deviation noise_multiplier · C to every entry, in place."""
