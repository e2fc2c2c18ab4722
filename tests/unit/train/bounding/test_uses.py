"""The book-keeping engine where a parameter is used in a way that is not plain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from privtensors.errors import UnboundedParameter
from privtensors.testing.dp_models import Trial
from privtensors.testing.dp_oracle import difference, oracle
from privtensors.train.bounding import make_bounder
from privtensors.train.roles import Batch
from tests.unit.train.bounding.trials import TOLERANCE, Net, assert_exact, clipped, seeded, trial

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
