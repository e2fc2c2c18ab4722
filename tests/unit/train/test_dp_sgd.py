"""The loop: exact against an oracle, the expected divisor, empty batches, early ends, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from privtensors.errors import AccountingError, BoundingError, CrossExample, InvalidInput, ParameterError
from privtensors.train import dp_sgd
from privtensors.train.bounding import make_bounder
from privtensors.train.charge import Uncharged
from privtensors.train.data import Examples
from privtensors.train.dp_sgd import DPSGD
from privtensors.train.roles import Batch
from privtensors.train.sampling import PoissonSampler
from tests.unit.train import tiny

SAMPLES = [[0, 3, 5], [], list(range(20)), [7], [1, 2]]


@pytest.fixture
def fixed_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arithmetic is tested on samples that are known: the check that they are Poisson samples is tested elsewhere."""
    monkeypatch.setattr(dp_sgd, "amplified_rate", lambda sampler: sampler.rate)


def run_of(network: nn.Module, data: Any = None, *, samples: list[list[int]] | None = None, microbatch: int = 4, **changes: Any) -> DPSGD:
    schedule = tiny.plan(**changes)
    sampler: Any = PoissonSampler(tiny.SIZE, schedule.rate) if samples is None else tiny.Fixed(schedule.rate, schedule.expected, samples)
    bounder = make_bounder(network, schedule.clipping_norm, engine="loop")
    units = Examples(tiny.columns() if data is None else data)
    return DPSGD(
        network, units, tiny.loss_of(network), sampler, bounder, tiny.Silent(schedule.noise_multiplier), schedule, microbatch=microbatch
    )


OPTIMIZERS: list[Callable[[Any], torch.optim.Optimizer]] = [
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    lambda p: torch.optim.AdamW(p, lr=0.01),
]


@pytest.mark.usefixtures("fixed_samples")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("microbatch", [1, 3, 64])
def test_without_noise_the_run_equals_the_oracle(optimizer: Callable[[Any], torch.optim.Optimizer], microbatch: int) -> None:
    network, oracle = tiny.model(), tiny.model()
    run = run_of(network, samples=SAMPLES, microbatch=microbatch)
    steps = optimizer(network.parameters())
    run.run(steps, Uncharged(5), scheduler=torch.optim.lr_scheduler.ExponentialLR(steps, 0.9))

    theirs, data = optimizer(oracle.parameters()), tiny.columns()
    decay = torch.optim.lr_scheduler.ExponentialLR(theirs, 0.9)
    for sample in SAMPLES:
        rows = [{name: x[i : i + 1] for name, x in data.items()} for i in sample]
        total = tiny.clipped_sum(oracle, rows, tiny.loss_of(oracle), 0.5)
        for name, p in oracle.named_parameters():
            p.grad = (total[name] / 10).float()  # 10 are expected in a step, whatever was drawn
        theirs.step()
        decay.step()
    for mine, wanted in zip(network.parameters(), oracle.parameters(), strict=True):
        assert torch.allclose(mine, wanted, rtol=0, atol=1e-6)
    assert all(p.grad is None for p in network.parameters()) and run.seconds > 0


@pytest.mark.usefixtures("fixed_samples")
def test_an_empty_sample_is_a_step_of_noise_alone() -> None:
    network = tiny.model()
    run = run_of(network, samples=[[]])

    def add(sums: Any, norm: float) -> None:
        assert all(not x.any() for x in sums.values())
        for x in sums.values():
            x.fill_(3.0)

    run._noiser.add = add  # type: ignore[method-assign]
    run.gradients(torch.tensor([], dtype=torch.int64))
    assert all(torch.equal(p.grad, torch.full_like(p, 0.3)) for p in network.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in network.parameters())


def test_noise_is_added_once_per_step_to_the_whole_sum_at_the_clipping_norm() -> None:
    network = tiny.model()
    run = run_of(network, sigma=2.0, microbatch=2)
    run.run(torch.optim.SGD(network.parameters(), lr=0.1), Uncharged(3))
    calls = run._noiser.calls  # type: ignore[attr-defined]
    assert len(calls) == 3 and all(norm == 0.5 and set(sums) == set(run.bounder.parameters) for sums, norm in calls)


