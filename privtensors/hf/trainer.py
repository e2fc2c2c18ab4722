"""``DPTrainer``: the Hugging Face Trainer with private steps. Importing this module imports transformers."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import TrainOutput, get_last_checkpoint

from privtensors.accounting import Ledger
from privtensors.core.session import current_session
from privtensors.errors import InvalidInput, ParameterError
from privtensors.hf.card import card_of, write_card
from privtensors.hf.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from privtensors.hf.fit import batch_maker, bounder_for, checked_loss, summary
from privtensors.policy import Policy, Technique
from privtensors.train.bounding import EngineName
from privtensors.train.bounding.refusals import trainable_parameters
from privtensors.train.calibration import Plan, steps_of
from privtensors.train.charge import Reserved, Uncharged, declassify, resume, spent_on
from privtensors.train.data import Units
from privtensors.train.dp_sgd import DPSGD, check_optimizer
from privtensors.train.noising import GaussianNoiser
from privtensors.train.preparation import OnBudget, Promise, account_of, charge_run, ledger_of, plan_run, units_of
from privtensors.train.result import FitResult
from privtensors.train.roles import Batch
from privtensors.train.sampling import PoissonSampler

_LOG: Final = logging.getLogger("privtensors")
_UNNOISED = ("loss", "train_loss")


class DPTrainer(Trainer):
    """``transformers.Trainer`` whose training steps are DP-SGD (Abadi et al. 2016): the same TrainingArguments and callbacks.

    What is different. A step is a Poisson sample of ``per_device_train_batch_size`` · ``gradient_accumulation_steps`` expected
    examples, computed ``per_device_train_batch_size`` at a time. Gradients are clipped example by example, so ``max_grad_norm`` is not
    used. The training loss is neither logged nor returned (``training_loss`` is NaN): it would leave without noise; the gradient norm
    that is logged has noise in it. Evaluation on held-out data is as ever.

    Every ``train()`` reserves its steps on the ledger first and settles those that ran, after an error or Ctrl-C too. A checkpoint
    names its reservations, and ``resume_from_checkpoint`` goes on within them: steps that were computed after the checkpoint and lost
    stay spent, so a resumed run ends that many steps earlier. Guarantee class: statistical (DP under zero-out).

    Args:
        model: As for Trainer.
        args: As for Trainer. Refused: several processes or devices, fp16, DeepSpeed, FSDP, ``auto_find_batch_size``,
            ``torch_compile``, ``label_smoothing_factor``.
        privacy: The promise, ``pt.DP(epsilon=3.0, dataset="…")``.
        ledger: Where it is counted; default the current session's.
        engine: How gradients are bounded; see ``train.bounding``.
        on_budget: What to do with a run that does not fit the data set's budget; see ``PrivateModel.fit``.
        data_collator, train_dataset, eval_dataset, processing_class, model_init, compute_loss_func, compute_metrics, callbacks,
            optimizers, optimizer_cls_and_kwargs, preprocess_logits_for_metrics: As for Trainer. A loss of your own must be the
            mean over examples of what each says alone; it is tried on public inputs.

    Attributes:
        privacy: The promise.
        runs: What every ``train()`` so far reports, those that ended by an error included.

    Raises:
        ParameterError: An argument cannot be used for private training.
        LedgerError: The session has no ledger.
    """

    def __init__(
        self,
        model: Any = None,
        args: TrainingArguments | None = None,
        *,
        privacy: Promise,
        ledger: Ledger | None = None,
        engine: EngineName = "auto",
        on_budget: OnBudget = "refuse",
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        model_init: Callable[..., Any] | None = None,
        compute_loss_func: Callable[..., Tensor] | None = None,
        compute_metrics: Callable[..., dict[str, Any]] | None = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[..., Tensor] | None = None,
    ) -> None:
        if not isinstance(privacy, Promise) or not isinstance(privacy, Technique):
            what = f"expected DP(...), got {type(privacy).__name__}"
            raise ParameterError(what, where="DPTrainer, privacy", fix='privacy=privtensors.DP(epsilon=3.0, dataset="…")')
        self.privacy, self.runs = privacy, tuple[FitResult, ...]()
        self._policy = Policy(train=[privacy])
        self._ledger = ledger_of(current_session().recorder) if ledger is None else ledger
        self._bounding: EngineName = engine
        self._on_budget: OnBudget = on_budget
        given = TrainingArguments() if args is None else args
        self._microbatch = given.per_device_train_batch_size
        self._job: _Job | None = None
        super().__init__(
            model, _private_arguments(given), data_collator=data_collator, train_dataset=train_dataset, eval_dataset=eval_dataset,
            processing_class=processing_class, model_init=model_init, compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics, callbacks=callbacks, optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs, preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )  # fmt: skip

    def train(self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, ignore_keys_for_eval: Any = None) -> TrainOutput:
        """As ``Trainer.train``, charged to the ledger. ``trial`` is refused: every trial is a run of its own.

        Raises:
            BudgetExceeded: The run does not fit the data set's budget; nothing was trained.
            AccountingError: The checkpoint is of another run, or every step of its run is spent.
            FileFormatError: The checkpoint does not say what it was charged to.
            PrivTensorsError: As ``PrivateModel.fit``.
        """
        if trial is not None:
            what = "the steps of a hyperparameter search are planned by each trial"
            raise ParameterError(what, where="DPTrainer.train, trial", fix="Make one DPTrainer per trial: each is charged to the ledger")
        checkpoint = self._checkpoint(resume_from_checkpoint)
        job = self._job = self._begin(checkpoint)
        asked = self.args.max_steps
        self.args.max_steps = job.last_step
        _LOG.info("the training loss is not logged: it is computed from the data without noise")
        try:
            output = super().train(None if checkpoint is None else checkpoint.folder, None, ignore_keys_for_eval)
        finally:
            self.args.max_steps, self._job = asked, None
            job.charge.settle()
            if job.run is not None:
                job.run.clear()
                self.runs = (*self.runs, job.report(self._ledger, self.privacy))
                job.run.bounder.close()
        metrics = {name: value for name, value in output.metrics.items() if name not in _UNNOISED}
        return TrainOutput(output.global_step, math.nan, metrics)

    def get_train_dataloader(self) -> Any:
        """One empty batch per step: the step itself draws its sample."""
        if self._job is None:
            what = "batches are Poisson samples that every step draws itself, and there is no loader to look at"
            raise InvalidInput(what, where="DPTrainer.get_train_dataloader", fix="Use train_dataset")
        return _Steps(max(1, math.ceil(1 / self._job.plan.rate)), self.train_dataset)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One private step: draws a Poisson sample and leaves its noised mean gradient in ``.grad``. Returns 0, not the loss."""
        job = self._job
        if job is None:
            what = "a step outside of train() is charged to nobody"
            raise InvalidInput(what, where="DPTrainer.training_step", fix="Call train()")
        model.train()
        optimizer: Any = self.optimizer
        if callable(getattr(optimizer, "train", None)):
            optimizer.train()
        if job.run is None:
            job.run = self._steps(job)
        job.charge.begin_step()
        job.run.gradients(job.sampler.draw())
        return torch.zeros((), device=self.args.device)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As ``Trainer.log``, without the training loss."""
        kept = {name: value for name, value in logs.items() if name not in _UNNOISED}
        super().log(kept, start_time)

    def floating_point_ops(self, inputs: Any) -> int:
        """0: how much was computed in a step tells about its sample."""
        return 0

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As ``Trainer.save_model``, with ``policy.toml`` and ``privacy_card.json``; in a checkpoint also what it was charged to."""
        super().save_model(output_dir, _internal_call)
        folder, job = Path(output_dir or str(self.args.output_dir)), self._job
        if not folder.is_dir():
            return
        runs = self.runs if job is None or job.run is None else (*self.runs, job.report(self._ledger, self.privacy))
        family = getattr(getattr(self.model, "config", None), "model_type", "")
        write_card(self._policy, card_of(self.model, family, self._policy, self._policy.explain(), self._ledger, runs), folder)
        if job is not None and _internal_call:
            rows = job.reservations if job.charge.index is None else (*job.reservations, job.charge.index)
            write_checkpoint(folder, self._ledger, tuple(dict.fromkeys(rows)), self.state.global_step, job.plan, self.privacy)

    def _checkpoint(self, asked: str | bool | None) -> Checkpoint | None:
        last: Any = get_last_checkpoint
        folder = last(str(self.args.output_dir)) if asked is True else asked or None
        if asked is True and folder is None:
            raise InvalidInput("there is no checkpoint", where=str(self.args.output_dir), fix="Call train() without resume_from_checkpoint")
        return None if folder is None else read_checkpoint(Path(str(folder)), self._ledger, self.privacy)

    def _begin(self, checkpoint: Checkpoint | None) -> _Job:
        if self.train_dataset is None:
            raise InvalidInput("there is no training data", where="DPTrainer, train_dataset", fix="Give train_dataset=")
        model: Any = self.model
        trainable_parameters(model)
        collate = batch_maker(model, self.data_collator, every_column=not self.args.remove_unused_columns)
        units = units_of(self.privacy, self.train_dataset, collate)
        next(iter(units.batches(torch.arange(1), 1)))  # data that make no batch fail before anything is reserved
        size, limit = self.args.per_device_train_batch_size, self.args.max_steps
        total = steps_of(len(units), size, None if limit > 0 else self.args.num_train_epochs, limit if limit > 0 else None)
        if checkpoint is None:
            plan = plan_run(self.privacy, len(units), size, total, self._ledger, self._on_budget)
            charge = charge_run(self.privacy, units, plan, self._ledger, durable=True)
            return _Job(plan, units, charge, 0, ())
        plan = checkpoint.plan
        if (plan.rate, plan.clipping_norm) != (size / len(units), self.privacy.clipping_norm) or total < plan.steps:
            what = "its run has another data set size, batch size, number of steps or clipping norm"
            raise ParameterError(what, where=checkpoint.folder, fix="Resume with the data and arguments it was started with")
        if plan.noise_multiplier == 0:
            left = declassify(self._ledger, account_of(self.privacy), plan.steps - checkpoint.step)
            return _Job(plan, units, left, checkpoint.step, ())
        if not checkpoint.reservations:
            what = "it names no reservation"
            raise ParameterError(what, where=checkpoint.folder, fix="Take another checkpoint")
        again = resume(self._ledger, account_of(self.privacy), plan, checkpoint.reservations)
        return _Job(plan, units, again, checkpoint.step, checkpoint.reservations)

    def _steps(self, job: _Job) -> DPSGD:
        model, optimizer = self.model, self.optimizer
        assert model is not None and optimizer is not None
        bounder = bounder_for(model, self.privacy, self._bounding)
        try:
            loss = checked_loss(model, job.units, self._own_loss())
            check_optimizer(optimizer, bounder.parameters)
            noiser = GaussianNoiser(job.plan.noise_multiplier)
            return DPSGD(model, job.units, loss, job.sampler, bounder, noiser, job.plan, microbatch=self._microbatch)
        except BaseException:
            bounder.close()
            raise

    def _own_loss(self) -> Callable[[nn.Module, Batch], Tensor] | None:
        """The user's loss, where there is one."""
        function = self.compute_loss_func
        if function is not None:

            def by_function(model: nn.Module, batch: Batch) -> Tensor:
                outputs = model(**{name: x for name, x in batch.items() if name != "labels"})
                value: Tensor = function(outputs, batch.get("labels"), num_items_in_batch=None)
                return value

            return by_function
        if type(self).compute_loss is not Trainer.compute_loss:

            def by_method(model: nn.Module, batch: Batch) -> Tensor:
                value: Any = self.compute_loss(model, dict(batch))
                found: Tensor = value
                return found

            return by_method
        return None


