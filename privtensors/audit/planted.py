"""Mistakes that private training is known for, planted on purpose: what finds each of them?

Each bug is a part that lies about itself: it states what the right part states, so no check of parameters can find it. Nothing
outside an audit uses this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor, nn

from privtensors.audit.setup import Setup
from privtensors.backends.dp.noise.gaussian import GaussianNoise
from privtensors.train.bounding import make_bounder
from privtensors.train.dp_sgd import DPSGD
from privtensors.train.noising import GaussianNoiser
from privtensors.train.roles import Batch, Loss
from privtensors.train.sampling import PoissonSampler

WORLD_SIZE: Final = 4


@dataclass(frozen=True)
class Bug:
    """A planted mistake.

    Attributes:
        name: What it is called.
        story: How it happens.
        caught_by: The detectors that must find it; the first is the one to look at.
        plant: The set-up with the mistake.
    """

    name: str
    story: str
    caught_by: tuple[str, ...]
    plant: Callable[[Setup], Setup]


class _Wrapped:
    """The right bounder under a part that changes one thing."""

    def __init__(self, model: nn.Module, clipping_norm: float, inner_norm: float | None = None) -> None:
        self.clipping_norm = clipping_norm
        self._model = model
        self._inner = make_bounder(model, clipping_norm if inner_norm is None else inner_norm)

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        return self._inner.parameters

    def accumulate(self, batch: Batch, loss: Loss, examples: int) -> None:
        self._inner.accumulate(batch, loss, examples)

    def take(self) -> dict[str, Tensor]:
        return self._inner.take()

    def close(self) -> None:
        self._inner.close()


class Unclipped(_Wrapped):
    """States C and clips to nothing."""

    def __init__(self, model: nn.Module, clipping_norm: float) -> None:
        super().__init__(model, clipping_norm, 1e12)


class PaddingTrained(_Wrapped):
    """Lets the padding row of an embedding have a gradient, which counts in the norm and is trained."""

    def __init__(self, model: nn.Module, clipping_norm: float) -> None:
        with _unmasked(model):
            super().__init__(model, clipping_norm)

    def accumulate(self, batch: Batch, loss: Loss, examples: int) -> None:
        with _unmasked(self._model):
            super().accumulate(batch, loss, examples)


class DividedNoise(GaussianNoiser):
    """Adds noise of sigma · C over the world size, as if every process added a part, where one process adds it."""

    def __init__(self, noise_multiplier: float, world: int = WORLD_SIZE) -> None:
        super().__init__(noise_multiplier)
        self._world = world

    def add(self, sums: Mapping[str, Tensor], clipping_norm: float) -> None:
        super().add(sums, clipping_norm / self._world)


class RepeatedNoise(GaussianNoiser):
    """Starts its generator anew at every step: two steps subtracted are free of noise."""

    def __init__(self, noise_multiplier: float) -> None:
        super().__init__(noise_multiplier)
        self._seed = bytes(torch.randint(0, 256, (32,)).tolist())

    def add(self, sums: Mapping[str, Tensor], clipping_norm: float) -> None:
        self._source = GaussianNoise(self._seed)
        super().add(sums, clipping_norm)


class ShuffledEpochs(PoissonSampler):
    """Cuts a shuffled epoch into batches of a fixed size, and says that it is Poisson sampling."""

    def __init__(self, size: int, rate: float) -> None:
        super().__init__(size, rate)
        self._left = torch.zeros(0, dtype=torch.int64)

    def draw(self) -> Tensor:
        batch = max(1, round(self.expected))
        if len(self._left) < batch:
            self._left = torch.randperm(self.size)
        drawn, self._left = self._left[:batch], self._left[batch:]
        return drawn.sort().values


class ActualDivisor(DPSGD):
    """Divides by the number that was drawn in place of the number expected."""

    def gradients(self, drawn: Tensor) -> None:
        super().gradients(drawn)
        for parameter in self.bounder.parameters.values():
            if parameter.grad is not None:
                parameter.grad.mul_(self.plan.expected / max(1, len(drawn)))


def planted_bugs() -> tuple[Bug, ...]:
    """Every planted mistake, and what must find it."""
    return (
        Bug("no clipping", "the clipping factor is never applied", ("oracle", "audit"), lambda s: replace(s, bounder=Unclipped)),
        Bug(
            f"noise divided by world size ({WORLD_SIZE})",
            "each of several processes was meant to add its share, and one adds it",
            ("noise", "audit"),
            lambda s: replace(s, noiser=DividedNoise),
        ),
        Bug(
            "Poisson not used",
            "batches of a fixed size from shuffled epochs, and ε amplified as if by coins",
            ("sampler",),
            lambda s: replace(s, sampler=ShuffledEpochs),
        ),
        Bug(
            "padding row not masked",
            "the padding token's row has a gradient: it counts in the norm and is trained",
            ("oracle",),
            lambda s: replace(s, bounder=PaddingTrained),
        ),
        Bug(
            "shared noise generator",
            "the generator is seeded at every step, so every step has the same noise",
            ("noise",),
            lambda s: replace(s, noiser=RepeatedNoise),
        ),
        Bug(
            "wrong batch divisor",
            "the update is divided by the size of the sample, which is private, in place of its expectation",
            ("oracle", "noise"),
            lambda s: replace(s, loop=ActualDivisor),
        ),
    )


@contextmanager
def _unmasked(model: nn.Module) -> Iterator[None]:
    held = [(module, module.padding_idx) for module in model.modules() if isinstance(module, nn.Embedding)]
    try:
        for module, _ in held:
            module.padding_idx = None
        yield
    finally:
        for module, index in held:
            module.padding_idx = index
