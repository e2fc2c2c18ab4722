"""Releases: calibrated noise, the event that is charged, the ledger, and everything that must fail closed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import privtensors as pt
from privtensors.accounting import Account, Accounts, calibrate, cost
from privtensors.accounting import Gaussian as GaussianEvent
from privtensors.accounting import Laplace as LaplaceEvent
from privtensors.backends.dp.mechanism import noise_multiplier, plan
from privtensors.backends.dp.payload import Aggregate
from privtensors.core.recorder import MemoryRecorder
from privtensors.errors import (
    BudgetExceeded,
    InvalidInput,
    LedgerError,
    MixedRelations,
    ParameterError,
    PrivTensorsError,
    UnboundedSensitivity,
)

TABLE = pt.DP(unit="row", dataset="table", bounds=(0, 1))
ACCOUNT = Account("table", "row")


@pytest.fixture
def ledger(tmp_path: Path) -> pt.Ledger:
    return pt.Ledger(tmp_path / "ledger.sqlite")


@pytest.fixture
def session(ledger: pt.Ledger) -> Iterator[pt.Session]:
    with pt.Session(recorder=ledger) as session:
        yield session


@pytest.fixture
def x(session: pt.Session) -> Tensor:
    return pt.protect(torch.rand(200, 3, generator=torch.Generator().manual_seed(0)), TABLE)


def held(l1: float, l2: float, entries: int = 1) -> Aggregate:
    value = torch.zeros(entries, dtype=torch.float64)
    each = torch.full_like(value, l1)
    return Aggregate(value, each, each, torch.float64, l1=l1, l2=l2)


# --- how much noise ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mechanism", [pt.Gaussian(noise_multiplier=2.0), pt.Gaussian(std=6.0), pt.Laplace(epsilon=0.5), pt.Laplace(scale=6.0)]
)
def test_noise_has_the_size_asked_for(mechanism: pt.Gaussian | pt.Laplace) -> None:
    from privtensors.core.randomness import ByteStream

    chosen = plan(held(3.0, 3.0, 100_000), mechanism)
    noise = chosen.draw(torch.full((100_000,), 41.3, dtype=torch.float64), ByteStream(bytes(32))).numpy() - 41.3
    law = "norm" if chosen.gaussian else "laplace"
    assert stats.kstest(noise / 6.0, law).pvalue > 1e-4
    steps = (noise + 41.3) / chosen.grid
    assert (steps == np.round(steps)).all() and chosen.grid <= 6.0 * 2.0**-22


def test_the_event_is_what_was_drawn() -> None:
    for ratio in (0.3, 1.0, 17.0):
        event = plan(held(2.0, 2.0, 50), pt.Gaussian(noise_multiplier=ratio)).event
        assert isinstance(event, GaussianEvent) and ratio <= event.noise_multiplier < ratio * (1 + 1e-4)
        other = plan(held(2.0, 2.0, 50), pt.Laplace(noise_multiplier=ratio)).event
        assert isinstance(other, LaplaceEvent) and ratio <= other.noise_multiplier < ratio * (1 + 1e-4)
    # Rounding to the grid moves each of d entries by up to a step: that is in the event.
    chosen = plan(held(1.0, 1.0, 10_000), pt.Gaussian(std=1.0))
    in_steps = 1.0 / chosen.grid + math.sqrt(10_000)
    assert chosen.event.noise_multiplier <= math.sqrt(chosen.steps**2 - 64) / in_steps < 1.0


def test_rounding_to_the_grid_changes_no_more_than_is_charged() -> None:
    generator = torch.Generator().manual_seed(3)
    for d in (1, 7, 300):
        v = torch.randn(d, generator=generator, dtype=torch.float64) * 3
        step = torch.randn(d, generator=generator, dtype=torch.float64)
        step *= 1.0 / torch.linalg.vector_norm(step)
        grid = 2.0**-3  # far coarser than any release's, so that the bound is put to the test
        change = ((v + step) / grid).round() - (v / grid).round()
        assert float(torch.linalg.vector_norm(change)) <= 1 / grid + math.sqrt(d)
        assert float(change.abs().sum()) <= float(step.abs().sum()) / grid + d


@pytest.mark.parametrize(("epsilon", "delta"), [(0.1, 1e-6), (0.5, 1e-5), (1.0, 1e-6), (4.0, 1e-9), (20.0, 1e-6), (300.0, 1e-6)])
def test_noise_for_epsilon_is_what_the_accountants_say(epsilon: float, delta: float) -> None:
    found = noise_multiplier(epsilon, delta)
    assert cost(GaussianEvent(found), delta).pld <= epsilon  # type: ignore[operator]
    assert found <= calibrate(GaussianEvent, epsilon, delta) * 1.005
    # δ in closed form (Balle and Wang 2018), from the other side.
    inside, outside = stats.norm.logcdf(0.5 / found - epsilon * found), stats.norm.logcdf(-0.5 / found - epsilon * found)
    assert 0.5 * delta < math.exp(inside) - math.exp(epsilon + outside) <= delta


def test_discrete_noise_is_dominated_by_the_event() -> None:
    """The argument of ``mechanism``, in numbers: the hockey-stick divergence of K and of the continuous noise that is charged."""
    s, shift = 40, 25  # a far coarser grid than any release's
    k = np.arange(-20 * s, 20 * s + 1, dtype=np.float64)
    logs = -(k**2) / (2 * s**2)
    logs -= np.log(np.exp(logs).sum())
    p, q = np.exp(logs), np.exp(-((k - shift) ** 2) / (2 * s**2))
    q /= q.sum()
    effective = math.sqrt(s * s - 64) / shift
    for epsilon in np.linspace(0, 3, 31):
        discrete = np.maximum(p - math.exp(epsilon) * q, 0).sum()
        continuous = stats.norm.cdf(0.5 / effective - epsilon * effective) - math.exp(epsilon) * stats.norm.cdf(
            -0.5 / effective - epsilon * effective
        )
        assert discrete <= continuous + 1e-15


def test_laplace_in_several_coordinates_is_dominated_by_one() -> None:
    """An L1 sensitivity spread over coordinates costs no more than in one: the accountants' curve is for one."""
    x = np.linspace(-30, 30, 3001)
    width = x[1] - x[0]

    def density(shift: float) -> np.ndarray:
        return np.exp(-np.abs(x - shift)) / 2

    for a, b in ((0.5, 0.5), (0.9, 0.1), (1.0, 1.0)):
        p = np.outer(density(0), density(0)) * width**2
        q = np.outer(density(a), density(b)) * width**2
        for epsilon in np.linspace(0, a + b, 9):
            spread = np.maximum(p - math.exp(epsilon) * q, 0).sum()
            single = 1 - math.exp((epsilon - (a + b)) / 2)
            assert spread <= single + 1e-3


