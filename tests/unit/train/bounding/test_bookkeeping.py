"""The book-keeping engine where models and passes are not as plain as in the families."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from privtensors.errors import UnboundedParameter
from privtensors.testing.dp_models import Trial, families
from privtensors.testing.dp_oracle import difference, oracle
from privtensors.train.bounding import make_bounder
from privtensors.train.roles import Batch

TOLERANCE = 1e-5


def trial(model: nn.Module, *, examples: int = 6, shape: tuple[int, ...] = (5, 8)) -> Trial:
    """A model of features ``(B, *shape)`` with two outputs, and a batch for it."""
    random = torch.Generator().manual_seed(3)
    batch = {"x": torch.randn(examples, *shape, generator=random), "y": torch.randint(0, 2, (examples,), generator=random)}

    def losses(b: Batch) -> Tensor:
        out = model(b["x"])
        return F.cross_entropy(out if out.dim() == 2 else out.mean(1), b["y"], reduction="none")

    model.train()
    return Trial("", model, batch, lambda b: losses(b).mean(), losses, examples)


def clipped(t: Trial, norm: float, engine: Any = "bookkeeping") -> dict[str, Tensor]:
    bounder = make_bounder(t.model, norm, engine=engine)
    bounder.accumulate(t.batch, t.loss, t.examples)
    return bounder.take()


def assert_exact(t: Trial, engine: Any = "bookkeeping", ends: str | None = None) -> None:
    truth = oracle(t)
    bounder = make_bounder(t.model, truth.clipping_norm, engine=engine)
    bounder.accumulate(t.batch, t.loss, t.examples)
    assert bounder.engine == (ends or engine)
    error, worst = difference(bounder.take(), truth)
    assert error <= TOLERANCE and worst <= TOLERANCE


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make()


class Net(nn.Module):
    """Layers by name and a function of them and the input."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


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


# Uses that are not plain


def sorted_by_size(m: Any, x: Tensor) -> Tensor:
    order = x.sum((1, 2)).argsort()
    hidden: Tensor = m.head(m.a(x[order])[order.argsort()])
    return hidden


def twice_raw(m: Any, x: Tensor) -> Tensor:
    hidden: Tensor = m.a(x) @ m.a.weight
    return m.head(hidden)


RAW: dict[str, Callable[[], nn.Module]] = {
    "weight used outside its module": lambda: Net(twice_raw, a=nn.Linear(8, 8), head=nn.Linear(8, 2)),
    "forward called directly": lambda: Net(lambda m, x: m.head(m.a.forward(x)), a=nn.Linear(8, 8), head=nn.Linear(8, 2)),
    "positions flattened first": lambda: Net(
        lambda m, x: m.head(m.a(x.transpose(0, 1).reshape(-1, 8)).view(5, -1, 8).transpose(0, 1)), a=nn.Linear(8, 8), head=nn.Linear(8, 2)
    ),
    "examples reversed": lambda: Net(lambda m, x: m.head(m.a(x.flip(0)).flip(0)), a=nn.Linear(8, 8), head=nn.Linear(8, 2)),
    "examples sorted": lambda: Net(lambda m, x: sorted_by_size(m, x), a=nn.RMSNorm(8), head=nn.Linear(8, 2)),
    "constant rows": lambda: Net(
        lambda m, x: m.head(x + m.a(torch.zeros(60, 8)).mean(0)), a=nn.Linear(8, 8), head=nn.Linear(8, 2)
    ),
    "sequence first": lambda: Net(lambda m, x: m.head(m.a(x.transpose(0, 1)).transpose(0, 1)), a=nn.Linear(8, 8), head=nn.Linear(8, 2)),
    "recurrent": lambda: Net(lambda m, x: m.head(m.a(x)[0]), a=nn.LSTM(8, 8, batch_first=True), head=nn.Linear(8, 2)),
    "parametrised": lambda: Net(
        lambda m, x: m.head(m.a(x)), a=nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), head=nn.Linear(8, 2)
    ),
    "rows shared by examples": lambda: Net(
        lambda m, x: m.head(x + m.a(torch.arange(25).view(5, 5)).mean(1)), a=nn.Embedding(25, 8), head=nn.Linear(8, 2)
    ),
}  # fmt: skip


@pytest.mark.parametrize("examples", [5, 6])  # the sequence is 5 long
@pytest.mark.parametrize("name", RAW)
def test_auto_takes_the_loop_where_examples_cannot_be_told_apart(name: str, examples: int) -> None:
    t = trial(seeded(RAW[name]), examples=examples)
    with pytest.raises(UnboundedParameter):
        clipped(t, 1.0)
    assert_exact(t, "auto", "loop")


