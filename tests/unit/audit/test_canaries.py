"""Canaries: a gradient each of its own, nothing where the coin says out, and nothing of the user's model changed."""

from __future__ import annotations

import importlib
import math
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from privtensors.accounting import Ledger
from privtensors.audit import AuditOptions, Setup, audit_run, epsilon_lower_bound, train_by, train_by_fit
from privtensors.audit.canaries import LENGTH, CanaryData, CanaryModel, Claim, Observer, canary_loss, scores
from privtensors.audit.subject import Subject, folder_subject, tiny_subject
from privtensors.audit.table import Schedule, quiet
from privtensors.audit.trainers import Job
from privtensors.backends.dp.technique import DP
from privtensors.errors import AuditError, InvalidInput
from privtensors.hf.fit_options import FitOptions
from privtensors.train.bounding import make_bounder
from privtensors.train.charge import Uncharged
from privtensors.train.data import Examples
from privtensors.train.result import FitResult

COINS = np.array([True, False, True])


@pytest.fixture
def subject() -> Subject:
    return tiny_subject(8)


def sums(model: CanaryModel, data: CanaryData, indices: list[int], norm: float = 1.0) -> dict[str, Tensor]:
    with closing(make_bounder(model, norm, engine="bookkeeping")) as bounder:
        bounder.accumulate(Examples(data).batch(indices), lambda batch: canary_loss(model, batch), len(indices))
        return bounder.take()


def test_each_canary_is_a_coordinate_clipped_to_c(subject: Subject) -> None:
    model, data = CanaryModel(subject.model, 3, subject.loss), CanaryData(subject.dataset, COINS, 0.5)
    assert len(data) == 11
    found = sums(model, data, [8, 9, 10], 0.5)
    assert found.pop("canaries.weight").flatten().tolist() == pytest.approx([0.5, 0.0, 0.5])
    assert all(float(x.abs().max()) == 0.0 for x in found.values())
    unclipped = sums(model, data, [8, 9, 10], 1e9)
    assert unclipped["canaries.weight"].flatten().tolist() == pytest.approx([LENGTH * 0.5, 0.0, LENGTH * 0.5])


def test_examples_contribute_what_they_did_before(subject: Subject) -> None:
    with closing(make_bounder(subject.model, 1.0)) as bounder:
        bounder.accumulate(Examples(subject.dataset).batch(range(8)), lambda batch: subject.loss(subject.model, batch), 8)
        before = bounder.take()
    model, data = CanaryModel(subject.model, 3, subject.loss), CanaryData(subject.dataset, COINS, 1.0)
    after = sums(model, data, list(range(11)))
    assert after.pop("canaries.weight").flatten().tolist() == pytest.approx([1.0, 0.0, 1.0])
    for name, x in before.items():
        assert torch.allclose(after[f"inner.{name}"], x, atol=1e-6)


def test_values_of_the_loss_are_unchanged(subject: Subject) -> None:
    model, data = CanaryModel(subject.model, 3, subject.loss), CanaryData(subject.dataset, COINS, 1.0)
    batch = Examples(data).batch(range(8))
    assert model(batch).item() == pytest.approx(subject.loss(subject.model, batch).item())


def test_the_model_is_given_back(subject: Subject) -> None:
    model = CanaryModel(subject.model, 3, subject.loss)
    assert subject.model._forward_hooks
    model.release()
    assert not subject.model._forward_hooks