class _Job:
    """One call of train(): what is planned, what it is charged to, and its steps once the model is ready."""

    def __init__(self, plan: Plan, units: Units, charge: Reserved | Uncharged, first: int, reservations: tuple[int, ...]) -> None:
        self.plan, self.units, self.charge, self.reservations = plan, units, charge, reservations
        self.sampler = PoissonSampler(len(units), plan.rate)
        self.last_step = first + charge.steps - charge.spent
        self.run: DPSGD | None = None

    def report(self, ledger: Ledger, promise: Promise) -> FitResult:
        """The run as it stands."""
        assert self.run is not None
        before = spent_on(ledger, tuple(row for row in self.reservations if row != self.charge.index))
        return summary(promise, self.units, self.plan, self.charge, ledger, self.run.bounder, self.run.seconds, before=before)


class _Steps:
    """What the Trainer iterates over instead of a DataLoader: an epoch of steps without content."""

    def __init__(self, length: int, dataset: Any) -> None:
        self._length, self.dataset = length, dataset

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return iter([{} for _ in range(self._length)])


def _private_arguments(given: TrainingArguments) -> TrainingArguments:
    """A copy under which one batch of the Trainer is one step: the accumulation is the step's own."""
    where = "DPTrainer, args"
    refused = {
        "several processes": given.world_size > 1 or given.n_gpu > 1,
        "fp16": given.fp16,
        "deepspeed": bool(given.deepspeed),
        "fsdp": bool(given.fsdp),
        "auto_find_batch_size": given.auto_find_batch_size,
        "torch_compile": given.torch_compile,
        "label_smoothing_factor": given.label_smoothing_factor != 0,
    }
    for name, used in refused.items():
        if used:
            fix = "Use one process and one device, in float32 or bf16, without that option"
            raise ParameterError(f"{name} is not supported for private training", where=where, fix=fix)
    args = copy.copy(given)
    args.per_device_train_batch_size = given.per_device_train_batch_size * given.gradient_accumulation_steps
    args.gradient_accumulation_steps, args.max_grad_norm = 1, 0.0
    args.ignore_data_skip = True  # a sample is never repeated, so there is nothing to skip to
    args.include_num_input_tokens_seen = "no"
    return args
