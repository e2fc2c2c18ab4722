"""Checks of a private training set-up, each for one promise: the sum of clipped gradients, the noise, the sample, the claim.

They run on any :class:`~privtensors.audit.setup.Setup`, on public data: the first compares numbers, the others draw from the
set-up and test hypotheses. A right set-up fails a statistical one with probability at most ``significance``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from itertools import islice
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from privtensors.audit.canaries import ModelLoss
from privtensors.audit.findings import Finding, worst_of
from privtensors.audit.setup import Setup
from privtensors.audit.statistics import coin_tests, normal_tests
from privtensors.errors import InvalidInput
from privtensors.train.calibration import Plan
from privtensors.train.data import Examples, Units
from privtensors.train.dp_sgd import DPSGD
from privtensors.train.roles import Batch, Loss

SIGNIFICANCE: Final = 1e-4
_TOLERANCE: Final = 1e-4
_ENTRIES: Final = 100_000


def check_oracle(
    setup: Setup, model: nn.Module, dataset: Any, loss: ModelLoss, *, tolerance: float = _TOLERANCE, examples: int = 24
) -> Finding:
    """Without noise, a step must be: each example's gradient clipped to C, summed, over the *expected* number of units.

    The truth is one backward pass per example, added up in float64. C is the median gradient norm, so that half are clipped.
    Steps of no unit, one, some and all are tried, in several batches. It finds wrong clipping, gradients that are counted
    twice or not at all, rows that must not be trained (padding), and wrong divisors.

    Args:
        setup: What is checked.
        model: Any; gradients are computed, nothing is stepped.
        dataset: Public examples: mappings by index, or a mapping of columns.
        loss: Of ``model`` and a batch: the mean over its examples.
        tolerance: Largest error over the truth, in the L2 norm over all parameters.
        examples: Use at most so many.

    Raises:
        InvalidInput: Every gradient is zero or not finite.
    """
    units, bound = Examples(dataset), _bind(model, loss)
    number = min(examples, len(units))
    with _unrandom(model):
        gradients = [_gradient(model, bound, units, index) for index in range(number)]
        norms = torch.tensor([_norm(one) for one in gradients])
        norm = float(norms[norms.isfinite() & (norms > 0)].median()) if bool((norms > 0).any()) else 0.0
        if not norm > 0:
            raise InvalidInput("every gradient is zero", where="audit, oracle", fix="Give examples and a loss that train the model")
        plan = _plan(0.0, 0.25, len(units), norm)
        worst, place = 0.0, "no step"
        for chosen in ([], [0], list(range(number // 3)), list(range(number))):
            found = _step(setup, model, units, bound, plan, torch.tensor(chosen, dtype=torch.int64), microbatch=max(1, number // 2))
            truth = _clipped_mean([gradients[index] for index in chosen], norm, plan.expected, gradients[0])
            unit = max(_norm(truth), norm / plan.expected)
            error = _norm({name: found[name].double() - truth[name] for name in truth}) / unit
            if not error <= worst:
                worst, place = error, f"a step of {len(chosen)} examples"
    detail = f"largest error {worst:.1e} of the step ({place})" if worst else "no error"
    return Finding("oracle", worst <= tolerance, detail, worst, tolerance)


def check_noise(
    setup: Setup,
    model: nn.Module,
    dataset: Any,
    loss: ModelLoss,
    *,
    noise_multiplier: float = 1.3,
    clipping_norm: float = 0.7,
    entries: int = _ENTRIES,
    significance: float = SIGNIFICANCE,
) -> Finding:
    """Steps whose sample is empty release noise alone: it must be normal, of deviation sigma · C, independent over entries and steps.

    It goes the whole way that a step goes, so it also finds noise that the loop scales. Kolmogorov and Smirnov's test, variance, mean,
    and products of entries within a step, between the halves of a step, and of steps up to 5 apart.

    Args:
        setup: What is checked.
        model: Any.
        dataset: Public examples; their number sets the divisor.
        loss: Of both; not called.
        noise_multiplier: sigma > 0.
        clipping_norm: C.
        entries: Draw at least so many numbers.
        significance: Probability with which a right set-up fails.
    """
    units = Examples(dataset)
    sizes = [p.numel() for p in model.parameters() if p.requires_grad]
    most = max(64, entries // 8 // len(sizes))  # of one parameter: large models would only take longer
    steps = max(8, -(-entries // sum(min(size, most) for size in sizes)))
    plan = _plan(noise_multiplier, 0.25, len(units), clipping_norm, steps)
    nothing = torch.zeros(0, dtype=torch.int64)
    rows = []
    with closing(setup.bounder(model, clipping_norm)) as bounder:
        run = _loop(setup, model, units, _bind(model, loss), bounder, plan, 32)
        for _ in range(steps):
            run.gradients(nothing)
            rows.append(torch.cat([p.grad.flatten()[:most].double() for p in bounder.parameters.values() if p.grad is not None]))
            run.clear()
    draws = torch.stack(rows).cpu().numpy() * (plan.expected / (noise_multiplier * clipping_norm))
    return worst_of("noise", normal_tests(draws), significance)


def check_sampler(setup: Setup, *, units: int = 500, rate: float = 0.1, steps: int = 400, significance: float = SIGNIFICANCE) -> Finding:
    """Every unit must be in every step by a coin of its own with probability ``rate``, and the divisor must be units · rate.

    Sizes of batches, how often units are drawn, and independence between units and between steps. Shuffled epochs, batches of a fixed
    size, weights, repetitions and a sample that is drawn once are found.

    Args:
        setup: What is checked.
        units: How many to sample from; units · rate and steps · rate must be at least 20.
        rate: In (0, 1).
        steps: How many samples to take.
        significance: Probability with which a right set-up fails.

    Raises:
        InvalidInput: Too few units or steps for the tests.
    """
    if not 0 < rate < 1 or min(units, steps) * rate < 20:
        raise InvalidInput("too few draws to say anything", where="audit, sampler", fix="Take units and steps of at least 20 / rate each")
    sampler = setup.sampler(units, rate)
    if abs(sampler.expected - units * rate) > 1e-9 * units or sampler.rate != rate:
        detail = f"it states rate {sampler.rate:g} and {sampler.expected:g} expected, asked for {rate:g} and {units * rate:g}"
        return Finding("sampler", False, detail, 0.0, significance)
    drawn = np.zeros((steps, units), dtype=np.bool_)
    for row, indices in zip(drawn, islice(iter(sampler), steps), strict=True):
        found = indices.numpy()
        if len(np.unique(found)) != len(found) or (len(found) and (found.min() < 0 or found.max() >= units)):
            return Finding("sampler", False, "a step draws a unit twice, or one that does not exist", 0.0, significance)
        row[found] = True
    return worst_of("sampler", coin_tests(drawn, rate), significance)


def _plan(sigma: float, rate: float, units: int, norm: float, steps: int = 1) -> Plan:
    return Plan(sigma, rate, rate * units, steps, norm, 1e-5, rate)


def _loop(setup: Setup, model: nn.Module, units: Units, loss: Loss, bounder: Any, plan: Plan, microbatch: int) -> DPSGD:
    sampler, noiser = setup.sampler(len(units), plan.rate), setup.noiser(plan.noise_multiplier)
    return setup.loop(model, units, loss, sampler, bounder, noiser, plan, microbatch=microbatch)


def _step(setup: Setup, model: nn.Module, units: Units, loss: Loss, plan: Plan, drawn: Tensor, microbatch: int) -> dict[str, Tensor]:
    """The private gradient of one step, by parameter name."""
    with closing(setup.bounder(model, plan.clipping_norm)) as bounder:
        run = _loop(setup, model, units, loss, bounder, plan, microbatch)
        run.gradients(drawn)
        found = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in bounder.parameters.items()}
        run.clear()
    return found


def _bind(model: nn.Module, loss: ModelLoss) -> Loss:
    def bound(batch: Batch) -> Tensor:
        return loss(model, batch)

    return bound


def _gradient(model: nn.Module, loss: Loss, units: Examples, index: int) -> dict[str, Tensor]:
    """One example's gradient by plain autograd, float64."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    device = next(iter(named.values())).device
    batch = {name: x.to(device) for name, x in units.batch([index]).items()}
    found = torch.autograd.grad(loss(batch), list(named.values()), allow_unused=True)
    return {name: torch.zeros_like(p).double() if g is None else g.double() for (name, p), g in zip(named.items(), found, strict=True)}


def _clipped_mean(gradients: list[dict[str, Tensor]], norm: float, divisor: float, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    total = {name: torch.zeros_like(x) for name, x in like.items()}
    for one in gradients:
        length = _norm(one)
        if length > 0 and length != float("inf"):
            for name, x in one.items():
                total[name] += x * min(1.0, norm / length) / divisor
    return total


def _norm(tensors: Mapping[str, Tensor]) -> float:
    return float(torch.stack([x.double().norm() for x in tensors.values()]).norm())


@contextmanager
def _unrandom(model: nn.Module) -> Iterator[None]:
    """Dropout would draw other numbers for the truth than for the step: evaluation mode meanwhile."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
