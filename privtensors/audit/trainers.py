"""The run that is audited: ``PrivateModel.fit`` itself, or a loop made of the parts of a :class:`~privtensors.audit.setup.Setup`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace

import torch
from torch import nn

from privtensors.accounting import Account, Accounts, Ledger
from privtensors.audit.canaries import CanaryData, Claim, ModelLoss
from privtensors.audit.setup import Setup
from privtensors.errors import AuditError
from privtensors.hf.fit import batch_maker, checked_loss, fit
from privtensors.hf.fit_options import FitOptions
from privtensors.train.calibration import Plan, steps_of
from privtensors.train.preparation import Promise, charge_run, plan_run, units_of
from privtensors.train.result import FitResult

_BATCH = 256  # as fit
_ROUNDING = 0.01


@dataclass(frozen=True)
class Job:
    """What a trainer is given.

    Attributes:
        model: To be trained in place.
        dataset: Examples by index.
        loss: Of the model and a batch.
        observe: Called with the optimizer before the run; returns it.
    """

    model: nn.Module
    dataset: CanaryData
    loss: ModelLoss
    observe: Callable[[torch.optim.Optimizer], torch.optim.Optimizer]


Trainer = Callable[[Job], Claim]
"""Trains privately, and says what the run claims of itself."""


def train_by_fit(
    promise: Promise, options: FitOptions, ledger: Ledger, report: Callable[[FitResult], None] = lambda found: None
) -> Trainer:
    """The run that users make: ``PrivateModel.fit`` with these options, charged to ``ledger``.

    Args:
        promise: The technique ``DP``.
        options: As for ``fit``; the loss is the job's.
        ledger: Where the run is charged, and whose accountant states the claim.
        report: Called with what ``fit`` reports.
    """
    _check(promise)

    def train(job: Job) -> Claim:
        chosen = replace(options, loss=job.loss, optimizer=lambda parameters: job.observe(_optimizer(options, parameters)))
        found = fit(job.model, promise, ledger, job.dataset, chosen, report)
        sigma, rate = found.noise_multiplier, found.rate
        claim = Claim(found.epsilon, found.delta, sigma, rate, found.steps, found.clipping_norm, rate * found.units)
        return _claim(ledger, promise, claim)

    return train


def train_by(setup: Setup, promise: Promise, options: FitOptions, ledger: Ledger) -> Trainer:
    """A loop made of the parts of ``setup``, otherwise as :func:`train_by_fit`: its plan, reservation, loss check and optimizer."""
    _check(promise)

    def train(job: Job) -> Claim:
        collate = batch_maker(job.model, options.collate, every_column=True)
        units = units_of(promise, job.dataset, collate)
        size = min(_BATCH, len(units)) if options.batch_size is None else options.batch_size
        plan: Plan = plan_run(promise, len(units), size, steps_of(len(units), size, options.epochs, options.steps), ledger)
        loss = checked_loss(job.model, units, job.loss, options.public)
        job.model.train()
        with closing(setup.bounder(job.model, plan.clipping_norm)) as bounder:
            sampler, noiser = setup.sampler(len(units), plan.rate), setup.noiser(plan.noise_multiplier)
            run = setup.loop(job.model, units, loss, sampler, bounder, noiser, plan, microbatch=options.microbatch)
            optimizer = job.observe(_optimizer(options, list(bounder.parameters.values())))
            charge = charge_run(promise, units, plan, ledger)
            try:
                run.run(optimizer, charge)
            finally:
                charge.settle()
        epsilon, sigma = plan.epsilon(charge.spent), plan.noise_multiplier
        claim = Claim(epsilon, plan.delta, sigma, plan.rate, charge.spent, plan.clipping_norm, plan.expected)
        return _claim(ledger, promise, claim)

    return train


def _optimizer(options: FitOptions, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if options.optimizer is not None:
        return options.optimizer(parameters)
    return torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=options.weight_decay)


def _claim(ledger: Ledger, promise: Promise, claim: Claim) -> Claim:
    """``claim``, after a look whether the ledger counts it."""
    if claim.noise_multiplier > 0:
        counted = Accounts(ledger).statement(Account(promise.dataset, promise.unit), claim.delta).cost
        if counted.delta == claim.delta and counted.epsilon < claim.epsilon * (1 - _ROUNDING):
            what = f"the ledger counts ε {counted.epsilon:.3g} and the run claims {claim.epsilon:.3g}"
            raise AuditError(what, where="audit, ledger", fix="Charge the run to the ledger that is given")
    return claim


def _check(promise: Promise) -> None:
    if promise.unit != "example":
        what = f"canaries are examples, and the run protects each {promise.unit}"
        raise AuditError(what, where="audit, unit", fix='Audit with unit="example"')
