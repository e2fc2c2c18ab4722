"""A tiny regression, a Noiser that writes down what it is asked, and the per-example oracle of one step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from privtensors.train.calibration import Plan
from privtensors.train.roles import Batch, Loss

SIZE = 40


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))


def columns(size: int = SIZE) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, 4, generator=generator)
    return {"x": x, "y": x.sum(1, keepdim=True) + torch.randn(size, 1, generator=generator)}


def loss_of(network: nn.Module) -> Loss:
    def loss(batch: Batch) -> Tensor:
        return functional.mse_loss(network(batch["x"]), batch["y"])

    return loss


def plan(rate: float = 0.25, steps: int = 5, sigma: float = 0.0, norm: float = 0.5, size: int = SIZE) -> Plan:
    return Plan(sigma, rate, rate * size, steps, norm, 1e-5, rate)


class Silent:
    """Adds nothing, and keeps what it was given."""

    def __init__(self, noise_multiplier: float = 0.0) -> None:
        self.noise_multiplier = noise_multiplier
        self.calls: list[tuple[dict[str, Tensor], float]] = []

    def add(self, sums: Mapping[str, Tensor], clipping_norm: float) -> None:
        self.calls.append(({name: x.clone() for name, x in sums.items()}, clipping_norm))


class Fixed:
    """Draws what it is told, and says it is a Poisson sampler of this rate; for tests of the arithmetic alone."""

    def __init__(self, rate: float, expected: float, samples: list[list[int]]) -> None:
        self.rate, self.expected, self._samples = rate, expected, samples

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter([torch.tensor(sample, dtype=torch.int64) for sample in self._samples])


def clipped_sum(network: nn.Module, batches: list[Batch], loss: Loss, norm: float) -> dict[str, Tensor]:
    """The oracle: one backward pass per unit in float64 arithmetic of norms, clip, add. A batch is one unit; its gradient is of the sum."""
    names = {name: p for name, p in network.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in names.items()}
    for batch in batches:
        rows = len(next(iter(batch.values())))
        grads = torch.autograd.grad(loss(batch) * rows, list(names.values()), allow_unused=True)
        found = {name: g.double() for name, g in zip(names, grads, strict=True) if g is not None}
        length = torch.cat([g.flatten() for g in found.values()]).norm()
        if not torch.isfinite(length):
            continue
        for name, g in found.items():
            total[name] += g * min(1.0, norm / float(length))
    return total
