"""A small convolutional network on CrypTen's shares: the same torch code, another backend.

Set up once with ``privtensors backends install crypten``, then run ``python plugins/crypten/examples/convolution_on_crypten.py``.
"""

from __future__ import annotations

import torch
from privtensors_crypten.technique import CrypTen
from torch import nn

import privtensors as pt
from privtensors.core import Session


def main() -> None:
    torch.manual_seed(0)
    technique = CrypTen()
    print(pt.Policy(infer=[technique]).explain())

    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 13 * 13, 10), nn.Softmax(-1))
    image = torch.rand(1, 1, 28, 28)
    with Session() as session, torch.no_grad():
        hidden = pt.protect(image, technique, owner="client")
        with session.meter.scope() as scope:
            scores = pt.reveal(model(hidden), to="client", label="scores")
        error = float((scores - model(image)).abs().max())
        spent = scope.spent
    print(f"{spent.rounds} rounds, {spent.bytes_sent / 1e6:.2f} MB per party, {spent.dealer_bytes / 1e6:.2f} MB from the dealer")
    print(f"largest error {error:.5f}")


if __name__ == "__main__":
    main()
