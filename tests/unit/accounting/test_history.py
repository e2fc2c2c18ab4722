"""ε over the releases of an account."""

from __future__ import annotations

from pathlib import Path

import pytest

from privtensors.accounting import Account, Accounts, Gaussian, Laplace, Ledger, Release, SampledGaussian
from privtensors.errors import InvalidInput

DATA = Account("reviews")
SGD = SampledGaussian(1.1, 0.01, 800)


@pytest.fixture
def accounts(tmp_path: Path) -> Accounts:
    return Accounts(Ledger(tmp_path / "ledger.sqlite"))


def test_it_follows_every_change_and_ends_where_the_statement_is(accounts: Accounts) -> None:
    accounts.reserve(Release(DATA, Laplace(20.0)))
    accounts.reserve(Release(Account("other"), Gaussian(3.0)))  # changes nothing here
    accounts.set_budget(DATA, 6.0, 1e-6)
    held = accounts.reserve(Release(DATA, SGD))
    accounts.settle(held, SampledGaussian(1.1, 0.01, 100))
    points, now = accounts.history(DATA), accounts.statement(DATA)
    assert [point.index for point in points] == [1, 3, 4, 5]
    assert [(point.releases, point.open) for point in points] == [(1, 1), (1, 1), (2, 2), (2, 1)]
    assert points[0].budget is None and points[0].filtered is None and points[1].budget == now.budget
    assert points[2].epsilon > points[3].epsilon > points[1].epsilon  # what was not used is free again
    assert points[-1].epsilon == pytest.approx(now.cost.epsilon, rel=1e-6) and points[-1].filtered == now.filtered
    fast = accounts.history(DATA, rdp_only=True)
    assert fast[-1].epsilon == now.cost.rdp and all(a.epsilon >= b.epsilon * 0.999 for a, b in zip(fast, points, strict=True))


def test_many_rows_are_thinned_and_both_ends_stay(accounts: Accounts) -> None:
    for _ in range(30):
        accounts.reserve(Release(DATA, Gaussian(200.0)))
    points = accounts.history(DATA, points=7, rdp_only=True)
    assert len(points) == 7 and points[0].index == 1 and points[-1].index == 30
    assert [point.epsilon for point in points] == sorted(point.epsilon for point in points)


def test_unknown_accounts_and_bad_input(accounts: Accounts) -> None:
    assert accounts.history(DATA) == ()
    for delta, points in ((0.0, 5), (1e-5, 1), (1e-5, 2.5)):
        with pytest.raises(InvalidInput):
            accounts.history(DATA, delta, points=points)  # type: ignore[arg-type]
