"""The book-keeping engine where models and passes are not as plain as in the families."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from privtensors.testing.dp_models import Trial, families
from privtensors.testing.dp_oracle import difference, oracle
from privtensors.train.bounding import make_bounder
from privtensors.train.roles import Batch
from tests.unit.train.bounding.trials import Net, clipped, seeded, trial

# Dropout: the masks are those of the one forward pass


@pytest.mark.parametrize("attention", [False, True])
def test_dropout_is_that_of_the_one_pass(attention: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.3, batch_first=True) if attention else nn.Dropout(0.3)
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 8), layer, nn.Dropout(0.2), nn.Linear(8, 2)))
    t = trial(model)
    torch.manual_seed(7)
    sums = clipped(t, 0.05)
    torch.manual_seed(7)
    losses = t.losses(t.batch)
    named = dict(model.named_parameters())
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in named.items()}
    for one in losses:
        grads = [g.double() for g in torch.autograd.grad(one, list(named.values()), retain_graph=True)]
        factor = min(1.0, 0.05 / float(torch.stack([g.norm() for g in grads]).norm()))
        for name, grad in zip(named, grads, strict=True):
            total[name] += factor * grad
    for name, value in total.items():
        torch.testing.assert_close(sums[name].double(), value, rtol=1e-4, atol=1e-7)


def test_random_numbers_are_not_used_up_by_the_checks() -> None:
    t = trial(seeded(lambda: nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 2))))
    torch.manual_seed(1)
    clipped(t, 1.0)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))


# Examples that are not finite


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("engine", ["bookkeeping", "loop", "auto"])
def test_an_example_that_is_not_finite_adds_zero(bad: float, engine: str) -> None:
    conv = Net(
        lambda m, x: m.head(m.norm(m.attend(x, x, x)[0] + m.long(x)) + m.conv(x[:, None])[:, :, :, :8].mean((1, 2))[:, None]),
        attend=nn.MultiheadAttention(8, 2, batch_first=True), long=nn.Linear(8, 8), norm=nn.LayerNorm(8), conv=nn.Conv2d(1, 2, 1),
        head=nn.Linear(8, 2),
    )  # fmt: skip
    t = trial(conv)
    rest = torch.tensor([0, 1, 3, 4, 5])
    clean = clipped(Trial("", t.model, {k: v[rest] for k, v in t.batch.items()}, t.loss, t.losses, 5), 0.1, engine)
    fresh, bounder = make_bounder(t.model, 0.1, engine=engine), make_bounder(t.model, 0.1, engine=engine)  # type: ignore[arg-type]
    bounder.accumulate(t.batch, t.loss, t.examples)
    bounder.take()
    t.batch["x"][2] = bad
    for either in (bounder, fresh):  # of a first batch nothing is known yet
        either.accumulate(t.batch, t.loss, t.examples)
        sums = either.take()
        for name, value in clean.items():
            assert bool(value.any())
            torch.testing.assert_close(sums[name], value, rtol=1e-4, atol=1e-7)


def test_an_infinite_row_of_an_embedding_adds_zero() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(10, 4), nn.Linear(4, 2)

        def forward(self, ids: Tensor) -> Tensor:
            out: Tensor = self.head(self.words(ids).mean(1))
            return out

    model = seeded(Words)
    ids = torch.tensor([[1, 2, 3], [4, 4, 5], [6, 7, 7]])
    weight = torch.tensor([1.0, float("inf"), 1.0])

    def loss(batch: Batch) -> Tensor:
        return (model(batch["ids"]).logsumexp(1) * batch["weight"]).mean()

    bounder = make_bounder(model, 1.0, engine="bookkeeping")
    bounder.accumulate({"ids": ids, "weight": torch.ones(3)}, loss, 3)
    bounder.take()
    bounder.accumulate({"ids": ids, "weight": weight}, loss, 3)
    sums = bounder.take()
    assert all(bool(torch.isfinite(v).all()) for v in sums.values())
    assert not bool(sums["words.weight"][4:6].any()) and bool(sums["words.weight"][6:8].any())


def test_a_zero_gradient_is_zero() -> None:
    t = trial(seeded(lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))))
    bounder = make_bounder(t.model, 1.0, engine="bookkeeping")
    bounder.accumulate(t.batch, lambda b: t.loss(b) * 0, t.examples)
    assert not any(bool(v.any()) for v in bounder.take().values())


# Precision


def test_autocast_keeps_norms_and_sums_in_float32() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 16), nn.Linear(16, 2)))
    t = trial(model, examples=8)
    truth = oracle(t)

    def loss(batch: Batch) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return t.loss(batch)

    bounder = make_bounder(model, truth.clipping_norm, engine="bookkeeping")
    with torch.autocast("cpu", dtype=torch.bfloat16):  # the caller's must not reach the norms either
        bounder.accumulate(t.batch, loss, 8)
    sums = bounder.take()
    assert {v.dtype for v in sums.values()} == {torch.float32}
    assert difference(sums, truth)[0] < 3e-2
    # The bound holds far below bfloat16's precision of 4e-3: every example is clipped alone.
    for index in range(8):
        twice = {name: value[[index, index]] for name, value in t.batch.items()}
        bounder.clipping_norm = float(truth.norms.min()) / 2
        bounder.accumulate(twice, loss, 2)
        norm = torch.stack([v.double().norm() for v in bounder.take().values()]).norm()
        assert abs(float(norm) / (2 * bounder.clipping_norm) - 1) < 1e-5


def test_half_precision_parameters_are_summed_in_float32() -> None:
    t = trial(seeded(lambda: nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 2)).bfloat16()))
    t.batch["x"] = t.batch["x"].bfloat16()
    for engine in ("bookkeeping", "loop"):
        sums = clipped(t, 0.1, engine)
        assert {v.dtype for v in sums.values()} == {torch.float32}
        assert 0.1 < float(torch.stack([v.norm() for v in sums.values()]).norm()) <= 0.6 * (1 + 1e-3)


def test_float64_stays_float64() -> None:
    t = trial(seeded(lambda: nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 2)).double()))
    t.batch["x"] = t.batch["x"].double()
    truth = oracle(t)
    sums = clipped(t, truth.clipping_norm)
    assert {v.dtype for v in sums.values()} == {torch.float64} and difference(sums, truth)[0] < 1e-13


# The model is left as it was


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    def state() -> list[Any]:
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_backward_hooks")
        kept = [[len(getattr(m, name)) for name in hooks] + [m.training, sorted(vars(m))] for m in model.modules()]
        return [kept, [(p.requires_grad, p.grad is None, sorted(vars(p))) for p in model.parameters()]]

    before, weights = state(), copy.deepcopy(model.state_dict())
    yield
    assert state() == before
    assert all(torch.equal(v, weights[name]) for name, v in model.state_dict().items())


@pytest.mark.parametrize("raised", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("at", ["forward", "backward"])
def test_whatever_is_raised_the_model_is_as_it_was(raised: type[BaseException], at: str) -> None:
    t = families()["ViT"].trial()
    bounder = make_bounder(t.model, 1.0)
    bounder.accumulate(t.batch, t.loss, t.examples)
    before = bounder.take()
    armed = False

    def stop(*_: Any) -> None:
        if armed:
            raise raised

    middle = t.model.get_submodule("vit.layers.1")
    handle = middle.register_forward_hook(stop) if at == "forward" else middle.register_full_backward_hook(stop)
    with unchanged(t.model):
        bounder.accumulate(t.batch, t.loss, t.examples)
        armed = True
        with pytest.raises(raised):
            bounder.accumulate(t.batch, t.loss, t.examples)
    handle.remove()
    after = bounder.take()  # the running sum is what it was
    for name, value in before.items():
        torch.testing.assert_close(after[name], value)


@pytest.mark.parametrize("engine", ["auto", "bookkeeping", "loop", "opacus"])
def test_nothing_is_left_on_the_model(engine: Any) -> None:
    t = families()["LoRA on GPT-2"].trial()
    t.model.get_submodule("base_model.model.transformer.h.0").eval()
    if engine == "opacus":
        t.model.train()
    with unchanged(t.model):
        bounder = make_bounder(t.model, 1.0, engine=engine)
        bounder.accumulate(t.batch, t.loss, t.examples)
        bounder.take()
        bounder.close()


def test_hooks_are_there_only_while_a_batch_is_bounded() -> None:
    t = trial(seeded(lambda: nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 2))))
    with unchanged(t.model):
        bounder = make_bounder(t.model, 1.0)
        bounder.accumulate(t.batch, t.loss, t.examples)
        copy.deepcopy(t.model)(t.batch["x"]).sum().backward()
        assert t.model(t.batch["x"]).requires_grad


def test_earlier_gradients_are_given_back() -> None:
    t = trial(seeded(lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))))
    held = torch.ones_like(t.model[0].weight)  # type: ignore[index, arg-type]
    t.model[0].weight.grad = held  # type: ignore[index]
    for engine in ("bookkeeping", "loop"):
        clipped(t, 1.0, engine)
        assert t.model[0].weight.grad is held and bool((held == 1).all())  # type: ignore[index]
