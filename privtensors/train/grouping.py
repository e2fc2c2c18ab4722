"""The Bounder of user-level privacy: everything in one batch is one user's, and is clipped as a whole."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from privtensors.errors import ParameterError
from privtensors.train.bounding.engine import Choice
from privtensors.train.roles import Batch, Loss


class GroupBounder:
    """Clips the summed gradient of each batch to C: one call of :meth:`accumulate` is one unit (McMahan et al. 2018, FedSGD with clipping).

    One backward pass per unit, so any model and any loss will do; a loss may even mix the examples of one user.

    Args:
        model: Its trainable parameters are those that count.
        clipping_norm: C, above 0.

    Raises:
        ParameterError: C is not above 0.
    """

    def __init__(self, model: nn.Module, clipping_norm: float) -> None:
        if not clipping_norm > 0:
            raise ParameterError(f"clipping_norm is {clipping_norm}", where="GroupBounder", fix="Give a number above 0")
        self.clipping_norm = clipping_norm
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._sums: dict[str, Tensor] = {}

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        return self._parameters

    def accumulate(self, batch: Batch, loss: Loss, examples: int) -> None:
        """Add the clipped sum of the gradients of the batch's ``examples`` examples; a non-finite one adds zero."""
        total = loss(batch) * examples
        found = torch.autograd.grad(total, list(self._parameters.values()), allow_unused=True)
        gradients = {name: g for name, g in zip(self._parameters, found, strict=True) if g is not None}
        squares = [g.detach().double().square().sum() for g in gradients.values()]
        norm = math.sqrt(float(torch.stack(squares).sum())) if squares else 0.0
        if not math.isfinite(norm):
            return
        factor = min(1.0, self.clipping_norm / norm) if norm else 1.0
        for name, gradient in gradients.items():
            scaled = gradient.detach().float() * factor
            self._sums[name] = self._sums[name].add_(scaled) if name in self._sums else scaled

    def take(self) -> dict[str, Tensor]:
        """See :meth:`~privtensors.train.roles.Bounder.take`."""
        done, self._sums = self._sums, {}
        zeros = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in self._parameters.items() if name not in done}
        return {name: done[name] if name in done else zeros[name] for name in self._parameters}

    def close(self) -> None:
        """Forget what was summed; the model was never changed."""
        self._sums = {}

    def describe(self) -> tuple[Choice, ...]:
        """One method for everything."""
        size = sum(p.numel() for p in self._parameters.values())
        return (Choice("", size, "unit by unit", "everything of one user is clipped as a whole"),)
