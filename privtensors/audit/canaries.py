"""White-box canaries: examples whose clipped gradient is a direction of its own, added to a model and a data set.

The model gets one more layer, an embedding with one number per canary. The loss of canary i is a large multiple of the number in
row i, so its gradient is that coordinate, far longer than C, and is clipped like any other. Nothing else is replaced: the run's own
sampler, bounder, noise, divisor and optimizer see one model, one data set and one loss.

A canary whose coin fell on "out" stays in the data set and contributes exactly zero: neighbours under zero-out. Canaries do not touch
the user's layers, and examples do not touch the canaries' layer, so what is released about one canary is independent of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from privtensors.errors import AuditError
from privtensors.train.roles import Batch

LENGTH: Final = 100.0
"""Gradient norm of a canary before clipping, in clipping norms."""

_ROW, _PUSH, _OWN = "canary_row", "canary_push", "canary_own"
ModelLoss = Callable[[nn.Module, Batch], Tensor]


class CanaryModel(nn.Module):
    """A model with a canary layer beside it.

    Args:
        inner: The user's model, used as it is.
        canaries: m, their number.
        loss: The user's loss of ``inner`` and a batch, the mean over its examples, computed from what ``inner`` returns.
    """

    def __init__(self, inner: nn.Module, canaries: int, loss: ModelLoss) -> None:
        super().__init__()
        self.inner = inner
        self.canaries = nn.Embedding(canaries, 1, device=next(inner.parameters()).device)
        nn.init.zeros_(self.canaries.weight)
        self._own_loss = loss
        self._kept: Tensor | None = None
        self._hook = inner.register_forward_hook(self._keep_apart)

    def forward(self, batch: Batch) -> Tensor:
        """The loss of a batch with the canaries' columns, 0-dimensional: the mean over its examples."""
        pushed = self.canaries(batch[_ROW]).flatten() * batch[_PUSH]
        with self._keeping(batch[_OWN]):
            own: Tensor = self._own_loss(self.inner, {name: x for name, x in batch.items() if name not in (_ROW, _PUSH, _OWN)})
        total: Tensor = own + pushed.mean()
        return total

    def release(self) -> None:
        """Give the user's model back as it was."""
        self._hook.remove()

    @contextmanager
    def _keeping(self, kept: Tensor) -> Iterator[None]:
        self._kept = kept
        try:
            yield
        finally:
            self._kept = None

    def _keep_apart(self, module: nn.Module, inputs: Any, outputs: Any) -> Any:
        """Let gradients into the user's model for examples, none for canaries, whatever the loss; values stay what they are."""
        kept = self._kept
        if kept is None:
            return outputs

        def gate(value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.is_floating_point() or not value.requires_grad:
                return value
            if value.dim() == 0 or value.shape[0] != len(kept):
                what = f"the model returns a tensor of shape {tuple(value.shape)} for {len(kept)} examples"
                raise AuditError(what, where="audit, model", fix="Give loss= that computes the loss from outputs with one row per example")
            share = kept.to(value.dtype).reshape(-1, *(1,) * (value.dim() - 1))
            return torch.where(share > 0, value, value.detach())

        return tree_map(gate, outputs)


def canary_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The loss to train a :class:`CanaryModel` with."""
    value: Tensor = model(batch)
    return value


class CanaryData:
    """The user's examples, then the canaries; examples by index.

    Args:
        dataset: Examples as mappings by index, or a mapping of columns; at least one.
        included: The coins, (m,).
        clipping_norm: C of the run.

    Raises:
        AuditError: There is no example, or one is no mapping.
    """

    def __init__(self, dataset: Any, included: NDArray[np.bool_], clipping_norm: float) -> None:
        self._columns = dict(dataset) if isinstance(dataset, Mapping) else None
        self._dataset, self._coins = dataset, included
        self._push = LENGTH * clipping_norm
        self._own = len(dataset) if self._columns is None else len(next(iter(self._columns.values()), ()))
        if self._own == 0:
            raise AuditError("the data set is empty", where="audit, dataset", fix="Give at least one example")

    def __len__(self) -> int:
        return self._own + len(self._coins)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        if index < self._own:
            return {**self._row(index), _ROW: torch.tensor(0), _PUSH: torch.tensor(0.0), _OWN: torch.tensor(1.0)}
        number = index - self._own
        push = torch.tensor(self._push if self._coins[number] else 0.0)
        # A canary needs some input to go through the model with; its gradient stops at the model's output.
        return {**self._row(number % self._own), _ROW: torch.tensor(number), _PUSH: push, _OWN: torch.tensor(0.0)}

    def _row(self, index: int) -> dict[str, Any]:
        if self._columns is not None:
            return {name: column[index] for name, column in self._columns.items()}
        row = self._dataset[index]
        if not isinstance(row, Mapping):
            what = f"an example is a {type(row).__name__}"
            raise AuditError(what, where="audit, dataset", fix='Give mappings, such as {"x": …, "labels": …}')
        return dict(row)


class Observer:
    """What a white-box adversary writes down: the canaries' part of the private gradient at every step.

    Args:
        layer: The canary layer of the model that is trained.
    """

    def __init__(self, layer: nn.Embedding) -> None:
        self._layer = layer
        self._seen: list[Tensor] = []

    def watch(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """``optimizer``, whose gradients are written down from now on before each step."""
        optimizer.register_step_pre_hook(self._note)
        return optimizer

    def _note(self, optimizer: Any, arguments: Any, named: Any) -> None:
        gradient = self._layer.weight.grad
        if gradient is None:
            raise AuditError("a step left the canary layer without a gradient", where="audit", fix="Train every trainable parameter")
        self._seen.append(gradient.detach().flatten().cpu().clone())

    @property
    def gradients(self) -> Tensor:
        """float32, (steps, m). Raises AuditError where no step was seen."""
        if not self._seen:
            raise AuditError("not one step was observed", where="audit", fix="Let the run step the optimizer that observe= returns")
        return torch.stack(self._seen)


@dataclass(frozen=True)
class Claim:
    """What a run says of itself.

    Attributes:
        epsilon: ε at ``delta`` of the run by the ledger's accountant, for the schedule that ran; infinite without noise.
        delta: Its δ.
        noise_multiplier: sigma.
        rate: Sampling rate.
        steps: Steps that ran.
        clipping_norm: C.
        expected: The divisor of the update.
    """

    epsilon: float
    delta: float
    noise_multiplier: float
    rate: float
    steps: int
    clipping_norm: float
    expected: float


def scores(gradients: Tensor, claim: Claim) -> NDArray[np.float64]:
    """The log likelihood ratio of "in" against "out" for each canary under the claimed mechanism, (m,).

    A step adds C with the claimed rate to a canary's coordinate, and noise of the claimed deviation. Optimal if the claim is true, and
    valid whatever is true: no score can make a private mechanism look less private, but by chance.

    Args:
        gradients: (steps, m), as :class:`Observer` saw them.
        claim: Of the run. Without noise, how often and how far a coordinate moved is the score.
    """
    moved = gradients.double().numpy() * (claim.expected / claim.clipping_norm)
    # What is not finite (a run that diverged) says nothing.
    moved = np.nan_to_num(moved, nan=0.0, posinf=1e100, neginf=-1e100)
    if claim.noise_multiplier == 0:
        total: NDArray[np.float64] = moved.clip(-1e100, 1e100).sum(0)
        return total
    shift = (moved - 0.5) / claim.noise_multiplier**2
    stays = np.log1p(-claim.rate) if claim.rate < 1 else -np.inf
    ratio: NDArray[np.float64] = np.logaddexp(stays, np.log(claim.rate) + shift).sum(0)
    return ratio
