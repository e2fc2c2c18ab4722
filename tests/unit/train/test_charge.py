"""The ledger's side of a run: reserved before, settled after, kept by a crash, resumed without spending twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from privtensors.accounting import Account, Accounts, Gaussian, Ledger, Release, SampledGaussian
from privtensors.errors import AccountingError, BudgetExceeded, KnownDataWarning, PolicyError
from privtensors.train.calibration import Plan
from privtensors.train.charge import CLAIM, DECLASSIFY, Uncharged, declassify, reserve, resume, spent_on

ACCOUNT = Account("reviews")
PLAN = Plan(1.0, 0.01, 10.0, 100, 1.0, 1e-5, 0.01)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.sqlite") as made:
        yield made


def steps_on(ledger: Ledger) -> int:
    events = Accounts(ledger).statement(ACCOUNT).events.counts
    return sum(count for _, count in events)


def test_a_run_reserves_everything_and_settles_what_ran(ledger: Ledger) -> None:
    with reserve(ledger, ACCOUNT, PLAN) as charge:
        assert steps_on(ledger) == 100 and charge.rule == "unlimited"
        for _ in range(60):
            charge.begin_step()
        assert charge.spent == 60
    assert steps_on(ledger) == 60 and Accounts(ledger).statement(ACCOUNT).open == ()
    with pytest.raises(AccountingError, match="settled"):
        charge.begin_step()
    charge.settle()
    assert ledger.verify().rows == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_and_an_interrupt_settle_what_ran(ledger: Ledger, error: type[BaseException]) -> None:
    with pytest.raises(error), reserve(ledger, ACCOUNT, PLAN) as charge:
        charge.begin_step()
        raise error
    assert steps_on(ledger) == 1


def test_a_run_that_never_began_costs_nothing(ledger: Ledger) -> None:
    with reserve(ledger, ACCOUNT, PLAN):
        pass
    assert steps_on(ledger) == 0


def test_a_crash_keeps_the_whole_reservation(ledger: Ledger) -> None:
    charge = reserve(ledger, ACCOUNT, PLAN)
    charge.begin_step()
    del charge
    assert steps_on(ledger) == 100 and len(Accounts(ledger).statement(ACCOUNT).open) == 1


def test_no_step_beyond_the_reservation(ledger: Ledger) -> None:
    charge = reserve(ledger, ACCOUNT, Plan(1.0, 0.01, 10.0, 2, 1.0, 1e-5, 0.01))
    charge.begin_step()
    charge.begin_step()
    with pytest.raises(AccountingError, match="all 2 steps"):
        charge.begin_step()


def test_a_budget_refuses_before_the_run_and_says_what_fits(ledger: Ledger) -> None:
    Accounts(ledger).set_budget(ACCOUNT, 0.5, 1e-5)
    Accounts(ledger).reserve(Release(ACCOUNT, Gaussian(20.0)))
    with pytest.raises(BudgetExceeded, match="steps would fit"):
        reserve(ledger, ACCOUNT, Plan(0.7, 0.01, 10.0, 1000, 1.0, 1e-5, 0.01))


def test_known_data_under_another_name_is_told(ledger: Ledger) -> None:
    reserve(ledger, Account("old name"), PLAN, fingerprint="ab").settle()
    with pytest.warns(KnownDataWarning, match="old name"):
        assert reserve(ledger, ACCOUNT, PLAN, fingerprint="ab").aliases == ("old name",)


def test_after_a_crash_the_same_reservation_goes_on_and_lost_steps_stay_spent(ledger: Ledger) -> None:
    charge = reserve(ledger, ACCOUNT, PLAN, durable=True)
    for _ in range(7):  # claimed in blocks of five
        charge.begin_step()
    again = resume(ledger, ACCOUNT, PLAN, (charge.index,))
    assert again.index == charge.index and again.spent == 10 and again.steps == 100
    for _ in range(90):
        again.begin_step()
    with pytest.raises(AccountingError):
        again.begin_step()
    again.settle()
    assert steps_on(ledger) == 100  # not 107
    assert len(ledger.entries(kind="budget.reserve")) == 1


def test_two_processes_cannot_use_one_reservation_twice(ledger: Ledger) -> None:
    dead = reserve(ledger, ACCOUNT, PLAN, durable=True)
    dead.begin_step()
    first, second = (resume(ledger, ACCOUNT, PLAN, (dead.index,)) for _ in range(2))
    first.begin_step()
    with pytest.raises(AccountingError, match="another process"):
        second.begin_step()
    second.settle()  # it began nothing of its own, but what the other one has claimed is spent
    assert steps_on(ledger) == 10
    with pytest.raises(AccountingError, match="meanwhile"):
        for _ in range(5):
            first.begin_step()


def test_after_a_settled_run_only_the_steps_that_nobody_spent_are_reserved(ledger: Ledger) -> None:
    with reserve(ledger, ACCOUNT, PLAN, durable=True) as charge:
        for _ in range(30):
            charge.begin_step()
    again = resume(ledger, ACCOUNT, PLAN, (charge.index,))
    assert again.index != charge.index and again.steps == 70 and again.spent == 0 and steps_on(ledger) == 100
    with again:
        for _ in range(50):
            again.begin_step()
    assert spent_on(ledger, (charge.index, again.index)) == steps_on(ledger) == 80
    last = resume(ledger, ACCOUNT, PLAN, (charge.index, again.index))
    assert last.steps == 20
    with last:
        for _ in range(20):
            last.begin_step()
    with pytest.raises(AccountingError, match="all 100 steps"):
        resume(ledger, ACCOUNT, PLAN, (charge.index, again.index, last.index))


@pytest.mark.parametrize(
    ("account", "plan"),
    [
        (Account("other"), PLAN),
        (ACCOUNT, Plan(2.0, 0.01, 10.0, 100, 1.0, 1e-5, 0.01)),
        (ACCOUNT, Plan(1.0, 0.02, 20.0, 100, 1.0, 1e-5, 0.02)),
    ],
)
def test_another_run_cannot_take_over_a_reservation(ledger: Ledger, account: Account, plan: Plan) -> None:
    charge = reserve(ledger, ACCOUNT, PLAN, durable=True)
    with pytest.raises(AccountingError, match="another run"):
        resume(ledger, account, plan, (charge.index,))
    charge.begin_step()
    [claim] = ledger.entries(kind=CLAIM)
    with pytest.raises(AccountingError, match="no reservation"):
        resume(ledger, ACCOUNT, PLAN, (claim.index,))


def test_an_event_of_another_technique_is_no_run(ledger: Ledger) -> None:
    index = Accounts(ledger).reserve(Release(ACCOUNT, SampledGaussian(1.0, 0.01, 100), "by hand")).index
    with pytest.raises(AccountingError, match="another run"):
        resume(ledger, ACCOUNT, PLAN, (index,))


def test_a_run_without_noise_claims_nothing_and_is_written_down(ledger: Ledger) -> None:
    with declassify(ledger, ACCOUNT, 10) as charge:
        charge.begin_step()
    assert isinstance(charge, Uncharged) and steps_on(ledger) == 0
    [row] = ledger.entries(kind=DECLASSIFY)
    assert row.body == {"dataset": "reviews", "unit": "example", "technique": "dp_sgd", "steps": 10}


@pytest.mark.parametrize("unit", ["example", "user"])
def test_a_run_without_noise_is_refused_where_the_data_have_a_budget(ledger: Ledger, unit: str) -> None:
    Accounts(ledger).set_budget(Account("reviews", unit), 3.0, 1e-5)
    with pytest.raises(PolicyError, match="has a budget"):
        declassify(ledger, ACCOUNT, 10)
    assert ledger.entries(kind=DECLASSIFY) == ()