def test_a_record_that_is_not_finite_adds_nothing_and_says_nothing() -> None:
    data = tiny.columns()
    clean, network = tiny.model(), tiny.model()
    run_of(clean, data).gradients(torch.tensor([1, 2]))
    broken = {"x": data["x"].clone(), "y": data["y"]}
    broken["x"][0] = float("nan")
    broken["x"][3] = float("inf")
    run_of(network, broken, microbatch=8).gradients(torch.tensor([0, 1, 2, 3]))
    for mine, wanted in zip(network.parameters(), clean.parameters(), strict=True):
        assert mine.grad is not None and wanted.grad is not None and torch.allclose(mine.grad, wanted.grad, atol=1e-7)


@pytest.mark.parametrize("part", ["norm", "noise", "rate"])
def test_what_was_accounted_for_may_not_change(part: str) -> None:
    network = tiny.model()
    run = run_of(network)
    before = [p.clone() for p in network.parameters()]

    def change(step: int) -> None:
        if part == "norm":
            run.bounder.clipping_norm = 1.0
        elif part == "noise":
            run._noiser.noise_multiplier = 0.1  # type: ignore[misc]
        else:
            run._sampler.rate = 0.5  # type: ignore[misc]
        before[:] = [p.clone() for p in network.parameters()]

    with pytest.raises(ParameterError, match="accounted for"):
        run.run(torch.optim.SGD(network.parameters(), lr=0.1), Uncharged(5), after=change)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), before, strict=True))


def test_the_parts_must_agree_when_the_run_is_made() -> None:
    network = tiny.model()
    good = tiny.plan()
    bounder, units, loss = make_bounder(network, 0.5, engine="loop"), Examples(tiny.columns()), tiny.loss_of(network)
    with pytest.raises(ParameterError, match="rate"):
        DPSGD(network, units, loss, PoissonSampler(tiny.SIZE, 0.5), bounder, tiny.Silent(), good)
    with pytest.raises(ParameterError, match="noise multiplier"):
        DPSGD(network, units, loss, PoissonSampler(tiny.SIZE, 0.25), bounder, tiny.Silent(1.0), good)
    with pytest.raises(AccountingError, match="shuffled epoch"):
        sampler: Any = torch.utils.data.RandomSampler(range(tiny.SIZE))
        DPSGD(network, units, loss, sampler, bounder, tiny.Silent(), good)
    with pytest.raises(ParameterError, match="microbatch"):
        DPSGD(network, units, loss, PoissonSampler(tiny.SIZE, 0.25), bounder, tiny.Silent(), good, microbatch=0)


def test_frozen_models_and_foreign_optimizers_are_refused() -> None:
    network = tiny.model().requires_grad_(False)
    with pytest.raises(BoundingError, match="frozen"):
        run_of(network)
    network.requires_grad_(True)
    other = tiny.model()
    with pytest.raises(InvalidInput, match="not bounded"):
        run_of(network).run(torch.optim.SGD([*network.parameters(), *other.parameters()], lr=0.1), Uncharged(1))


def test_a_charge_that_covers_too_little_is_refused_before_the_first_step() -> None:
    network = tiny.model()
    before = [p.clone() for p in network.parameters()]
    with pytest.raises(AccountingError, match="reserved"):
        run_of(network).run(torch.optim.SGD(network.parameters(), lr=0.1), Uncharged(2), steps=3)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), before, strict=True))


class Counting(nn.Module):
    """Keeps a mean of what it sees in a buffer, as batch normalisation does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.mul_(0.9).add_(x.mean(0).detach(), alpha=0.1)
        return self.linear(x)  # type: ignore[no-any-return]


def test_a_buffer_that_learns_from_the_data_is_refused_by_name() -> None:
    network = Counting()
    with pytest.raises(CrossExample, match="'seen'"):
        run_of(network).gradients(torch.tensor([0, 1]))
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_leaves_no_gradient_of_training_data_behind(error: type[BaseException]) -> None:
    network = tiny.model()
    run = run_of(network, rate=1.0)
    inner, calls = run._loss, [0]

    def loss(batch: Batch) -> Tensor:
        calls[0] += 1
        if calls[0] > 30:
            raise error
        return inner(batch)

    run._loss = loss
    charge = Uncharged(5)
    with pytest.raises(error):
        run.run(torch.optim.SGD(network.parameters(), lr=0.1), charge)
    assert all(p.grad is None for p in network.parameters())
    assert all(not x.any() for x in run.bounder.take().values())
    assert charge.spent == 1  # the step that was cut short began: it counts
