"""From a promise to a plan: noise, steps, delta, budgets and units."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from privtensors.accounting import Account, Accounts, Gaussian, Ledger, PLDAccountant, Release, RenyiFilter
from privtensors.accounting.events import group
from privtensors.backends.dp import DP
from privtensors.core.recorder import MemoryRecorder
from privtensors.errors import BudgetExceeded, LedgerError, ParameterError
from privtensors.train.calibration import Plan, default_delta, steps_of
from privtensors.train.charge import Reserved, Uncharged
from privtensors.train.data import Examples
from privtensors.train.preparation import Promise, charge_run, ledger_of, plan_run, units_of

PROMISE = DP(epsilon=3.0, dataset="reviews")
GIVEN = DP(noise_multiplier=0.9, dataset="reviews")  # for what does not depend on where the noise comes from
DATA = {"x": torch.zeros(20), "who": torch.arange(20) // 4}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.sqlite") as made:
        yield made


def test_the_technique_is_a_promise() -> None:
    promise: Promise = PROMISE
    assert isinstance(promise, Promise)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """The plan without a budget; its noise takes seconds to find."""
    with Ledger(tmp_path_factory.mktemp("plain") / "ledger.sqlite") as made:
        return plan_run(PROMISE, 10_000, 100, 300, made)


def test_the_plan_keeps_the_promise_and_no_more(plain: Plan) -> None:
    plan = plain
    assert plan.delta == 1e-5 and plan.rate == plan.accounted == 0.01 and plan.expected == 100 and plan.clipping_norm == 1.0
    exact = PLDAccountant().epsilon(group(plan.event(300)), 1e-5)
    assert 2.98 <= exact <= 3.0 and plan.epsilon(300) == pytest.approx(exact) and plan.epsilon(0) == 0.0
    assert plan.epsilon(150) < exact


def test_delta_follows_the_number_of_units() -> None:
    assert default_delta(100) == 1e-5 and default_delta(100_000) == 1e-6


def test_a_given_noise_multiplier_is_kept(ledger: Ledger) -> None:
    assert plan_run(DP(noise_multiplier=0.9, delta=1e-6, dataset="reviews"), 1000, 10, 5, ledger).noise_multiplier == 0.9


def test_without_amplification_every_step_counts_in_full(ledger: Ledger) -> None:
    plain = plan_run(DP(epsilon=3.0, dataset="reviews", amplification=False), 1000, 10, 20, ledger)
    assert plain.rate == 0.01 and plain.accounted == 1.0
    assert plain.noise_multiplier > 3 * plan_run(PROMISE, 1000, 10, 20, ledger).noise_multiplier
    assert PLDAccountant().epsilon(group(Gaussian(plain.noise_multiplier / math.sqrt(20))), 1e-5) <= 3.0


@pytest.mark.parametrize("size", [0, 1001, 2.5, True])
def test_bad_batch_sizes(ledger: Ledger, size: Any) -> None:
    with pytest.raises(ParameterError, match="batch_size"):
        plan_run(PROMISE, 1000, size, 5, ledger)


def test_no_target_and_fixed_batches_are_refused(ledger: Ledger) -> None:
    with pytest.raises(ParameterError, match="neither"):
        plan_run(DP(dataset="reviews"), 1000, 10, 5, ledger)
    with pytest.raises(ParameterError, match="Poisson"):
        plan_run(DP(epsilon=3.0, dataset="reviews", sampling="fixed", amplification=False), 1000, 10, 5, ledger)
    with pytest.raises(ParameterError, match="on_budget"):
        plan_run(PROMISE, 1000, 10, 5, ledger, "hope")  # type: ignore[arg-type]


def limited(ledger: Ledger, epsilon: float = 1.5) -> Account:
    account = Account("reviews")
    Accounts(ledger).set_budget(account, epsilon, 1e-5)
    Accounts(ledger).reserve(Release(account, Gaussian(8.0)))
    return account


def test_a_run_is_shortened_to_its_budget(ledger: Ledger) -> None:
    limited(ledger)
    promise = DP(noise_multiplier=1.0, dataset="reviews")
    whole = plan_run(promise, 10_000, 100, 3000, ledger)
    units = Examples({"x": torch.zeros(10_000)})
    with pytest.raises(BudgetExceeded, match="would fit"):
        charge_run(promise, units, whole, ledger)
    short = plan_run(promise, 10_000, 100, 3000, ledger, "shorten")
    assert 0 < short.steps < 3000 and short.noise_multiplier == 1.0
    assert isinstance(charge_run(promise, units, short, ledger), Reserved)
    with pytest.raises(BudgetExceeded, match=r"ε 0(\.\d+)? of ε 1.5 .* too little for one step"):
        plan_run(promise, 10_000, 100, 300, ledger, "shorten")


def test_noise_is_added_until_a_run_fits_its_budget(ledger: Ledger, plain: Plan) -> None:
    account = limited(ledger)
    more = plan_run(PROMISE, 10_000, 100, 300, ledger, "noise")
    assert more.steps == 300 and more.noise_multiplier > plain.noise_multiplier
    charge_run(PROMISE, Examples({"x": torch.zeros(10_000)}), more, ledger)
    now = Accounts(ledger).statement(account)
    assert RenyiFilter(1.5, 1e-5).admits(now.events) and now.filtered is not None and now.filtered > 1.45
    with pytest.raises(BudgetExceeded, match="no noise makes 300 steps fit"):
        Accounts(ledger).set_budget(account, 0.1, 1e-5, replace=True)
        plan_run(GIVEN, 10_000, 100, 300, ledger, "noise")


def test_without_a_budget_nothing_is_changed(ledger: Ledger) -> None:
    plain = plan_run(GIVEN, 10_000, 100, 300, ledger)
    assert plan_run(GIVEN, 10_000, 100, 300, ledger, "shorten") == plain == plan_run(GIVEN, 10_000, 100, 300, ledger, "noise")


def test_an_infinite_epsilon_is_a_run_without_noise(ledger: Ledger) -> None:
    reference = DP(epsilon=math.inf, dataset="reviews")
    plan = plan_run(reference, 1000, 10, 5, ledger)
    assert plan.noise_multiplier == 0 and plan.epsilon(5) == math.inf
    assert isinstance(charge_run(reference, Examples(DATA), plan, ledger), Uncharged)


def test_units() -> None:
    assert len(units_of(PROMISE, DATA)) == 20
    assert len(units_of(DP(epsilon=1.0, dataset="d", unit="user", user_column="who", max_per_user=2), DATA)) == 5
    with pytest.raises(ParameterError, match="'row'"):
        units_of(DP(epsilon=1.0, dataset="d", unit="row"), DATA)


def test_steps() -> None:
    assert steps_of(1000, 64, None, None) == 47 and steps_of(1000, 64, 1, None) == 16 and steps_of(1000, 64, None, 5) == 5
    assert steps_of(1000, 1000, 0.1, None) == 1
    for epochs, steps in ((1, 1), (0, None), (math.inf, None), (None, 0), (None, 1.5), ("2", None)):
        with pytest.raises(ParameterError):
            steps_of(1000, 64, epochs, steps)  # type: ignore[arg-type]


def test_only_a_ledger_counts_privacy(ledger: Ledger) -> None:
    assert ledger_of(ledger) is ledger
    with pytest.raises(LedgerError, match="MemoryRecorder"):
        ledger_of(MemoryRecorder())


def test_known_data_are_found_by_their_fingerprint(ledger: Ledger) -> None:
    units = Examples(DATA)
    plan = Plan(2.0, 0.5, 10.0, 3, 1.0, 1e-5, 0.5)
    charge_run(DP(noise_multiplier=2.0, dataset="first"), units, plan, ledger).settle()
    with pytest.warns(match="'first'"):
        charge_run(DP(noise_multiplier=2.0, dataset="second"), units, plan, ledger)
    charge_run(DP(noise_multiplier=2.0, dataset="third"), Examples({"x": torch.ones(20)}), plan, ledger)
