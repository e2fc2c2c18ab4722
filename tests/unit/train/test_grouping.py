"""User-level clipping against its oracle: a user's gradient is the sum over the kept examples, clipped to C."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from privtensors.errors import ParameterError
from privtensors.train import dp_sgd
from privtensors.train.data import Examples, Users
from privtensors.train.dp_sgd import DPSGD
from privtensors.train.grouping import GroupBounder
from privtensors.train.roles import Batch
from tests.unit.train import tiny


def test_a_step_over_users_equals_the_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dp_sgd, "amplified_rate", lambda sampler: sampler.rate)
    network, oracle = tiny.model(), tiny.model()
    who = torch.tensor([i * i % 7 for i in range(tiny.SIZE)])
    data = tiny.columns()
    users = Users(Examples(data | {"who": who}), "who")
    schedule = tiny.plan(rate=0.5, size=len(users), norm=2.0)
    sampler: Any = tiny.Fixed(schedule.rate, schedule.expected, [])
    run = DPSGD(network, users, tiny.loss_of(network), sampler, GroupBounder(network, 2.0), tiny.Silent(), schedule, microbatch=2)
    drawn = [0, 2, 3]
    run.gradients(torch.tensor(drawn))

    order = list(dict.fromkeys(who.tolist()))
    batches = [{name: x[who == order[user]] for name, x in data.items()} for user in drawn]
    assert len({len(batch["x"]) for batch in batches}) > 1
    total = tiny.clipped_sum(oracle, batches, tiny.loss_of(oracle), 2.0)
    for name, p in network.named_parameters():
        assert p.grad is not None and torch.allclose(p.grad, (total[name] / schedule.expected).float(), atol=1e-6)
    lengths = [_norm(tiny.clipped_sum(oracle, [batch], tiny.loss_of(oracle), math.inf)) for batch in batches]
    assert max(lengths) > 2.0  # something was clipped


def _norm(total: dict[str, Tensor]) -> float:
    return float(torch.cat([x.flatten() for x in total.values()]).norm())


def test_no_user_adds_more_than_the_clipping_norm() -> None:
    network = tiny.model()
    bounder = GroupBounder(network, 0.01)
    data = tiny.columns()
    bounder.accumulate(data, tiny.loss_of(network), tiny.SIZE)
    assert _norm(bounder.take()) == pytest.approx(0.01, rel=1e-5)
    assert _norm(bounder.take()) == 0.0


def test_a_user_whose_gradient_is_not_finite_adds_zero() -> None:
    network = tiny.model()
    bounder = GroupBounder(network, 1.0)
    data = tiny.columns()
    data["y"][3] = math.nan
    bounder.accumulate(data, tiny.loss_of(network), tiny.SIZE)
    assert _norm(bounder.take()) == 0.0


def test_frozen_and_unused_parameters() -> None:
    network = nn.ModuleDict({"used": nn.Linear(4, 1), "unused": nn.Linear(4, 1)})
    network["used"].bias.requires_grad_(False)

    def loss(batch: Batch) -> Tensor:
        return ((network["used"](batch["x"]) - batch["y"]) ** 2).mean()

    bounder = GroupBounder(network, 1.0)
    assert set(bounder.parameters) == {"used.weight", "unused.weight", "unused.bias"}
    bounder.accumulate(tiny.columns(4), loss, 4)
    sums = bounder.take()
    assert sums["used.weight"].any() and not sums["unused.weight"].any() and sums["unused.bias"].shape == (1,)
    assert network["used"].weight.grad is None
    assert bounder.describe()[0].parameters == 4 + 4 + 1


def test_bad_norm() -> None:
    with pytest.raises(ParameterError):
        GroupBounder(tiny.model(), 0.0)