@pytest.mark.parametrize("mechanism", [pt.Gaussian(std=1e-300), pt.Laplace(scale=1e290), pt.Gaussian(noise_multiplier=1e30)])
def test_noise_that_cannot_be_drawn(mechanism: pt.Gaussian | pt.Laplace) -> None:
    with pytest.raises(ParameterError):
        plan(held(1.0, 1.0, 100_000), mechanism)


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"epsilon": 1.0, "noise_multiplier": 1.0},
        {"epsilon": 0.0},
        {"epsilon": -1.0},
        {"epsilon": math.inf},
        {"epsilon": math.nan},
        {"noise_multiplier": 0},
        {"epsilon": True},
        {"epsilon": "1"},
    ],
)
def test_bad_mechanisms(bad: dict[str, float]) -> None:
    for mechanism in (pt.Gaussian, pt.Laplace):
        with pytest.raises(ParameterError):
            mechanism(**bad)
    for delta in (0.0, 1.0, math.nan, "x"):
        with pytest.raises(ParameterError):
            pt.Gaussian(epsilon=1.0, delta=delta)  # type: ignore[arg-type]
    with pytest.raises(ParameterError):
        pt.Gaussian(std=1.0, delta=1e-6)


# --- the ledger --------------------------------------------------------------------------------------------------------------


