"""Training on shares against plain: same seeds, same batches, breast cancer data of two owners joined by rows; both in one process."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn
from torch.nn import functional as F

import privtensors as pt
from privtensors.core.recorder import MemoryRecorder

TRAIN, BATCH = 400, 50
Make = Callable[[], nn.Module]
Loss = Callable[[Tensor, Tensor], Tensor]
Optimizer = Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True, slots=True)
class Case:
    """A model, its loss and its optimizer."""

    model: str
    optimizer: str
    make: Make
    loss: Loss
    step: Optimizer


def logistic() -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(30, 1)


def perceptron() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 2))


def binary(z: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(z.squeeze(-1), y.float())


CASES = (
    Case("logistic regression", "SGD", logistic, binary, lambda p: torch.optim.SGD(p, lr=0.1)),
    Case("logistic regression", "SGD, momentum", logistic, binary, lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)),
    Case("logistic regression", "Adam", logistic, binary, lambda p: torch.optim.Adam(p, lr=0.01)),
    Case("MLP 30-16-2", "SGD", perceptron, F.cross_entropy, lambda p: torch.optim.SGD(p, lr=0.1)),
    Case("MLP 30-16-2", "AdamW", perceptron, F.cross_entropy, lambda p: torch.optim.AdamW(p, lr=0.01)),
)


def patients() -> tuple[Tensor, Tensor]:
    """569 patients of 30 measurements each, standardised, in a fixed random order."""
    x, y = load_breast_cancer(return_X_y=True)
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return ((x - x.mean(0)) / x.std(0))[order], y[order]


def joined(x: Tensor) -> Tensor:
    """Half of the rows are the client's, half the server's."""
    half = len(x) // 2
    return torch.cat([pt.protect(x[:half], pt.MPC(), owner="client"), pt.protect(x[half:], pt.MPC(), owner="server")])


def protected(model: nn.Module) -> nn.Module:
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(pt.protect(parameter.detach(), pt.MPC(), owner="server")))
    return model


def fit(case: Case, model: nn.Module, x: Tensor, y: Tensor, epochs: int) -> int:
    """The usual loop; the number of steps."""
    optimizer, steps = case.step(model.parameters()), 0
    for _ in range(epochs):
        for start in range(0, len(x), BATCH):
            optimizer.zero_grad()
            case.loss(model(x[start : start + BATCH]), y[start : start + BATCH]).backward()
            optimizer.step()
            steps += 1
    return steps


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        z = model(x)
    found = z.squeeze(-1) > 0 if z.shape[-1] == 1 else z.argmax(-1)
    return float((found == y).float().mean())


def row(case: Case, x: Tensor, y: Tensor, epochs: int) -> list[str]:
    """One line of the table."""
    plain = case.make()
    fit(case, plain, x[:TRAIN], y[:TRAIN], epochs)
    received, session = case.make(), pt.Session(recorder=MemoryRecorder())
    with session:
        private, data, labels = protected(case.make()), joined(x[:TRAIN]), joined(y[:TRAIN])
        with session.meter.scope() as scope:
            steps = fit(case, private, data, labels, epochs)
        with torch.no_grad():
            for mine, theirs in zip(received.parameters(), private.parameters(), strict=True):
                mine.copy_(pt.reveal(theirs, to="server"))
    held_out, pairs = (x[TRAIN:], y[TRAIN:]), zip(received.parameters(), plain.parameters(), strict=True)
    difference = max(float((mine - theirs).detach().abs().max()) for mine, theirs in pairs)
    spent = scope.spent
    costs = (f"{spent.rounds / steps:.0f}", f"{spent.bytes_sent / steps / 1e6:.2f}", f"{spent.dealer_bytes / steps / 1e6:.2f}")
    right = (f"{accuracy(plain, *held_out):.3f}", f"{accuracy(received, *held_out):.3f}")
    return [case.model, case.optimizer, *costs, *right, f"{difference:.0e}"]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench training", description=__doc__)
    parser.add_argument("--epochs", type=int, default=2, help="passes over the 400 patients trained on; 169 are held out")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    x, y = patients()
    table = Table(title=f"breast cancer, batch {BATCH}, {options.epochs} epoch(s); costs per step and party", title_justify="left")
    for name in ("model", "optimizer", "rounds", "sent MB", "dealer MB", "plain acc", "shared acc", "weights differ"):
        table.add_column(name, justify="left" if name in ("model", "optimizer") else "right")
    for case in CASES:
        table.add_row(*row(case, x, y, options.epochs))
    console = Console(width=120)
    console.print(table)
    console.print("SIMULATED: one process holds every party's view.")
