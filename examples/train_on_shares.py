"""Two hospitals train one classifier on secret shares: nobody sees the other's patients, the gradients or the trained weights.

Breast cancer data (scikit-learn), split between client and server by rows (each has some patients) or by columns (each has
some of the measurements of the same patients). Stock torch modules, losses and optimizers.

    python examples/train_on_shares.py --epochs 2
"""

from __future__ import annotations

import argparse
import logging

import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn

import privtensors as pt

TECHNIQUE = pt.MPC()


def data() -> tuple[Tensor, Tensor]:
    """569 patients of 30 measurements each, standardised, in a fixed random order."""
    x, y = load_breast_cancer(return_X_y=True)
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return ((x - x.mean(0)) / x.std(0))[order], y[order]


def by_rows(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Half of the patients are the client's, half the server's."""
    half = len(x) // 2
    parts = [(slice(None, half), "client"), (slice(half, None), "server")]
    return (
        torch.cat([pt.protect(x[rows], TECHNIQUE, owner=owner) for rows, owner in parts]),
        torch.cat([pt.protect(y[rows], TECHNIQUE, owner=owner) for rows, owner in parts]),
    )


def by_columns(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The client has 10 measurements and the diagnosis, the server the other 20 measurements."""
    parts = [pt.protect(x[:, :10], TECHNIQUE, owner="client"), pt.protect(x[:, 10:], TECHNIQUE, owner="server")]
    return torch.cat(parts, dim=1), pt.protect(y, TECHNIQUE, owner="client")


def classifier() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 2))


def protected(model: nn.Module) -> nn.Module:
    """Replace every parameter by its protected form."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(pt.protect(parameter.detach(), TECHNIQUE, owner="server")))
    return model


def train(model: nn.Module, x: Tensor, y: Tensor, *, epochs: int, batch: int = 64) -> nn.Module:
    """The usual loop; nothing in it knows whether the tensors are protected."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(epochs):
        for start in range(0, len(x), batch):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x[start : start + batch]), y[start : start + batch])
            loss.backward()
            optimizer.step()
    return model


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(-1) == y).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--examples", type=int, default=400, help="patients to train on; the rest is held out")
    options = parser.parse_args()
    logging.getLogger("privtensors").setLevel(logging.ERROR)

    print(pt.Policy(train=[TECHNIQUE]).explain())
    x, y = data()
    seen, held_out = slice(None, options.examples), slice(options.examples, None)
    plain = accuracy(train(classifier(), x[seen], y[seen], epochs=options.epochs), x[held_out], y[held_out])
    print(f"\n{'plain':25} held-out accuracy {plain:.3f}")
    for name, join in (("by rows", by_rows), ("by columns", by_columns)):
        private = train(protected(classifier()), *join(x[seen], y[seen]), epochs=options.epochs)
        received = classifier()  # the server receives the trained weights, and only it: one ledger row each
        with torch.no_grad():
            for target, (label, source) in zip(received.parameters(), private.named_parameters(), strict=True):
                target.copy_(pt.reveal(source, to="server", label=f"trained {label}"))
        print(f"shared, joined {name:10} held-out accuracy {accuracy(received, x[held_out], y[held_out]):.3f}")


if __name__ == "__main__":
    main()
