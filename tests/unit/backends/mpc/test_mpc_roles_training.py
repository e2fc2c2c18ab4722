"""Training with the parties apart: two steps of stock optimizers give the same words, rounds and bytes as in one process.

What an op trial cannot show: autograd saves what the forward pass opened, the optimizer writes into weights and into state
of its own, and the next step opens those again, at each party and at the dealer in the same order.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.unit.backends.mpc.roles import Job, Role, apart, same_as_one_process, together

# AdamW divides by the size of a gradient: where that is a few units of 2^-18, so is its error.
CLOSE = {"momentum": 2e-4, "adamw": 2e-2}
STEPS, ROWS, COLUMNS = 2, 6, 16
Optimizer = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: Mapping[str, Optimizer] = {
    "momentum": partial(torch.optim.SGD, lr=0.5, momentum=0.9),
    "adamw": partial(torch.optim.AdamW, lr=0.05),
}


def logistic() -> tuple[nn.Module, nn.Module]:
    return nn.Linear(COLUMNS, 1), nn.BCEWithLogitsLoss()


def perceptron() -> tuple[nn.Module, nn.Module]:
    return nn.Sequential(nn.Linear(COLUMNS, 7), nn.ReLU(), nn.Linear(7, 3)), nn.CrossEntropyLoss()


def convolutional() -> tuple[nn.Module, nn.Module]:
    image = [nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 2, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()]
    return nn.Sequential(*image, nn.Flatten(), nn.Linear(8, 3)), nn.CrossEntropyLoss()


MODELS = {"logistic": logistic, "perceptron": perceptron, "convolutional": convolutional}


def made(name: str) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    """Model, loss, examples and labels."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model, loss = MODELS[name]()
        x = torch.randn(ROWS, COLUMNS)
    labels = (x[:, 0] > 0).float().unsqueeze(1) if name == "logistic" else x[:, :3].argmax(1)
    return model, loss, x, labels


def steps(model: nn.Module, loss: nn.Module, optimizer: Optimizer, x: Tensor, labels: Tensor) -> list[Tensor]:
    """Two steps; the losses."""
    stepper, found = optimizer(model.parameters()), []
    for _ in range(STEPS):
        stepper.zero_grad()
        value = loss(model(x), labels)
        value.backward()
        stepper.step()
        found.append(value.detach())
    return found


def job_of(start: nn.Module, loss: nn.Module, optimizer: Optimizer, x: Tensor, labels: Tensor) -> Job:
    """The client's examples join the server's by columns, the labels are the client's, the first weights the server's."""

    def job(role: Role) -> list[Tensor]:
        model = copy.deepcopy(start)
        for module in model.modules():
            for key, p in list(module.named_parameters(recurse=False)):
                setattr(module, key, nn.Parameter(role.protect(p.detach(), "server")))
        joined = torch.cat([role.protect(x[:, :2], "client"), role.protect(x[:, 2:], "server")], dim=1)
        losses = steps(model, loss, optimizer, joined, role.protect(labels, "client"))
        return [role.reveal(t, "client") for t in (*model.parameters(), *losses)]  # type: ignore[arg-type]

    return job


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", MODELS)
def test_training_in_three_roles(name: str, optimizer: str) -> None:
    model, loss, x, labels = made(name)
    job = job_of(model, loss, OPTIMIZERS[optimizer], x, labels)
    expected, meter = together(job)
    outcome = apart(job)
    same_as_one_process(expected, meter, outcome)

    before = [p.detach().clone() for p in model.parameters()]
    losses = steps(model, loss, OPTIMIZERS[optimizer], x, labels)
    wanted, found = [p.detach() for p in model.parameters()], outcome.results["client"]
    moved = [float((want - start).abs().max()) for start, want in zip(before, wanted, strict=True)]
    off = [float((got - want).abs().max()) for want, got in zip([*wanted, *losses], found, strict=True)]
    assert min(moved) > 0 and max(moved) > 0.09
    assert max(off) < CLOSE[optimizer]
