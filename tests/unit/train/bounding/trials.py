"""Small models with unusual forwards, and whether an engine bounds them exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from privtensors.testing.dp_models import Trial
from privtensors.testing.dp_oracle import difference, oracle
from privtensors.train.bounding import make_bounder
from privtensors.train.roles import Batch

TOLERANCE = 1e-5


def trial(model: nn.Module, *, examples: int = 6, shape: tuple[int, ...] = (5, 8)) -> Trial:
    """A model of features ``(B, *shape)`` with two outputs, and a batch for it."""
    random = torch.Generator().manual_seed(3)
    batch = {"x": torch.randn(examples, *shape, generator=random), "y": torch.randint(0, 2, (examples,), generator=random)}

    def losses(b: Batch) -> Tensor:
        out = model(b["x"])
        return F.cross_entropy(out if out.dim() == 2 else out.mean(1), b["y"], reduction="none")

    model.train()
    return Trial("", model, batch, lambda b: losses(b).mean(), losses, examples)


def clipped(t: Trial, norm: float, engine: Any = "bookkeeping") -> dict[str, Tensor]:
    bounder = make_bounder(t.model, norm, engine=engine)
    bounder.accumulate(t.batch, t.loss, t.examples)
    return bounder.take()


def assert_exact(t: Trial, engine: Any = "bookkeeping", ends: str | None = None) -> None:
    truth = oracle(t)
    bounder = make_bounder(t.model, truth.clipping_norm, engine=engine)
    bounder.accumulate(t.batch, t.loss, t.examples)
    assert bounder.engine == (ends or engine)
    error, worst = difference(bounder.take(), truth)
    assert error <= TOLERANCE and worst <= TOLERANCE


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make()


class Net(nn.Module):
    """Layers by name and a function of them and the input."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)
