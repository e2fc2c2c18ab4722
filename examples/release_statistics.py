"""Release statistics of a medical table with differential privacy: mean, histogram, group sums, second moments, one ledger.

Run it with ``python examples/release_statistics.py``. It needs ``pip install 'privtensors[dp]' scikit-learn``; the table, 569 breast
tumours, comes with scikit-learn.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer

import privtensors as pt
from privtensors.accounting import Account, Accounts

# Public knowledge, not read off the data: rough largest values of radius, texture, perimeter and area.
COLUMNS, LARGEST = ("radius", "texture", "perimeter", "area"), torch.tensor([30.0, 40.0, 200.0, 2600.0])


def show(name: str, released: torch.Tensor, truth: torch.Tensor) -> None:
    """One line per statistic: largest error against the truth, which only the owner can print."""
    error = (released - truth).abs().max()
    print(f"{name:<24} largest error {error:9.3f}, truth up to {truth.abs().max():11.2f}, relative {error / truth.abs().max():.4f}")


def main() -> None:
    data = load_breast_cancer()
    table = torch.tensor(data.data[:, : len(COLUMNS)], dtype=torch.float32)
    labels = torch.tensor(data.target)

    with tempfile.TemporaryDirectory() as folder, pt.Session(recorder=pt.Ledger(Path(folder) / "ledger.sqlite")) as session:
        account = Account("tumours", "row")
        accounts = Accounts(session.recorder)
        accounts.set_budget(account, epsilon=3.0, delta=1e-6)

        tumours = pt.DP(unit="row", dataset="tumours")
        x = pt.protect(table, tumours, owner="hospital")
        y = pt.protect(labels, tumours, owner="hospital")

        scaled = (x / LARGEST).clamp(0, 1)  # every entry in 0..1: now one row can change a sum by so much and no more
        print(f"SafeTensor: {scaled}")

        mean = pt.reveal(scaled.mean(0), release=pt.Gaussian(epsilon=0.5), to="public", label="means") * LARGEST
        show("means", mean, table.mean(0))

        histogram = pt.reveal(torch.histc(x[:, 0], 10, 5.0, 30.0), release=pt.Laplace(epsilon=0.5), to="public", label="radius")
        show("histogram of radius", histogram, torch.histc(table[:, 0], 10, 5.0, 30.0))

        clipped = torch.renorm(scaled, 2, 0, 1.0)  # every row scaled down to norm 1
        sums = F.one_hot(y, 2).float().T @ clipped
        counts = pt.reveal(torch.bincount(y, minlength=2), release=pt.Laplace(epsilon=0.5), to="public", label="counts")
        show("patients per diagnosis", counts.float(), torch.bincount(labels).float())
        released = pt.reveal(sums, release=pt.Gaussian(epsilon=0.5), to="public", label="sums per diagnosis")
        plain = torch.renorm((table / LARGEST).clamp(0, 1), 2, 0, 1.0)
        show("sums per diagnosis", released, F.one_hot(labels, 2).float().T @ plain)
        print("mean of each group, from released values only:", [round(v, 3) for v in (released / counts.unsqueeze(1))[:, 0].tolist()])

        moments = pt.reveal(clipped.T @ clipped / len(table), release=pt.Gaussian(epsilon=0.5), to="public", label="second moments")
        show("second moments", moments, plain.T @ plain / len(table))

        for what, attempt in (
            ("a sum without bounds", lambda: x.sum(0)),
            ("centring rows by their own mean", lambda: scaled - scaled.mean(0)),
            ("more than the budget", lambda: pt.reveal(scaled.mean(0), release=pt.Gaussian(epsilon=2.5))),
        ):
            try:
                attempt()
            except pt.PrivTensorsError as refused:
                print(f"refused, {what}: {type(refused).__name__}")

        now = accounts.statement(account)
        spent = f"PLD ε {now.cost.epsilon:.2f} together, filter {now.filtered:.2f} of {now.budget.epsilon:g}"
        print(f"{now.releases} releases of ε 0.5 each: {spent}")


if __name__ == "__main__":
    main()