def test_a_release_is_reserved_recorded_and_settled(x: Tensor, ledger: pt.Ledger) -> None:
    mean = pt.reveal(x.mean(0), release=pt.Gaussian(noise_multiplier=1.5), to="press", label="means")
    assert mean.dtype is torch.float32 and mean.shape == (3,) and not isinstance(mean, pt.SafeTensor)
    reserve, reveal, settle = ledger.entries()
    assert (reserve.kind, reveal.kind, settle.kind) == ("budget.reserve", "reveal", "budget.settle")
    event = reserve.body["release"]["event"]
    assert event["kind"] == "gaussian" and 1.5 <= event["noise_multiplier"] < 1.5001
    assert reserve.body["release"]["technique"] == "dp_tensor" and reserve.body["release"]["account"]["dataset"] == "table"
    assert settle.body == {"reservation": reserve.index, "spent": event}
    details = dict(reveal.body["details"])
    assert reveal.body["receiver"] == "press" and details["reservation"] == str(reserve.index) and "L2 sensitivity" in details["release"]


def test_every_release_is_charged_again(x: Tensor, ledger: pt.Ledger) -> None:
    mean, before = x.mean(0), 0.0
    for count in range(1, 4):
        released = [pt.reveal(mean, release=pt.Gaussian(noise_multiplier=2.0)) for _ in range(2)]
        assert not torch.equal(*released)
        statement = Accounts(ledger).statement(ACCOUNT)
        assert statement.releases == 2 * count and statement.open == () and statement.cost.epsilon > before
        before = statement.cost.epsilon


def test_a_spent_budget_stops_the_release(x: Tensor, ledger: pt.Ledger) -> None:
    Accounts(ledger).set_budget(ACCOUNT, 1.0, 1e-5)
    total = x.sum()
    pt.reveal(total, release=pt.Laplace(epsilon=0.4))
    rows = len(ledger.entries())
    with pytest.raises(BudgetExceeded, match="is left"):
        pt.reveal(total, release=pt.Laplace(epsilon=0.9))
    assert len(ledger.entries()) == rows
    pt.reveal(total, release=pt.Laplace(epsilon=0.2))
    ledger.verify()


def test_a_budget_per_another_unit_does_not_cover_rows(x: Tensor, ledger: pt.Ledger) -> None:
    Accounts(ledger).set_budget(Account("table", "example"), 1.0, 1e-5)
    with pytest.raises(MixedRelations):
        pt.reveal(x.sum(), release=pt.Laplace(epsilon=0.1))
    same_unit = pt.protect(torch.rand(5, 2), pt.DP(unit="example", dataset="table", bounds=(0, 1)))
    pt.reveal(same_unit.sum(), release=pt.Laplace(epsilon=0.1))


@pytest.mark.parametrize("release", [None, 1.0, "gaussian", pt.MPC()])
def test_without_a_mechanism_nothing_leaves(x: Tensor, ledger: pt.Ledger, release: object) -> None:
    with pytest.raises(ParameterError, match="release"):
        pt.reveal(x.sum(), release=release)
    assert not ledger.entries()


def test_mechanisms_are_for_noised_backends_only(session: pt.Session) -> None:
    with pytest.raises(ParameterError, match="no release mechanisms"):
        pt.reveal(pt.protect(torch.ones(2), "clear"), release=pt.Gaussian(std=1.0))


def test_a_recorder_that_keeps_no_account_is_refused(x: Tensor) -> None:
    with pytest.raises(LedgerError, match="MemoryRecorder"):
        pt.reveal(x.sum(), release=pt.Laplace(epsilon=1.0), session=pt.Session(recorder=MemoryRecorder()))


def test_unbounded_values_are_refused_before_the_ledger_is_asked(session: pt.Session, ledger: pt.Ledger) -> None:
    free = pt.protect(torch.rand(4, 2), pt.DP(unit="row", dataset="table"))
    for job in (lambda: free.sum(0), lambda: free.mean(), lambda: free.T @ free, lambda: pt.reveal(free, release=pt.Laplace(epsilon=1.0))):
        with pytest.raises(UnboundedSensitivity, match=r"clamp|renorm"):
            job()
    assert not ledger.entries()


def test_by_name_needs_a_data_set(session: pt.Session) -> None:
    with pytest.raises(InvalidInput, match="dataset"):
        pt.protect(torch.ones(2), "dp")


def test_users_are_for_training(session: pt.Session) -> None:
    with pytest.raises(ParameterError, match="user"):
        pt.protect(torch.ones(2), pt.DP(dataset="t", unit="user", user_column="u", max_per_user=1))


# --- values ------------------------------------------------------------------------------------------------------------------