class Doubled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Scale(nn.Module):
    """Owns parameters in a list, as adapters do."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(8)) for _ in range(2)])
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor, *, shift: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner(x * self.weights[0]) + shift, x * self.weights[1]


SEEN: dict[str, Callable[[], nn.Module]] = {
    "subclass": lambda: Net(lambda m, x: m.head(m.a(x)), a=Doubled(8, 8), head=nn.Linear(8, 2)),
    "parameter list, several outputs": lambda: Net(
        lambda m, x: m.head(torch.stack(m.a(x, shift=x.flip(1))).sum(0)), a=Scale(), head=nn.Linear(8, 2)
    ),
    "one output unused": lambda: Net(lambda m, x: m.head(m.a(x, shift=x)[1]), a=Scale(), head=nn.Linear(8, 2)),
    "in place on a first output": lambda: Net(
        lambda m, x: m.head(F.relu(m.a(x).add_(x), inplace=True)), a=nn.Linear(8, 8), head=nn.Linear(8, 2)
    ),
    "in place on a later output": lambda: Net(
        lambda m, x: m.head(F.relu(m.a(m.a(x)).add_(x), inplace=True)), a=nn.Linear(8, 8), head=nn.Linear(8, 2)
    ),
    "in place on a slice": lambda: Net(lambda m, x: m.head(halved(m.a(m.a(x)))), a=nn.Linear(8, 8), head=nn.Linear(8, 2)),
    "in place on positions": lambda: Net(
        lambda m, x: m.head(m.a(torch.arange(5).expand(len(x), -1)).add_(x)), a=nn.Embedding(5, 8), head=nn.Linear(8, 2)
    ),
    "examples flattened": lambda: Net(
        lambda m, x: m.head(m.norm(m.a(x.reshape(-1, 8))).view_as(x)), a=nn.Linear(8, 8), norm=nn.LayerNorm(8), head=nn.Linear(8, 2)
    ),
    "windows": lambda: Net(lambda m, x: m.head(m.a(x.reshape(-1, 5, 4)).view_as(x)), a=nn.Linear(4, 4), head=nn.Linear(8, 2)),
    "long examples": lambda: Net(lambda m, x: m.head(m.a(x.repeat(1, 9, 1))), a=nn.Linear(8, 8), head=nn.Linear(8, 2)),
    "shared until formed": lambda: Net(
        lambda m, x: m.head(m.a(m.a(m.a(m.a(x).tanh()).tanh()).tanh())), a=nn.Linear(8, 8), head=nn.Linear(8, 2)
    ),
    "root mean square": lambda: Net(lambda m, x: m.head(m.a(x)), a=nn.RMSNorm(8), head=nn.Linear(8, 2)),
    "keyword input": lambda: Net(lambda m, x: m.head(input=m.a(input=x)), a=nn.Linear(8, 8), head=nn.Linear(8, 2)),
    "no grad branch": lambda: Net(lambda m, x: m.head(m.a(x)) + no_grad(m.a, x).mean(), a=nn.Linear(8, 8), head=nn.Linear(8, 2)),
    "unused layer": lambda: Net(lambda m, x: m.head(x), a=nn.Linear(8, 8), head=nn.Linear(8, 2)),
    "norms alone": lambda: Net(lambda m, x: m.head(m.a(x)).detach() * 0 + m.a(x)[..., :2], a=nn.LayerNorm((5, 8)), head=nn.Linear(8, 2)),
    "checkpointed by hand": lambda: Net(
        lambda m, x: m.head(checkpoint(m.a, x, use_reentrant=False)), a=nn.Sequential(nn.Linear(8, 8), nn.RMSNorm(8)), head=nn.Linear(8, 2)
    ),
}  # fmt: skip


def halved(x: Tensor) -> Tensor:
    x[..., :4] *= 0.5
    return x


def no_grad(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = layer(x)
        return out


def test_tables_that_differ_in_their_padding_row() -> None:
    class Tables(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Embedding(6, 2, padding_idx=0), nn.Embedding(6, 2)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            ids = (x[..., 0].abs() * 3).long().clamp(max=5)
            return torch.tanh(self.a(ids)) + torch.tanh(2 * self.b(ids))

    assert_exact(trial(seeded(Tables), shape=(9, 1)))


@pytest.mark.parametrize("name", SEEN)
def test_it_sees_what_stays_in_a_module(name: str) -> None:
    assert_exact(trial(seeded(SEEN[name])))


def test_an_input_changed_in_place_is_refused_as_by_autograd() -> None:
    model = seeded(lambda: Net(lambda m, x: (h := x * 1, m.head(h), h.mul_(2))[1], head=nn.Linear(8, 2)))
    t = trial(model)
    with pytest.raises(UnboundedParameter, match="in place"):
        clipped(t, 1.0)
    with pytest.raises(RuntimeError, match="inplace"):
        clipped(t, 1.0, "loop")


@pytest.mark.parametrize("layer", [nn.Linear(8, 8), nn.RMSNorm(8)])
def test_a_gradient_penalty_takes_the_loop(layer: nn.Module) -> None:
    model = seeded(lambda: nn.Sequential(layer, nn.Tanh(), nn.Linear(8, 2)))
    t = trial(model)

    def losses(b: Batch) -> Tensor:
        x = b["x"].clone().requires_grad_()
        each = F.cross_entropy(model(x).mean(1), b["y"], reduction="none")
        if not torch.is_grad_enabled():
            return each
        (slope,) = torch.autograd.grad(each.sum(), x, create_graph=True)
        return each + slope.flatten(1).pow(2).sum(1)

    t = Trial("", model, t.batch, lambda b: losses(b).mean(), losses, t.examples)
    with pytest.raises(UnboundedParameter, match="second order"):
        clipped(t, 1.0)
    assert_exact(t, "auto", "loop")


def test_the_users_hooks_are_part_of_the_model() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 8), nn.RMSNorm(8), nn.Linear(8, 2)))
    for layer in model:
        layer.register_forward_hook(lambda m, args, out: out * 3)
        layer.register_forward_pre_hook(lambda m, args: (args[0] + 1,))
    assert_exact(trial(model))


def test_a_hook_on_a_parameter_leads_to_the_loop() -> None:
    t = trial(seeded(lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))))
    t.model[0].weight.register_hook(lambda grad: grad * 0)  # type: ignore[index]
    with pytest.raises(UnboundedParameter, match=r"0\.weight"):
        make_bounder(t.model, 1.0, engine="bookkeeping")
    assert_exact(t, "auto", "loop")


def test_a_module_that_runs_later_is_examined_then() -> None:
    class Switch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.on, self.off, self.scale = nn.Linear(8, 2), nn.Linear(8, 2), nn.RMSNorm(2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.scale(self.on(x)) if float(x[0, 0, 0]) == 1 else self.off(x)
            return out

    t = trial(seeded(Switch))
    bounder = make_bounder(t.model, 0.1, engine="bookkeeping")
    for first in (0.0, 1.0):
        t.batch["x"][:, 0, 0] = first
        truth = oracle(t, 0.1)
        bounder.accumulate(t.batch, t.loss, t.examples)
        bounder.accumulate(t.batch, t.loss, t.examples)
        error, _ = difference({name: value / 2 for name, value in bounder.take().items()}, truth)
        assert error <= TOLERANCE


def test_a_module_that_was_seen_is_watched_all_the_same() -> None:
    class Turn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.scale, self.head = nn.Linear(8, 8), nn.RMSNorm(8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            first = float(x[0, 0, 0])
            turned = x.transpose(0, 1) if first else x
            hidden = self.scale(turned) if first == 2 else self.a(turned)
            out: Tensor = self.head(hidden.transpose(0, 1) if first else self.scale(hidden))
            return out

    for first in (1.0, 2.0):
        t = trial(seeded(Turn))
        bounder = make_bounder(t.model, 1.0, engine="bookkeeping")
        t.batch["x"][:, 0, 0] = 0
        for _ in range(2):
            bounder.accumulate(t.batch, t.loss, t.examples)
        t.batch["x"][:, 0, 0] = first
        with pytest.raises(UnboundedParameter, match="first axis"):
            bounder.accumulate(t.batch, t.loss, t.examples)


def test_a_replay_that_gives_something_else_is_refused() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.random = nn.Parameter(torch.ones(8)), torch.Generator().manual_seed(0)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight * (1 + self.training * torch.rand(8, generator=self.random))

    t = trial(seeded(lambda: nn.Sequential(Noisy(), nn.Linear(8, 2))))
    with pytest.raises(UnboundedParameter, match="draws random numbers"):
        clipped(t, 1.0)


def test_a_module_that_runs_in_training_alone_is_refused() -> None:
    model = seeded(lambda: Net(lambda m, x: m.head(m.a(x) if m.training else x), a=nn.Linear(8, 8), head=nn.Linear(8, 2)))
    with pytest.raises(UnboundedParameter, match="examined"):
        clipped(trial(model), 1.0)
    assert_exact(trial(model), "auto", "loop")


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
