"""``DPTrainer``: stock arguments, private steps, no training loss in any log, checkpoints that never spend twice."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import TrainerCallback, TrainingArguments

import privtensors as pt
from privtensors.accounting import Account, Accounts, Ledger
from privtensors.backends.dp import DP
from privtensors.core import Session
from privtensors.errors import (
    AccountingError,
    CrossExample,
    FileFormatError,
    InvalidInput,
    ParameterError,
)  # fmt: skip
from privtensors.hf.trainer import DPTrainer
from tests.unit.hf.rows import reviews
from tests.unit.hf.tiny import build

ACCOUNT = Account("reviews")
PRIVACY = DP(noise_multiplier=1.0, dataset="reviews")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.sqlite") as made, Session(recorder=made):
        yield made


def trainer_of(tmp_path: Path, model: Any = None, privacy: Any = PRIVACY, **options: Any) -> DPTrainer:
    more = options.pop("more", {})
    settings = {
        "output_dir": str(tmp_path / "out"), "max_steps": 10, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2,
        "learning_rate": 0.01, "report_to": [], "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True, "use_cpu": True,
        "lr_scheduler_type": "constant",
    }  # fmt: skip
    args = TrainingArguments(**(settings | options))
    return DPTrainer(build("bert") if model is None else model, args, privacy=privacy, train_dataset=reviews(), **more)


def steps_on(ledger: Ledger) -> int:
    return sum(count for _, count in Accounts(ledger).statement(ACCOUNT).events.counts)


def test_training_is_charged_and_no_training_loss_is_in_any_log(ledger: Ledger, tmp_path: Path) -> None:
    model = build("bert")
    before = {name: p.clone() for name, p in model.named_parameters()}
    trainer = trainer_of(tmp_path, model, eval_strategy="steps", eval_steps=5, more={"eval_dataset": reviews(8)})
    output = trainer.train()
    assert output.global_step == 10 and math.isnan(output.training_loss) and "train_loss" not in output.metrics
    [run] = trainer.runs
    assert run.steps == run.planned == steps_on(ledger) == 10 and run.batch_size == 8 and run.rate == 8 / 24
    assert Accounts(ledger).statement(ACCOUNT).open == ()
    logged = {name for row in trainer.state.log_history for name in row}
    assert "eval_loss" in logged and "grad_norm" in logged and not logged & {"loss", "train_loss", "total_flos_"}
    assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert trainer.args.max_steps == 10 and all(p.grad is None for p in model.parameters())



def test_a_second_run_and_a_model_made_late(ledger: Ledger, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, max_steps=1)
    assert trainer.train().global_step == 1 and trainer.train().global_step == 1
    assert steps_on(ledger) == 2 and len(trainer.runs) == 2
    late = DPTrainer(args=trainer.args, privacy=PRIVACY, model_init=lambda: build("bert"), train_dataset=reviews())
    assert late.train().global_step == 1 and steps_on(ledger) == 3



def test_epochs_become_steps_on_average_over_the_data(ledger: Ledger, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, max_steps=-1, num_train_epochs=2)
    assert trainer.train().global_step == 6 and trainer.args.max_steps == -1  # 24 examples, 8 expected in a step
    assert steps_on(ledger) == 6


class Stop(TrainerCallback):
    """Ends the run in some way after a step."""

    def __init__(self, step: int, error: type[BaseException] | None = None) -> None:
        self.step, self.error = step, error

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if state.global_step == self.step:
            if self.error is not None:
                raise self.error
            control.should_training_stop = True
        return control


def test_stopping_early_gives_back_what_was_not_used(ledger: Ledger, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, more={"callbacks": [Stop(3)]})
    assert trainer.train().global_step == 3 and steps_on(ledger) == 3 == trainer.runs[0].steps


def test_an_interrupted_run_resumes_with_the_steps_that_nobody_spent(ledger: Ledger, tmp_path: Path) -> None:
    broken = trainer_of(tmp_path, save_strategy="steps", save_steps=2, more={"callbacks": [Stop(5, KeyboardInterrupt)]})
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    assert steps_on(ledger) == 5 and Accounts(ledger).statement(ACCOUNT).open == ()
    facts = json.loads((tmp_path / "out" / "checkpoint-4" / "privacy.json").read_text())
    assert facts["reservations"] == [broken.runs[0].reservation] and facts["step"] == 4
    again = trainer_of(tmp_path, save_strategy="steps", save_steps=2)
    output = again.train(resume_from_checkpoint=True)
    assert output.global_step == 9 and steps_on(ledger) == 10  # the fifth step was computed twice, and counts twice
    assert again.runs[0].steps == 10 and again.runs[0].planned == 10
    with pytest.raises(AccountingError, match="all 10 steps"):
        trainer_of(tmp_path).train(resume_from_checkpoint=True)
    assert steps_on(ledger) == 10


def test_a_crashed_run_goes_on_within_its_reservation(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = trainer_of(tmp_path, save_strategy="steps", save_steps=4, more={"callbacks": [Stop(6, KeyboardInterrupt)]})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("privtensors.train.charge.Reserved.settle", lambda self: None)  # as if the process was killed
        dead.train()
    assert steps_on(ledger) == 10 and len(Accounts(ledger).statement(ACCOUNT).open) == 1
    again = trainer_of(tmp_path)
    output = again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert output.global_step == 8  # two steps after the checkpoint were lost, and stay spent
    assert steps_on(ledger) == 10 and len(ledger.entries(kind="budget.reserve")) == 1
    assert Accounts(ledger).statement(ACCOUNT).open == () and again.runs[0].rule == "resumed" and again.runs[0].steps == 10


def test_checkpoints_of_other_runs_are_refused(ledger: Ledger, tmp_path: Path) -> None:
    trainer_of(tmp_path, max_steps=4, save_strategy="steps", save_steps=2, more={"callbacks": [Stop(3)]}).train()
    folder = tmp_path / "out" / "checkpoint-2"

    def refused(error: type[Exception], match: str, **options: Any) -> None:
        rows = len(ledger.entries())
        with pytest.raises(error, match=match):
            trainer_of(tmp_path, max_steps=4, **options).train(resume_from_checkpoint=str(folder))
        assert len(ledger.entries()) == rows

    refused(AccountingError, "noise_multiplier", privacy=DP(noise_multiplier=0.5, dataset="reviews"))
    refused(AccountingError, "dataset", privacy=DP(noise_multiplier=1.0, dataset="others"))
    refused(ParameterError, "batch size", per_device_train_batch_size=2)
    with Ledger(tmp_path / "other.sqlite") as other:
        refused(AccountingError, "another ledger", more={"ledger": other})
    text = (folder / "privacy.json").read_text()
    (folder / "privacy.json").write_text(text.replace('"noise_multiplier": 1.0,', '"noise_multiplier": 9.0,', 1))
    refused(AccountingError, "another run")
    (folder / "privacy.json").write_text(text[:50])
    refused(FileFormatError, "malformed")
    (folder / "privacy.json").unlink()
    refused(FileFormatError, "which reservation")
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(InvalidInput, match="no checkpoint"):
        trainer_of(tmp_path).train(resume_from_checkpoint=True)


def test_a_saved_model_carries_policy_and_card(ledger: Ledger, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, max_steps=2)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    card = json.loads((tmp_path / "saved" / "privacy_card.json").read_text())
    assert card["training"][0]["steps"] == 2 and card["ledger_head"] == str(ledger.head())
    assert pt.Policy.from_toml(tmp_path / "saved" / "policy.toml").train == (PRIVACY,)
    assert (tmp_path / "saved" / "model.safetensors").is_file() and not (tmp_path / "saved" / "privacy.json").exists()



def test_an_own_compute_loss_must_keep_examples_apart(ledger: Ledger, tmp_path: Path) -> None:
    class Own(DPTrainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
            logits = model(**{k: v for k, v in inputs.items() if k != "labels"}).logits
            return F.cross_entropy(logits, inputs["labels"]) + (logits.var(0).sum() if self.mixing else 0)

    stock = trainer_of(tmp_path, max_steps=1)
    own = Own(stock.model, stock.args, privacy=PRIVACY, train_dataset=reviews())
    own.mixing = False
    assert own.train().global_step == 1
    own.mixing = True
    with pytest.raises((CrossExample, InvalidInput)):
        own.train()
    assert steps_on(ledger) == 1 and Accounts(ledger).statement(ACCOUNT).open == ()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"label_smoothing_factor": 0.1}, "label_smoothing"),
        ({"auto_find_batch_size": True}, "auto_find"),
        ({"torch_compile": True}, "torch_compile"),
    ],
)
def test_arguments_that_cannot_be_private(ledger: Ledger, tmp_path: Path, options: dict[str, Any], name: str) -> None:
    with pytest.raises(ParameterError, match=name):
        trainer_of(tmp_path, **options)


def test_other_refusals(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="DP"):
        trainer_of(tmp_path, privacy=pt.MPC())
    trainer = trainer_of(tmp_path)
    with pytest.raises(InvalidInput, match="train_dataset"):
        trainer.get_train_dataloader()
    with pytest.raises(InvalidInput, match="charged to nobody"):
        trainer.training_step(trainer.model, {})  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="trial"):
        trainer.train(trial={})
    trainer.train_dataset = None
    with pytest.raises(InvalidInput, match="no training data"):
        trainer.train()
    assert ledger.entries() == ()
