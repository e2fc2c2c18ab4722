"""What a clipped sum must be: as many backward passes as examples, added up in float64. Shares no code with the engines."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from privtensors.errors import PrivTensorsError
from privtensors.testing.dp_models import Family, Trial
from privtensors.train.bounding import EngineName, make_bounder


@dataclass(frozen=True)
class Oracle:
    """The truth about one batch.

    Attributes:
        sums: The clipped gradients' sums by parameter name, float64.
        norms: The examples' gradient norms ``(n,)``, float64.
        clipping_norm: C.
    """

    sums: Mapping[str, Tensor]
    norms: Tensor
    clipping_norm: float


def oracle(trial: Trial, clipping_norm: float | None = None) -> Oracle:
    """Clip and add up every example's gradient; C is the median norm unless given."""
    named = {name: p for name, p in trial.model.named_parameters() if p.requires_grad}
    grads: list[list[Tensor]] = []
    for index in range(trial.examples):
        part: dict[str, Any] = {k: v[index : index + 1] if isinstance(v, Tensor) else v for k, v in trial.batch.items()}
        trial.loss(part).backward()  # type: ignore[no-untyped-call]
        grads.append([(torch.zeros_like(p) if p.grad is None else p.grad).detach().double() for p in named.values()])
        for parameter in named.values():
            parameter.grad = None
    norms = torch.stack([torch.stack([g.norm() for g in each]).norm() for each in grads])
    bound = float(norms.median()) if clipping_norm is None else clipping_norm
    sums = {name: torch.zeros_like(p, dtype=torch.float64).detach() for name, p in named.items()}
    for each, norm in zip(grads, norms, strict=True):
        for total, grad in zip(sums.values(), each, strict=True):
            total += grad * min(1.0, bound / max(float(norm), 1e-300))
    return Oracle(sums, norms, bound)


@dataclass(frozen=True)
class ExactnessRow:
    """One family's row of the exactness table.

    Attributes:
        family: Its name.
        engine: The engine that was used in the end; the error's class where it was refused.
        error: ‖ours - oracle‖ / ‖oracle‖ over all parameters.
        worst: The same for the parameter where it is largest, relative to that parameter's own norm, of those that matter.
        seconds: Wall time of the step.
    """

    family: str
    engine: str
    error: float
    worst: float
    seconds: float


def difference(sums: Mapping[str, Tensor], truth: Oracle) -> tuple[float, float]:
    """The relative error over all parameters, and that of the worst one whose part is above 1e-4 of the whole; absolute where it is 0."""
    whole = float(torch.stack([t.norm() for t in truth.sums.values()]).norm())
    apart = {name: float((sums[name].double() - t).norm()) for name, t in truth.sums.items()}
    worst = max(apart[name] / (float(t.norm()) or 1.0) for name, t in truth.sums.items() if float(t.norm()) >= 1e-4 * whole)
    return sum(v * v for v in apart.values()) ** 0.5 / (whole or 1.0), worst


def exactness(family: Family, *, engine: EngineName = "auto", batches: int = 1, examples: int = 6, seed: int = 0) -> ExactnessRow:
    """One step without noise against the oracle, in one or several batches."""
    trial = family.trial(examples=examples, seed=seed)
    truth = oracle(trial)
    try:
        bounder = make_bounder(trial.model, truth.clipping_norm, engine=engine)
        started = time.perf_counter()
        for index in torch.arange(examples).tensor_split(batches):
            part = {name: value[index] for name, value in trial.batch.items()}
            bounder.accumulate(part, trial.loss, len(index))
        sums = bounder.take()
    except PrivTensorsError as error:
        return ExactnessRow(family.name, type(error).__name__, float("nan"), float("nan"), 0.0)
    seconds = time.perf_counter() - started
    used = bounder.engine
    bounder.close()
    return ExactnessRow(family.name, used, *difference(sums, truth), seconds)