def test_statistics_are_right(x: Tensor, session: pt.Session) -> None:
    plain = torch.rand(200, 3, generator=torch.Generator().manual_seed(0))
    quiet = pt.Gaussian(std=1e-6)
    for ours, theirs in (
        (x.sum(0), plain.sum(0)),
        (x.mean(), plain.mean()),
        (x.T @ x, plain.T @ plain),
        (torch.histc(x[:, 1], 5, 0.0, 1.0), torch.histc(plain[:, 1], 5, 0.0, 1.0)),
        ((x > 0.5).sum(0), (plain > 0.5).sum(0)),
        (torch.renorm(x, 2, 0, 0.5).sum(0), torch.renorm(plain, 2, 0, 0.5).sum(0)),
    ):
        torch.testing.assert_close(pt.reveal(ours, release=quiet), theirs, rtol=1e-5, atol=1e-4)


def test_group_sums_by_one_hot_rows(session: pt.Session) -> None:
    technique = pt.DP(unit="row", dataset="table")
    plain, labels = torch.rand(300, 2, generator=torch.Generator().manual_seed(1)), torch.arange(300) % 3
    values, ids = pt.protect(plain, technique).clamp(0, 1), pt.protect(labels, technique)
    sums = torch.nn.functional.one_hot(ids, 3).float().T @ values
    payload = sums._state.payload
    assert payload.l1 == pytest.approx(2.0) and payload.l2 == pytest.approx(math.sqrt(2)), "one row is in one group"
    torch.testing.assert_close(
        pt.reveal(sums, release=pt.Gaussian(std=1e-6)), torch.nn.functional.one_hot(labels, 3).float().T @ plain, rtol=1e-5, atol=1e-4
    )
    counts = torch.bincount(ids, minlength=3)
    assert counts._state.payload.l1 == counts._state.payload.l2 == pytest.approx(1.0)
    assert pt.reveal(counts, release=pt.Gaussian(std=1e-6)).tolist() == [100, 100, 100]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_records_that_are_not_finite_contribute_zero_silently(session: pt.Session, bad: float, recwarn: pytest.WarningsRecorder) -> None:
    plain = torch.rand(50, 3, generator=torch.Generator().manual_seed(2))
    broken = plain.clone()
    broken[7, 1] = bad
    x = pt.protect(broken, TABLE)
    others = torch.cat([plain[:7], plain[8:]])
    for ours, theirs in (
        (x.sum(0), others.sum(0)),
        ((x + 1).sum(0), (others + 1).sum(0)),
        ((x <= 2).sum(), torch.tensor(147)),
        (x.T @ x, others.T @ others),
        (torch.histc(x, 3, 0.0, 1.0), torch.histc(others, 3, 0.0, 1.0)),
    ):
        torch.testing.assert_close(pt.reveal(ours, release=pt.Gaussian(std=1e-6)), theirs, rtol=1e-5, atol=1e-4)
    assert not recwarn.list


def test_overflow_on_the_way_counts_as_not_finite(session: pt.Session) -> None:
    x = pt.protect(torch.tensor([[1.0], [-4.0], [0.25]]), pt.DP(unit="row", dataset="table", bounds=(-4, 4)))
    assert pt.reveal(x.sqrt().sum(), release=pt.Gaussian(std=1e-6)).item() == pytest.approx(1.5, abs=1e-4)


def test_rows_can_be_released_one_by_one(x: Tensor) -> None:
    """Every row hides behind noise of its own: expensive, and counted as such."""
    rows = x._state.payload
    released = pt.reveal(x, release=pt.Gaussian(noise_multiplier=1.0))
    assert released.shape == (200, 3) and rows.l2 == pytest.approx(math.sqrt(3))
    assert float(released.std()) > 1.5  # √3 per entry


def test_a_unit_with_several_rows(session: pt.Session, x: Tensor) -> None:
    twice = torch.cat([x, x])
    assert twice.sum()._state.payload.l1 == pytest.approx(2 * x.sum()._state.payload.l1)
    assert x[torch.tensor([0, 0, 0, 1])].sum(0)._state.payload.each.tolist() == pytest.approx([3.0] * 3)
    assert x.flip([0]).sum(0)._state.payload.l1 == x.sum(0)._state.payload.l1


def test_not_saved(x: Tensor, tmp_path: Path) -> None:
    with pytest.raises(PrivTensorsError, match="not written"):
        pt.save(tmp_path / "x", {"x": x})
