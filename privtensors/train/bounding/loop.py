"""One backward pass per example: slow, and right for everything that runs."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from privtensors.train.bounding.batches import rows
from privtensors.train.bounding.engine import Choice
from privtensors.train.bounding.sums import RunningSum, row_squares, sum_dtype
from privtensors.train.roles import Batch, Loss


class Loop:
    """Clips each example's gradient after a backward pass of its own (Abadi et al. 2016). Takes about B times the passes.

    Args:
        parameters: The trainable parameters by name.
    """

    name = "loop"

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, reason: str = "asked for") -> None:
        self._parameters = dict(parameters)
        self._reason = reason

    def bound(self, batch: Batch, loss: Loss, examples: int, clipping_norm: float, sums: RunningSum) -> None:
        """Add the clipped gradients, example by example."""
        every = tuple(self._parameters.values())
        total: dict[nn.Parameter, Tensor] = {}
        for index in range(examples):
            value = loss(rows(batch, slice(index, index + 1)))
            if not value.requires_grad:
                continue
            value.backward()  # type: ignore[no-untyped-call]
            used = [p for p in every if p.grad is not None]
            grads = [_dense(p.grad).to(sum_dtype(p.dtype)) for p in used if p.grad is not None]
            for parameter in every:
                parameter.grad = None
            if not grads:
                continue
            with torch.no_grad():
                squares = [row_squares(grad.reshape(1, -1)) for grad in grads]
                norm = math.sqrt(float(torch.stack([square.to(squares[0].device) for square in squares]).sum()))
                if not math.isfinite(norm):
                    continue
                factor = min(1.0, clipping_norm / norm) if norm > 0 else 1.0
                torch._foreach_mul_(grads, factor)
                for parameter, grad in zip(used, grads, strict=True):
                    if parameter in total:
                        total[parameter].add_(grad)
                    else:
                        total[parameter] = grad
        with sums.adding():
            for parameter, grad in total.items():
                sums.add(parameter, grad)

    def describe(self) -> tuple[Choice, ...]:
        """One row: the whole model is treated alike."""
        return (Choice("", sum(p.numel() for p in self._parameters.values()), "example by example", self._reason),)

    def close(self) -> None:
        """Nothing to give back."""


def _dense(grad: Tensor) -> Tensor:
    return grad.to_dense() if grad.is_sparse else grad