class OwnLoss(nn.Module):
    """Returns its mean loss, as transformers models do with labels: no output per example is left to keep apart."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean: Tensor = self.head(x).square().mean()
        return mean


def test_a_loss_from_inside_the_model_is_refused(tmp_path: Path) -> None:
    train = train_by_fit(Schedule().promise(1.0), FitOptions(steps=2, batch_size=5), Ledger(tmp_path / "l.sqlite"))
    with pytest.raises(AuditError, match="shape \\(\\)"):
        audit_run(OwnLoss(), {"x": torch.randn(6, 2)}, lambda model, batch: model(batch["x"]), train, 1.0, AuditOptions(10))


def trainer(tmp_path: Path, sigma: float, reports: list[FitResult], steps: int = 6):  # type: ignore[no-untyped-def]
    schedule = Schedule(math.inf if sigma == 0 else 2.0, steps=steps, rate=0.5)
    promise = schedule.promise(None if sigma == 0 else sigma)
    return train_by_fit(promise, schedule.options(108), Ledger(tmp_path / "l.sqlite"), reports.append)


def test_fit_trains_canaries_without_changing_its_engine(tmp_path: Path, subject: Subject) -> None:
    reports: list[FitResult] = []
    before = [p.clone() for p in subject.model.parameters()]
    found = audit_run(subject.model, subject.dataset, subject.loss, trainer(tmp_path, 2.0, reports), 1.0, AuditOptions(100))
    [report] = reports
    methods = dict(report.engines)
    assert set(methods) >= {"canaries", "inner.head", "inner.embedding"} and "example by example" not in methods.values()
    assert found.claim.steps == 6 and found.claim.epsilon == pytest.approx(report.epsilon, rel=0.01)
    assert found.claim.expected == pytest.approx(54) and not subject.model._forward_hooks
    assert any(not torch.equal(p, q) for p, q in zip(before, subject.model.parameters(), strict=True))


def test_without_noise_everything_is_seen(tmp_path: Path, subject: Subject) -> None:
    with quiet():
        found = audit_run(subject.model, subject.dataset, subject.loss, trainer(tmp_path, 0.0, [], 12), 1.0, AuditOptions(100, (20,)))
    [outcome] = found.outcomes
    assert outcome.correct == 20 and found.lower_bound > 0.5 and found.passed and found.p_value is None
    assert found.to_dict()["claim"]["epsilon"] == "inf"


def test_a_set_up_is_what_fit_uses() -> None:
    fit, setup = importlib.import_module("privtensors.hf.fit"), Setup()
    assert (setup.bounder, setup.sampler, setup.noiser, setup.loop) == (fit.make_bounder, fit.PoissonSampler, fit.GaussianNoiser, fit.DPSGD)


@pytest.mark.parametrize("dataset", [[], {}, {"x": []}, [(1, 2)]])
def test_data_without_room_for_canaries_are_refused(dataset: object) -> None:
    with pytest.raises(AuditError):
        CanaryData(dataset, COINS, 1.0)[0]


def test_a_run_that_nobody_watched(subject: Subject) -> None:
    with pytest.raises(AuditError, match="not one step"):
        audit_run(subject.model, subject.dataset, subject.loss, lambda job: Claim(1.0, 1e-6, 1.0, 0.1, 3, 1.0, 9.0), 1.0, AuditOptions(10))


def test_the_observer_sees_every_step(tmp_path: Path, subject: Subject) -> None:
    model = CanaryModel(subject.model, 3, subject.loss)
    observer = Observer(model.canaries)
    schedule = Schedule(math.inf, steps=9, rate=0.5)
    train = train_by(Setup(), schedule.promise(), schedule.options(11), Ledger(tmp_path / "l.sqlite"))
    with quiet():
        claim = train(Job(model, CanaryData(subject.dataset, COINS, 1.0), canary_loss, observer.watch))
    steps = (observer.gradients * claim.expected).round(decimals=4)
    assert steps.shape == (9, 3) and set(steps.flatten().tolist()) == {0.0, 1.0} and float(steps[:, 1].max()) == 0.0


def test_a_wrong_clipping_norm_is_noticed(tmp_path: Path, subject: Subject) -> None:
    with quiet(), pytest.raises(AuditError, match=r"clipping norm 2"):
        audit_run(subject.model, subject.dataset, subject.loss, trainer(tmp_path, 0.0, []), 2.0, AuditOptions(100))


def test_users_are_refused(tmp_path: Path) -> None:
    promise = DP(dataset="posts", unit="user", user_column="author", max_per_user=2, epsilon=1.0)
    for make in (
        lambda ledger: train_by_fit(promise, FitOptions(), ledger),
        lambda ledger: train_by(Setup(), promise, FitOptions(), ledger),
    ):
        with pytest.raises(AuditError, match="each user"):
            make(Ledger(tmp_path / "l.sqlite"))


def test_a_ledger_that_counts_less_is_noticed(tmp_path: Path, subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privtensors.hf.fit.charge_run", lambda promise, units, plan, ledger: Uncharged(plan.steps))
    with pytest.raises(AuditError, match="the ledger counts ε 0 and the run claims"):
        audit_run(subject.model, subject.dataset, subject.loss, trainer(tmp_path, 2.0, []), 1.0, AuditOptions(100))


def test_scores_are_log_likelihood_ratios() -> None:
    claim = Claim(1.0, 1e-6, 2.0, 0.25, 2, 0.5, 10.0)
    seen = torch.tensor([[0.5 / 10, 0.0], [-0.02, 0.3]])
    moved = seen.numpy() * 20

    def density(x: float, mean: float) -> float:
        return math.exp(-((x - mean) ** 2) / 8)

    expected = [sum(math.log(0.75 + 0.25 * density(x, 1) / density(x, 0)) for x in column) for column in moved.T]
    assert scores(seen, claim) == pytest.approx(expected, rel=1e-6)
    for strange in (math.nan, math.inf, -math.inf, 1e38):
        assert np.isfinite(scores(torch.full((2, 3), strange), claim)).all()


def test_options_are_checked() -> None:
    for bad in (
        lambda: AuditOptions(5),
        lambda: AuditOptions(100, (7,)),
        lambda: AuditOptions(100, (102,)),
        lambda: AuditOptions(100, None, 1.0),
    ):
        with pytest.raises(InvalidInput):
            bad()
    assert AuditOptions(2000).numbers == (400,)


def test_several_numbers_of_guesses_share_the_confidence(tmp_path: Path, subject: Subject) -> None:
    with quiet():
        found = audit_run(subject.model, subject.dataset, subject.loss, trainer(tmp_path, 0.0, [], 12), 1.0, AuditOptions(100, (20, 40)))
    one = AuditOptions(100, (40,))
    assert [x.guesses for x in found.outcomes] == [20, 40]
    alone = epsilon_lower_bound(found.outcomes[1], 1e-6, one.confidence)
    assert 0 < found.lower_bound < alone


def test_a_transformers_model_from_a_folder(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    subject, reports = folder_subject(tmp_path / "bert", 8), []
    audit_run(subject.model, subject.dataset, subject.loss, trainer(tmp_path, 2.0, reports, 2), 1.0, AuditOptions(100))
    assert "example by example" not in dict(reports[0].engines).values()
    with pytest.raises(InvalidInput, match="no sequence classifier"):
        folder_subject(tmp_path)
