"""Try to refute the ε of your own private run: your model, data and loss, trained by ``fit`` with canaries beside them.

Breast cancer data (scikit-learn) and a small classifier. The claim comes from the ledger's accountant; the audit knows nothing of
it and looks at what an attacker would see: the noisy gradients of every step.

    python examples/audit_dp.py
    python examples/audit_dp.py --bug        # the same with a planted mistake: gradients are not clipped
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn

import privtensors as pt
from privtensors.accounting import Ledger
from privtensors.audit import AuditOptions, Setup, audit_run, check_noise, check_oracle, check_sampler, train_by, train_by_fit
from privtensors.audit.planted import Unclipped
from privtensors.hf.fit_options import FitOptions
from privtensors.train.roles import Batch


def data() -> dict[str, Tensor]:
    """569 patients of 30 standardised measurements each."""
    x, y = load_breast_cancer(return_X_y=True)
    x = torch.tensor(x, dtype=torch.float32)
    return {"x": (x - x.mean(0)) / x.std(0), "y": torch.tensor(y)}


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """The mean over the batch, computed from what the model returns."""
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epsilon", type=float, default=2.0)
    parser.add_argument("--canaries", type=int, default=2000)
    parser.add_argument("--bug", action="store_true", help="plant a mistake: gradients are not clipped")
    options = parser.parse_args()

    torch.manual_seed(0)
    model, patients = nn.Sequential(nn.Linear(30, 16), nn.Tanh(), nn.Linear(16, 2)), data()
    setup = replace(Setup(), bounder=Unclipped) if options.bug else Setup()  # or your own Bounder, sampler, noise, loop

    print(check_oracle(setup, model, patients, loss))
    print(check_noise(setup, model, patients, loss))
    print(check_sampler(setup))

    # The canaries are units of the data set too: a fifth of all is expected in a step.
    promise = pt.DP(epsilon=options.epsilon, delta=1e-6, dataset="patients")
    how = FitOptions(steps=50, batch_size=(len(patients["x"]) + options.canaries) // 5, microbatch=512)
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "audit.sqlite")  # give your own ledger for data whose privacy is counted: an audit spends it
        train = train_by(setup, promise, how, ledger) if options.bug else train_by_fit(promise, how, ledger)
        print(audit_run(model, patients, loss, train, promise.clipping_norm, AuditOptions(options.canaries)))


if __name__ == "__main__":
    main()
