"""One private run over a Hugging Face model in plain: checks, plan, reservation, steps, report."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any, Literal

import torch
from torch import Tensor, nn

from privtensors.accounting import Ledger
from privtensors.hf.fit_options import FitOptions
from privtensors.hf.losses import model_loss, task_loss
from privtensors.train.bounding import make_bounder
from privtensors.train.bounding.refusals import trainable_parameters
from privtensors.train.calibration import Plan, steps_of
from privtensors.train.charge import Reserved, Uncharged
from privtensors.train.checks import check_loss, check_model
from privtensors.train.data import Collate, Examples, Units, collate_rows
from privtensors.train.dp_sgd import DPSGD
from privtensors.train.grouping import GroupBounder
from privtensors.train.noising import GaussianNoiser
from privtensors.train.preparation import Promise, charge_run, plan_run, units_of
from privtensors.train.progress import progress_bar
from privtensors.train.result import Evaluation, FitResult
from privtensors.train.roles import Batch, Bounder, Loss
from privtensors.train.sampling import PoissonSampler

_BATCH = 256
_EVALUATED_AT_ONCE = 64


def fit(
    model: nn.Module, promise: Promise, ledger: Ledger, dataset: Any, options: FitOptions, report: Callable[[FitResult], None]
) -> FitResult:
    """Train ``model`` in place; see ``PrivateModel.fit``, errors included.

    Args:
        model: The user's model, in plain.
        promise: The technique ``DP``.
        ledger: Where its privacy is counted.
        dataset: What it learns from.
        options: Everything else.
        report: Called with the result, also when the run ends by an error or Ctrl-C.
    """
    collate = batch_maker(model, options.collate, every_column=options.loss is not None)
    trainable_parameters(model)  # the commonest mistake first, before the data is read
    units = units_of(promise, dataset, collate)
    size = min(_BATCH, len(units)) if options.batch_size is None else options.batch_size
    loss = under_precision(checked_loss(model, units, options.loss, options.public), model, options.precision)
    number = steps_of(len(units), size, options.epochs, options.steps)
    plan = plan_run(promise, len(units), size, number, ledger, options.on_budget)
    held_out = None if options.eval_dataset is None else Examples(options.eval_dataset, collate)
    modes = {module: module.training for module in model.modules()}
    evaluations: list[Evaluation] = []
    try:
        model.train()
        with closing(bounder_for(model, promise, options.engine)) as bounder:
            run = DPSGD(
                model, units, loss, PoissonSampler(len(units), plan.rate), bounder, GaussianNoiser(plan.noise_multiplier), plan,
                microbatch=options.microbatch,
            )  # fmt: skip
            optimizer = _optimizer(bounder, options)
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, _schedule(options, plan.steps))
            charge = charge_run(promise, units, plan, ledger)
            try:
                with progress_bar(plan, plan.steps, options.progress) as advance:

                    def after(step: int) -> None:
                        advance(step)
                        due = step == plan.steps or (options.evaluate_every is not None and step % options.evaluate_every == 0)
                        if held_out is not None and due:
                            evaluations.append(Evaluation(step, evaluate(model, held_out, loss)))

                    run.run(optimizer, charge, scheduler=scheduler, after=after)
            finally:
                charge.settle()
                result = summary(promise, units, plan, charge, ledger, bounder, run.seconds, tuple(evaluations))
                report(result)
    finally:
        for module, training in modes.items():
            module.training = training
    return result


def bounder_for(model: nn.Module, promise: Promise, engine: Literal["auto", "bookkeeping", "loop", "opacus"]) -> Bounder:
    """The bounder of the promise's unit. Errors as ``train.bounding.make_bounder``."""
    check_model(model)
    if promise.unit == "user":
        return GroupBounder(model, promise.clipping_norm)
    return make_bounder(model, promise.clipping_norm, engine=engine)


def checked_loss(model: nn.Module, units: Units, own: Callable[[nn.Module, Batch], Tensor] | None, public: Batch | None = None) -> Loss:
    """The user's loss, or that of the model's task; one that is not known to keep examples apart is tried on public inputs.

    Raises:
        InvalidInput: It mixes examples, or cannot be tried.
    """
    template, _ = next(iter(units.batches(torch.arange(1), 1)))  # also where it is not used: data that make no batch fail here
    known = task_loss(model) if own is None else None
    if known is not None:
        return known

    def given(batch: Batch) -> Tensor:
        assert own is not None
        return own(model, batch)

    loss = model_loss(model) if own is None else given
    check_loss(loss, model, template, public)
    return loss


