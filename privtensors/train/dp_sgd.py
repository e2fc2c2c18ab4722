"""DP-SGD (Abadi et al. 2016): sample, bound, add noise, divide by the expected batch size, step with any torch optimizer.

The loss of training data is never returned, logged or shown: it is computed from the data without noise.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from privtensors.errors import AccountingError, BoundingError, InvalidInput, ParameterError
from privtensors.train.calibration import Plan
from privtensors.train.charge import Charge
from privtensors.train.checks import BufferGuard
from privtensors.train.data import Units
from privtensors.train.roles import Bounder, Loss, Noiser, Sampler
from privtensors.train.sampling import amplified_rate


class DPSGD:
    """The private steps of one run.

    Args:
        model: The model, in the mode in which it trains.
        units: What is sampled.
        loss: Of a batch; see ``roles.Loss``.
        sampler: A Poisson sampler over the units.
        bounder: Over the model's trainable parameters.
        noiser: Adds the noise.
        plan: The schedule that was reserved; sampler, bounder and noiser must do what it says, at every step.
        microbatch: Examples that fit into memory at once.

    Attributes:
        seconds: Wall time of the steps so far.

    Raises:
        AccountingError: The sampler is no Poisson sampler.
        ParameterError: Its parts disagree with the plan.
        BoundingError: Nothing trains.
    """

    def __init__(
        self,
        model: nn.Module,
        units: Units,
        loss: Loss,
        sampler: Sampler,
        bounder: Bounder,
        noiser: Noiser,
        plan: Plan,
        *,
        microbatch: int = 32,
    ) -> None:
        if not bounder.parameters:
            raise BoundingError("every parameter is frozen", where="DPSGD", fix="Set requires_grad on what shall train")
        if type(microbatch) is not int or microbatch < 1:
            raise ParameterError(f"microbatch is {microbatch!r}", where="DPSGD", fix="Give a whole number of at least 1")
        if amplified_rate(sampler) > plan.rate or sampler.expected != plan.expected:
            raise ParameterError("the sampler draws at another rate than the plan's", where="DPSGD", fix="Make both from one rate")
        self.model, self.units, self.plan, self.bounder = model, units, plan, bounder
        self._loss, self._sampler, self._noiser, self._microbatch = loss, sampler, noiser, microbatch
        self._buffers, self.seconds = BufferGuard(model), 0.0
        self._check()

    def gradients(self, drawn: Tensor) -> None:
        """Put the private gradient of one step into ``.grad`` of every trainable parameter.

        The sum over the units drawn of their gradients, each clipped to C, plus noise of standard deviation sigma · C, divided by the
        *expected* number of units. An empty sample gives noise alone. Units with a non-finite gradient add zero.

        Args:
            drawn: Indices of units, int64, (n,); n may be 0.

        Raises:
            ParameterError: Clipping norm, noise or rate changed since the run began.
            CrossExample: A forward pass changed a buffer; or the loss or a layer mixes examples.
            InvalidInput: The data cannot be batched. The model was not updated.
        """
        self._check()
        device = next(iter(self.bounder.parameters.values())).device
        for batch, examples in self.units.batches(drawn, self._microbatch):
            self.bounder.accumulate({name: x.to(device) for name, x in batch.items()}, self._loss, examples)
        self._buffers.check()
        sums = self.bounder.take()
        self._noiser.add(sums, self.plan.clipping_norm)
        for name, parameter in self.bounder.parameters.items():
            parameter.grad = sums[name].div_(self.plan.expected).to(parameter.dtype)

    def run(
        self,
        optimizer: torch.optim.Optimizer,
        charge: Charge,
        *,
        steps: int | None = None,
        scheduler: Any = None,
        after: Callable[[int], None] = lambda step: None,
    ) -> None:
        """Take ``steps`` steps (default: all that ``charge`` covers), counting each on ``charge`` before it begins.

        Args:
            optimizer: Any torch optimizer over the trainable parameters.
            charge: The run's reservation; the caller settles it.
            steps: At most what ``charge`` has left.
            scheduler: A torch learning rate scheduler, stepped once per step; not one that needs a metric.
            after: Called with the number of steps done.

        Raises:
            AccountingError: The charge covers fewer steps.
            InvalidInput: The optimizer holds parameters that are not bounded; or as :meth:`gradients`.
        """
        check_optimizer(optimizer, self.bounder.parameters)
        number = charge.steps - charge.spent if steps is None else steps
        if number > charge.steps - charge.spent:
            what = f"{number} steps, and {charge.steps - charge.spent} are reserved"
            raise AccountingError(what, where="DPSGD.run", fix="Reserve first")
        try:
            samples = iter(self._sampler)
            for step in range(1, number + 1):
                start = time.perf_counter()
                charge.begin_step()  # before the sample: an error that the step's data cause is paid for
                [drawn] = islice(samples, 1)
                self.gradients(drawn)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                if scheduler is not None:
                    scheduler.step()
                self.seconds += time.perf_counter() - start
                after(step)
        finally:  # an interrupt must leave no gradient of training data behind
            self.clear()

    def clear(self) -> None:
        """Drop every gradient and whatever was summed."""
        with contextlib.suppress(BoundingError):  # a sum that an interrupt cut short is gone already
            self.bounder.take()
        for parameter in self.model.parameters():
            parameter.grad = None

    def _check(self) -> None:
        found = (self.bounder.clipping_norm, self._noiser.noise_multiplier, self._sampler.rate)
        planned = (self.plan.clipping_norm, self.plan.noise_multiplier, self.plan.rate)
        for name, now, before in zip(("clipping norm", "noise multiplier", "sampling rate"), found, planned, strict=True):
            if now != before:
                what = f"the {name} is {now:g}, and {before:g} was accounted for"
                raise ParameterError(what, where="DPSGD", fix=f"Keep the {name} fixed for a run; start another run to change it")


def check_optimizer(optimizer: torch.optim.Optimizer, bounded: Mapping[str, nn.Parameter]) -> None:
    """Refuse an optimizer that would update what is not bounded. Raises InvalidInput."""
    known = {id(p) for p in bounded.values()}
    held: Iterable[nn.Parameter] = (p for group in optimizer.param_groups for p in group["params"])
    if any(p.requires_grad and id(p) not in known for p in held):
        what = "the optimizer holds parameters whose gradients are not bounded"
        raise InvalidInput(what, where="DPSGD.run", fix="Make it from the trainable parameters of this model")
