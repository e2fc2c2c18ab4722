"""Models and losses in which one example changes another's gradient are refused, on public inputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from privtensors.errors import BoundingError, CrossExample, InvalidInput
from privtensors.train.checks import BufferGuard, check_loss, check_model, public_batch
from privtensors.train.roles import Batch, Loss
from tests.unit.train import tiny

FEATURES = {"x": torch.full((3, 6), 1e9), "labels": torch.full((3,), 12345)}
TOKENS = {"ids": torch.full((3, 6), 12345), "attention_mask": torch.zeros(3, 6, dtype=torch.int64), "labels": torch.full((3, 6), 12345)}


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"linear": nn.Linear(6, 3), "table": nn.Embedding(4, 8), "drop": nn.Dropout(0.5)}).train()


Make = Callable[[nn.Module], Loss]
GOOD: dict[str, tuple[Make, Batch]] = {
    "cross entropy": (lambda m: lambda b: F.cross_entropy(m["drop"](m["linear"](b["x"])), b["labels"]), FEATURES),
    "squares": (lambda m: lambda b: (m["linear"](b["x"]) ** 2).mean(), FEATURES),
    "tokens within examples": (
        lambda m: lambda b: (F.cross_entropy(m["table"](b["ids"]).transpose(1, 2), b["labels"], reduction="none").sum(1)
                             / (b["labels"] != -100).sum(1)).mean(), TOKENS),
}  # fmt: skip
MIXING: dict[str, tuple[Make, Batch]] = {
    "tokens of the batch": (lambda m: lambda b: F.cross_entropy(m["table"](b["ids"]).transpose(1, 2), b["labels"]), TOKENS),
    "contrastive": (lambda m: lambda b: F.cross_entropy(m["linear"](b["x"]) @ m["linear"](b["x"]).T, torch.arange(len(b["x"]))), FEATURES),
    "sum": (lambda m: lambda b: (m["linear"](b["x"]) ** 2).sum(), FEATURES),
    "batch mean": (lambda m: lambda b: ((m["linear"](b["x"]) - m["linear"](b["x"]).mean(0)) ** 2).mean(), FEATURES),
}


@pytest.mark.parametrize("name", GOOD)
def test_means_over_examples_pass(network: nn.Module, name: str) -> None:
    make, template = GOOD[name]
    state = torch.random.get_rng_state()
    check_loss(make(network), network, template)
    assert network.training and torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("name", MIXING)
def test_what_mixes_examples_is_refused(network: nn.Module, name: str) -> None:
    make, template = MIXING[name]
    with pytest.raises(CrossExample, match="mixes the examples") as caught:
        check_loss(make(network), network, template)
    assert "within each example" in caught.value.fix and network.training


def test_no_training_value_is_in_the_public_batch() -> None:
    made = public_batch(FEATURES | TOKENS)
    assert not any(bool((x == 12345).any() or (x == 1e9).any()) for x in made.values())
    assert made["attention_mask"].all() and (made["labels"] == -100).sum() == 3 and made["x"].shape == (2, 6)
    torch.manual_seed(0)
    first = public_batch(FEATURES)["x"]
    torch.manual_seed(0)
    assert torch.equal(first, public_batch({"x": torch.zeros(1, 6), "labels": FEATURES["labels"]})["x"])


def test_a_loss_that_cannot_be_tried_needs_public_examples(network: nn.Module) -> None:
    def picky(batch: Batch) -> Tensor:
        assert int(batch["labels"].min()) >= 2
        return network["linear"](batch["x"]).mean()  # type: ignore[index]

    with pytest.raises(InvalidInput, match="AssertionError") as caught:
        check_loss(picky, network, FEATURES)
    assert "public=" in caught.value.fix
    check_loss(picky, network, FEATURES, {"x": torch.randn(2, 6), "labels": torch.tensor([2, 3])})


@pytest.mark.parametrize("wrong", [lambda b: b["x"].sum(1), lambda b: 1.0, lambda b: b["x"].mean() * float("nan")])
def test_what_is_no_loss_is_refused(network: nn.Module, wrong: Loss) -> None:
    with pytest.raises(InvalidInput):
        check_loss(wrong, network, FEATURES)


def test_models_that_normalise_over_the_batch_or_do_not_train() -> None:
    check_model(tiny.model())
    for layer in (nn.BatchNorm1d(4), nn.SyncBatchNorm(4), nn.InstanceNorm1d(4, track_running_stats=True)):
        with pytest.raises(CrossExample, match=type(layer).__name__) as caught:
            check_model(nn.Sequential(nn.Linear(4, 4), layer))
        assert caught.value.fix
    with pytest.raises(BoundingError, match="frozen"):
        check_model(tiny.model().requires_grad_(False))


def test_changed_buffers_are_named() -> None:
    norm = nn.BatchNorm1d(4)
    norm.running_var[0] = float("nan")
    guard = BufferGuard(norm)
    guard.check()
    norm.eval()
    norm(torch.randn(3, 4))
    guard.check()
    norm.train()
    norm(torch.randn(3, 4))
    with pytest.raises(CrossExample, match="running_mean"):
        guard.check()
    guard = BufferGuard(norm)
    norm.running_mean = torch.zeros(4)
    with pytest.raises(CrossExample, match="running_mean"):
        guard.check()