def under_precision(loss: Loss, model: nn.Module, precision: Literal["float32", "bfloat16"]) -> Loss:
    """``loss`` under autocast where ``precision`` is bfloat16."""
    if precision == "float32":
        return loss
    device = next(model.parameters()).device.type

    def cast(batch: Batch) -> Tensor:
        with torch.autocast(device, dtype=torch.bfloat16):
            return loss(batch)

    return cast


def batch_maker(model: Any, collate: Collate | None, *, every_column: bool) -> Collate:
    """``collate`` (default: stacking) on the columns that the model's forward takes, ``label`` and ``label_ids`` as ``labels``."""
    make = collate_rows if collate is None else collate
    if every_column:
        return make
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    named = inspect.signature(type(base).forward).parameters.items()
    accepted = {name for name, p in named if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    if not hasattr(base, "config"):  # no stock model: nothing is known about its names
        return make

    def batch(rows: list[Any]) -> Mapping[str, Any]:
        return make([_columns(row, accepted) if isinstance(row, Mapping) else row for row in rows])

    return batch


def _columns(row: Mapping[str, Any], accepted: set[str]) -> dict[str, Any]:
    named = {"labels" if name in ("label", "label_ids") else name: value for name, value in row.items()}
    return {name: value for name, value in named.items() if name in accepted}


def evaluate(model: nn.Module, held_out: Examples, loss: Loss) -> dict[str, float]:
    """Mean loss on held-out examples, and accuracy where the model gives one row of logits per integer label."""
    training = model.training
    model.eval()
    total, right, labelled = 0.0, 0, 0
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            for batch, examples in held_out.batches(torch.arange(len(held_out)), _EVALUATED_AT_ONCE):
                there = {name: x.to(device) for name, x in batch.items()}
                total += float(loss(there)) * examples
                labels = there.get("labels")
                if labels is not None and labels.dim() == 1 and not labels.is_floating_point():
                    logits = getattr(model(**{name: x for name, x in there.items() if name != "labels"}), "logits", None)
                    if isinstance(logits, Tensor) and logits.dim() == 2 and logits.shape[1] > 1:
                        right, labelled = right + int((logits.argmax(-1) == labels).sum()), labelled + examples
    finally:
        model.train(training)
    figures = {"loss": total / len(held_out)}
    return figures | {"accuracy": right / labelled} if labelled else figures


def summary(
    promise: Promise,
    units: Units,
    plan: Plan,
    charge: Reserved | Uncharged,
    ledger: Ledger,
    bounder: Bounder,
    seconds: float,
    evaluations: tuple[Evaluation, ...] = (),
    before: int = 0,
) -> FitResult:
    """What a run reports; ``before`` are steps that it spent on reservations before this one."""
    steps = before + charge.spent
    epsilon = plan.epsilon(steps)
    return FitResult(
        dataset=promise.dataset, unit=promise.unit, units=len(units), steps=steps, planned=plan.steps,
        noise_multiplier=plan.noise_multiplier, clipping_norm=plan.clipping_norm, rate=plan.rate, batch_size=round(plan.expected),
        epsilon=epsilon, delta=plan.delta, target=epsilon if steps == plan.steps else plan.epsilon(plan.steps), rule=charge.rule,
        reservation=charge.index, ledger_head=str(ledger.head()), engines=_engines(bounder), seconds=seconds, evaluations=evaluations,
    )  # fmt: skip


def _engines(bounder: Bounder) -> tuple[tuple[str, str], ...]:
    describe = getattr(bounder, "describe", None)
    return tuple((choice.module, choice.method) for choice in describe()) if callable(describe) else ()


def _optimizer(bounder: Bounder, options: FitOptions) -> torch.optim.Optimizer:
    parameters = list(bounder.parameters.values())
    if options.optimizer is not None:
        return options.optimizer(parameters)
    return torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=options.weight_decay)


def _schedule(options: FitOptions, steps: int) -> Callable[[int], float]:
    rising = options.warmup * steps

    def factor(step: int) -> float:
        up = min(1.0, (step + 1) / rising) if rising > 0 else 1.0
        down = 1.0 if options.schedule == "constant" else 1 - step / steps
        return max(0.0, up * down)

    return factor
