"""Detectors on parts that are wrong in other ways than the planted ones, and on input that they refuse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from privtensors.audit import Finding, Setup, check_noise, check_oracle, check_sampler
from privtensors.audit.findings import worst_of
from privtensors.audit.statistics import coin_tests, normal_tests
from privtensors.audit.subject import tiny_subject
from privtensors.errors import InvalidInput
from privtensors.train.bounding import make_bounder
from privtensors.train.noising import GaussianNoiser
from privtensors.train.sampling import PoissonSampler


def noise(noiser: type[GaussianNoiser]) -> Finding:
    subject = tiny_subject()
    return check_noise(replace(Setup(), noiser=noiser), subject.model, subject.dataset, subject.loss, entries=30_000)


class Laplacian(GaussianNoiser):
    def add(self, sums: Mapping[str, Tensor], clipping_norm: float) -> None:
        scale = self.noise_multiplier * clipping_norm / 2**0.5
        for total in sums.values():
            total += torch.from_numpy(np.random.default_rng().laplace(scale=scale, size=total.shape)).float()


class SameForEveryEntry(GaussianNoiser):
    def add(self, sums: Mapping[str, Tensor], clipping_norm: float) -> None:
        one = torch.zeros(1)
        super().add({"": one}, clipping_norm)
        for total in sums.values():
            total += one


class MirroredHalves(GaussianNoiser):
    """Every other step is the one before, with the other sign."""

    last: dict[str, Tensor] | None = None

    def add(self, sums: Mapping[str, Tensor], clipping_norm: float) -> None:
        if self.last is not None:
            for name, total in sums.items():
                total -= self.last[name]
            self.last = None
            return
        super().add(sums, clipping_norm)
        self.last = {name: total.clone() for name, total in sums.items()}


class OneParameterForgotten(GaussianNoiser):
    def add(self, sums: Mapping[str, Tensor], clipping_norm: float) -> None:
        super().add({name: x for name, x in sums.items() if name != "head.weight"}, clipping_norm)


class ThreePercentLess(GaussianNoiser):
    def add(self, sums: Mapping[str, Tensor], clipping_norm: float) -> None:
        super().add(sums, clipping_norm * 0.97)


@pytest.mark.parametrize("noiser", [Laplacian, SameForEveryEntry, MirroredHalves, OneParameterForgotten, ThreePercentLess])
def test_wrong_noise_is_found(noiser: type[GaussianNoiser]) -> None:
    assert not noise(noiser).passed


class Weighted(PoissonSampler):
    """Independent coins, but some units have twice the chance of others."""

    def draw(self) -> Tensor:
        chance = torch.full((self.size,), self.rate)
        chance[::2] *= 4 / 3
        chance[1::2] *= 2 / 3
        return (torch.rand(self.size) < chance).nonzero().flatten()


class Repeated(PoissonSampler):
    def draw(self) -> Tensor:
        drawn = super().draw()
        return torch.cat([drawn, drawn[:1]])


class DrawnOnce(PoissonSampler):
    def draw(self) -> Tensor:
        if not hasattr(self, "kept"):
            self.kept = super().draw()
        return self.kept


class Pairs(PoissonSampler):
    """Neighbours come together."""

    def draw(self) -> Tensor:
        first = (torch.rand(self.size // 2) < self.rate).nonzero().flatten() * 2
        return torch.cat([first, first + 1]).sort().values


class LowRate(PoissonSampler):
    def __init__(self, size: int, rate: float) -> None:
        super().__init__(size, rate * 0.9)
        self.rate, self.expected = rate, rate * size


class Misstated(PoissonSampler):
    def __init__(self, size: int, rate: float) -> None:
        super().__init__(size, rate)
        self.expected = float(round(self.expected) + 1)


@pytest.mark.parametrize("sampler", [Weighted, Repeated, DrawnOnce, Pairs, LowRate, Misstated])
def test_wrong_sampling_is_found(sampler: type[PoissonSampler]) -> None:
    finding = check_sampler(replace(Setup(), sampler=sampler))
    assert not finding.passed and "FAILS" in str(finding)


class Bounds:
    """A bounder around the right one."""

    def __init__(self, model: nn.Module, clipping_norm: float) -> None:
        self.clipping_norm, self._inner, self.count = clipping_norm, make_bounder(model, clipping_norm), 0

    def __getattr__(self, name: str):  # type: ignore[no-untyped-def]
        return getattr(self._inner, name)


class LastBatchOnly(Bounds):
    def accumulate(self, batch, loss, examples):  # type: ignore[no-untyped-def]
        self._inner.take()
        self._inner.accumulate(batch, loss, examples)


class BatchClipped(Bounds):
    """Clips the gradient of the batch, not of each example."""

    def accumulate(self, batch, loss, examples):  # type: ignore[no-untyped-def]
        for index in range(0, examples, 2):
            part = {name: x[index : index + 2] for name, x in batch.items()}
            grads = torch.autograd.grad(loss(part) * len(part["labels"]), list(self._inner.parameters.values()))
            norm = float(torch.stack([g.norm() for g in grads]).norm())
            for (_, parameter), grad in zip(self._inner.parameters.items(), grads, strict=True):
                self._inner._sums.add(parameter, grad * min(1.0, self.clipping_norm / norm))


@pytest.mark.parametrize("bounder", [LastBatchOnly, BatchClipped])
def test_wrong_sums_are_found(bounder) -> None:  # type: ignore[no-untyped-def]
    subject = tiny_subject()
    finding = check_oracle(replace(Setup(), bounder=bounder), subject.model, subject.dataset, subject.loss)
    assert not finding.passed and finding.value > 0.01


def test_the_oracle_leaves_the_model_as_it_was() -> None:
    subject = tiny_subject()
    before = [p.clone() for p in subject.model.parameters()]
    assert subject.model.training and check_oracle(Setup(), subject.model, subject.dataset, subject.loss).passed
    assert subject.model.training and all(torch.equal(p, q) for p, q in zip(before, subject.model.parameters(), strict=True))
    assert all(p.grad is None for p in subject.model.parameters())


def test_a_non_finite_example_must_add_zero() -> None:
    subject = tiny_subject()

    def loss(model: nn.Module, batch) -> Tensor:  # type: ignore[no-untyped-def]
        spoilt = torch.where(batch["input_ids"][:, 0] == int(subject.dataset["input_ids"][2, 0]), float("inf"), 1.0)
        each = nn.functional.cross_entropy(model(batch["input_ids"]), batch["labels"], reduction="none")
        return (each * spoilt).mean()

    assert check_oracle(Setup(), subject.model, subject.dataset, loss).passed


def test_statistics_of_what_is_right() -> None:
    random = np.random.default_rng(0)
    normal = [min(normal_tests(random.standard_normal((12, 200))).values()) for _ in range(60)]
    coins = [min(coin_tests(random.random((200, 200)) < 0.2, 0.2).values()) for _ in range(60)]
    assert min(normal) > 1e-5 and min(coins) > 1e-5
    assert 0.01 < float(np.median(normal)) < 0.2 and 0.03 < float(np.median(coins)) < 0.3
    assert normal_tests(np.full((2, 3), np.nan)) == {"finite": 0.0}


def test_worst_of_corrects_for_their_number() -> None:
    assert worst_of("noise", {"a": 0.001, "b": 0.5}, 0.0015).passed
    assert not worst_of("noise", {"a": 0.001, "b": 0.5}, 0.0025).passed


def test_too_few_draws_are_refused() -> None:
    for bad in ({"units": 50, "rate": 0.1}, {"steps": 50}, {"rate": 1.0}, {"rate": 0.0}):
        with pytest.raises(InvalidInput):
            check_sampler(Setup(), **bad)  # type: ignore[arg-type]


def test_zero_gradients_are_refused() -> None:
    subject = tiny_subject()
    with pytest.raises(InvalidInput, match="zero"):
        check_oracle(Setup(), subject.model, subject.dataset, lambda model, batch: model(batch["input_ids"]).sum() * 0)
