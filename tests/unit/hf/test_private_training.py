"""What holds for both ways to train privately: ``wrap(model, policy).fit(rows)`` and ``DPTrainer``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import TrainingArguments

import privtensors as pt
from privtensors.accounting import Account, Accounts
from privtensors.errors import BoundingError, BudgetExceeded, CrossExample, InvalidInput
from privtensors.train.result import FitResult
from tests.unit.hf.rows import reviews
from tests.unit.hf.tiny import build

Criterion = Callable[[Tensor, Tensor], Tensor]
PRIVACY = pt.DP(noise_multiplier=1.0, dataset="reviews")


@dataclass(frozen=True)
class Way:
    """One of the two, with a few settings that both have; SGD at a constant rate of 0.1."""

    name: str
    folder: Path
    ledger: pt.Ledger

    def train(
        self, model: Any, privacy: pt.DP = PRIVACY, *, rows: Any = None, steps: int = 1, batch: int = 8,
        bfloat16: bool = False, criterion: Criterion | None = None,
    ) -> FitResult:  # fmt: skip
        """The report of one run."""
        chosen = reviews() if rows is None else rows
        return (self._fit if self.name == "fit" else self._trainer)(model, privacy, chosen, steps, batch, bfloat16, criterion)

    def _fit(self, model: Any, privacy: pt.DP, rows: Any, steps: int, batch: int, bfloat16: bool, criterion: Criterion | None) -> FitResult:
        def loss(inner: nn.Module, given: Any) -> Tensor:
            assert criterion is not None
            return criterion(inner(given["input_ids"], attention_mask=given["attention_mask"]).logits, given["label"])

        own = None if criterion is None else loss
        shown = rows if own is None else [{key: x for key, x in row.items() if key != "text"} for row in rows]
        precision: Any = "bfloat16" if bfloat16 else "float32"
        return pt.wrap(model, pt.Policy(train=[privacy])).fit(
            shown, steps=steps, batch_size=batch, microbatch=4, precision=precision, loss=own, schedule="constant",
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        )  # fmt: skip

    def _trainer(
        self, model: Any, privacy: pt.DP, rows: Any, steps: int, batch: int, bfloat16: bool, criterion: Criterion | None
    ) -> FitResult:
        def loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
            assert criterion is not None
            return criterion(outputs.logits, labels)

        args = TrainingArguments(
            str(self.folder), max_steps=steps, per_device_train_batch_size=batch // 2, gradient_accumulation_steps=2, optim="sgd",
            learning_rate=0.1, lr_scheduler_type="constant", bf16=bfloat16, report_to=[], save_strategy="no", disable_tqdm=True,
            use_cpu=True, max_grad_norm=1e-9,  # not used
        )  # fmt: skip
        own = None if criterion is None else loss
        trainer = pt.DPTrainer(model, args, privacy=privacy, train_dataset=rows, compute_loss_func=own)
        trainer.train()
        return trainer.runs[-1]

    def steps(self, account: Account = Account("reviews")) -> int:  # noqa: B008
        """Steps that the ledger counts."""
        return sum(count for _, count in Accounts(self.ledger).statement(account).events.counts)


@pytest.fixture(params=["fit", "trainer"])
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Way]:
    with pt.Ledger(tmp_path / "ledger.sqlite") as ledger, pt.Session(recorder=ledger):
        yield Way(request.param, tmp_path, ledger)


def test_without_noise_and_with_everybody_drawn_it_is_gradient_descent_on_clipped_gradients(way: Way) -> None:
    rows, model, oracle = reviews(6), build("bert"), build("bert")
    for one in (model, oracle):
        for module in one.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    result = way.train(model, pt.DP(epsilon=math.inf, dataset="reviews", clipping_norm=0.5), rows=rows, steps=2, batch=6)
    assert result.epsilon == math.inf and result.rule == "declassified" and way.steps() == 0 and result.to_dict()["epsilon"] == "inf"
    optimizer = torch.optim.SGD(oracle.parameters(), lr=0.1)
    for _ in range(2):
        total = {name: torch.zeros_like(p) for name, p in oracle.named_parameters()}
        for row in rows:
            out = oracle(row["input_ids"][None], attention_mask=row["attention_mask"][None], labels=torch.tensor([row["label"]]))
            grads = torch.autograd.grad(out.loss, list(oracle.parameters()), allow_unused=True)
            found = {name: g for (name, _), g in zip(oracle.named_parameters(), grads, strict=True) if g is not None}
            norm = torch.cat([g.flatten() for g in found.values()]).norm()
            for name, g in found.items():
                total[name] += g * min(1.0, 0.5 / float(norm)) / len(rows)
        for name, p in oracle.named_parameters():
            p.grad = total[name]
        optimizer.step()
    for mine, wanted in zip(model.parameters(), oracle.parameters(), strict=True):
        assert torch.allclose(mine, wanted, rtol=0, atol=2e-6)


def test_users(way: Way) -> None:
    rows = [row | {"author": i % 6} for i, row in enumerate(reviews())]
    privacy = pt.DP(noise_multiplier=1.0, dataset="reviews", unit="user", user_column="author", max_per_user=3)
    result = way.train(build("bert"), privacy, rows=rows, steps=2, batch=2)
    assert result.units == 6 and result.unit == "user" and result.rate == 2 / 6 and result.engines == (("", "unit by unit"),)
    assert way.steps(Account("reviews", "user")) == 2 and way.steps() == 0


def test_bfloat16(way: Way) -> None:
    model = build("bert")
    assert way.train(model, batch=12, bfloat16=True).steps == 1
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())


def test_a_budget_stops_the_run_before_it_begins(way: Way) -> None:
    Accounts(way.ledger).set_budget(Account("reviews"), 0.1, 1e-5)
    model = build("bert")
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(BudgetExceeded, match="is left"):
        way.train(model, steps=10)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True)) and way.steps() == 0


def test_own_losses_are_tried_on_public_inputs_first(way: Way) -> None:
    def good(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=0.1)

    def mixing(logits: Tensor, labels: Tensor) -> Tensor:
        return logits.var(0).sum() + F.cross_entropy(logits, labels)

    assert way.train(build("bert"), criterion=good).steps == 1
    with pytest.raises((CrossExample, InvalidInput)):
        way.train(build("bert"), criterion=mixing)
    assert way.steps() == 1 and Accounts(way.ledger).statement(Account("reviews")).open == ()


def test_a_model_with_everything_frozen_is_refused(way: Way) -> None:
    with pytest.raises(BoundingError, match="frozen"):
        way.train(build("bert").requires_grad_(False))
    assert way.ledger.entries() == ()
