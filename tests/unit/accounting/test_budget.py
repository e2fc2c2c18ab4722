"""Budgets on a ledger: what is admitted, what is counted, what is refused by name, and what `verify` finds."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from privtensors.accounting import (
    Account,
    Accounts,
    Budget,
    Composed,
    Gaussian,
    JsonValue,
    Laplace,
    Ledger,
    Relation,
    Release,
    RenyiFilter,
    SampledGaussian,
    ZeroConcentrated,
)
from privtensors.accounting.events import EventGroups, event_to_json, group, release_to_json
from privtensors.cli.ledger import app
from privtensors.errors import AccountingError, BudgetExceeded, InvalidInput, KnownDataWarning, LedgerCorrupt, MissingExtra, MixedRelations

REVIEWS = Account("reviews")
SGD = SampledGaussian(1.0, 0.01, 500)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.sqlite")


@pytest.fixture
def accounts(ledger: Ledger) -> Accounts:
    return Accounts(ledger)


def test_reserve_and_settle(ledger: Ledger, accounts: Accounts) -> None:
    accounts.set_budget(REVIEWS, 3.0, 1e-5)
    held = accounts.reserve(Release(REVIEWS, SGD, "dp_sgd"))
    assert held.rule == "filter" and held.index == 2
    before = accounts.statement(REVIEWS)
    assert before.open == (2,) and before.events == group(SGD) and before.releases == 1
    accounts.settle(held, SampledGaussian(1.0, 0.01, 200))
    after = accounts.statement(REVIEWS)
    assert after.open == () and after.events == group(SampledGaussian(1.0, 0.01, 200))
    assert before.left is not None and after.left is not None and after.left > before.left
    assert Accounts(Ledger(ledger.path)).statement(REVIEWS) == after  # all of it is in the file
    assert ledger.verify().rows == 3


def test_several_techniques_share_one_total(accounts: Accounts) -> None:
    for event, technique in ((SGD, "dp_sgd"), (Laplace(4.0), "dp_tensor"), (Gaussian(20.0), "federated"), (SGD, "dp_sgd")):
        accounts.settle(accounts.reserve(Release(REVIEWS, event, technique)), event)
    total = accounts.statement(REVIEWS)
    alone = []
    for k, event in enumerate((SGD, Laplace(4.0), Gaussian(20.0), SGD)):
        other = Account(f"alone {k}")
        accounts.reserve(Release(other, event))
        alone.append(accounts.statement(other).cost.epsilon)
    assert total.events == group([SGD, Laplace(4.0), Gaussian(20.0), SGD]) and total.budget is None and total.filtered is None
    assert max(alone) < total.cost.epsilon < 0.9 * sum(alone)


def test_a_spent_budget_stops_the_next_step_and_says_what_is_left(ledger: Ledger, accounts: Accounts) -> None:
    accounts.set_budget(REVIEWS, 1.0, 1e-5)
    step = Gaussian(20.0)
    count = RenyiFilter(1.0, 1e-5).fits(group(()), step)
    for _ in range(count):
        accounts.settle(accounts.reserve(Release(REVIEWS, step)), step)
    rows = ledger.head().index
    with pytest.raises(BudgetExceeded, match=r"ε 0(\.0\d*)? of ε 1 at δ 1e-05 is left"):
        accounts.reserve(Release(REVIEWS, step))
    assert ledger.head().index == rows == 1 + 2 * count
    small = accounts.statement(REVIEWS)
    assert small.filtered is not None and small.filtered <= 1.0 and small.cost.epsilon <= small.filtered
    with pytest.raises(BudgetExceeded, match=r": 0 of its 50 steps would fit"):
        accounts.reserve(Release(REVIEWS, SampledGaussian(0.8, 0.5, 50)))


def test_a_budget_too_small_for_one_step(accounts: Accounts) -> None:
    accounts.set_budget(REVIEWS, 0.01, 1e-6)
    with pytest.raises(BudgetExceeded, match="0 of its 10 steps"):
        accounts.reserve(Release(REVIEWS, SampledGaussian(1.0, 0.1, 10)))
    with pytest.raises(BudgetExceeded):
        accounts.reserve(Release(REVIEWS, ZeroConcentrated(1.0)))


def test_a_first_release_may_use_the_budget_by_its_schedule_and_then_closes_it(accounts: Accounts) -> None:
    release = Release(REVIEWS, SampledGaussian(0.675, 256 / 67349, 2367))  # PLD 2.98, RDP 3.72
    accounts.set_budget(REVIEWS, 3.0, 1e-5)
    held = accounts.reserve(release)
    assert held.rule == "schedule"
    accounts.settle(held, SampledGaussian(0.675, 256 / 67349, 10))  # stopped early, perhaps because of what was seen
    with pytest.raises(BudgetExceeded, match="used by its first release"):
        accounts.reserve(Release(REVIEWS, Gaussian(1000.0)))
    closed = accounts.statement(REVIEWS)
    assert closed.closed and closed.left == 0


def test_a_first_release_of_which_nothing_left_closes_nothing(accounts: Accounts) -> None:
    accounts.set_budget(REVIEWS, 3.0, 1e-5)
    release = Release(REVIEWS, SampledGaussian(0.675, 256 / 67349, 2367))
    accounts.settle(accounts.reserve(release), None)
    assert not accounts.statement(REVIEWS).closed
    assert accounts.reserve(release).rule == "schedule"
    other = Account("second")
    accounts.set_budget(other, 3.0, 1e-5)
    accounts.reserve(Release(other, Gaussian(50.0)))
    with pytest.raises(BudgetExceeded):  # the schedule rule is for the first release only
        accounts.reserve(Release(other, release.event))


def test_two_that_both_look_first_are_not_both_admitted(ledger: Ledger, accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    accounts.set_budget(REVIEWS, 3.0, 1e-5)
    release, planned = Release(REVIEWS, SampledGaussian(0.675, 256 / 67349, 2367)), Accounts._planned

    def overtaken(self: Accounts, release: Release, groups: EventGroups) -> Budget | None:
        found = planned(self, release, groups)
        monkeypatch.undo()
        Accounts(ledger).reserve(Release(REVIEWS, Gaussian(50.0)))  # another process, between the look and the lock
        return found

    monkeypatch.setattr(Accounts, "_planned", overtaken)
    with pytest.raises(BudgetExceeded):
        accounts.reserve(release)
    assert accounts.statement(REVIEWS).events == group(Gaussian(50.0))


def test_settlements_are_checked(ledger: Ledger, accounts: Accounts) -> None:
    held = accounts.reserve(Release(REVIEWS, Composed((Gaussian(2.0),), 3)))
    for more in (Composed((Gaussian(2.0),), 4), Gaussian(1.9), Laplace(2.0)):
        with pytest.raises(AccountingError, match="more happened"):
            accounts.settle(held, more)
    assert accounts.statement(REVIEWS).open == (held.index,)
    accounts.settle(held, Gaussian(2.0))
    for index in (held.index, 99):
        with pytest.raises(AccountingError, match="no open reservation"):
            accounts.settle(index, None)
    assert ledger.head().index == 2


def test_relations_and_units_are_never_mixed(accounts: Accounts) -> None:
    accounts.reserve(Release(REVIEWS, Gaussian(2.0)))
    other = Account("reviews", "example", Relation.ADD_REMOVE)
    for refused in (
        lambda: accounts.reserve(Release(other, Gaussian(2.0))),
        lambda: accounts.set_budget(other, 1.0, 1e-5),
        lambda: accounts.statement(other),
    ):
        with pytest.raises(MixedRelations, match="zero_out"):
            refused()
    users = Account("reviews", "user")
    accounts.set_budget(users, 3.0, 1e-5)
    with pytest.raises(MixedRelations, match="budget per user"):  # it would pass the users' budget by
        accounts.reserve(Release(REVIEWS, Gaussian(2.0)))
    accounts.set_budget(REVIEWS, 8.0, 1e-5)
    assert accounts.reserve(Release(REVIEWS, Gaussian(5.0))).rule == "filter"
    assert accounts.statement(users).releases == 0


def test_budgets_change_on_purpose_only(accounts: Accounts) -> None:
    accounts.reserve(Release(REVIEWS, Gaussian(3.0)))  # before the budget: counts all the same
    accounts.set_budget(REVIEWS, 1.0, 1e-5)
    accounts.set_budget(REVIEWS, 1.0, 1e-5)
    with pytest.raises(BudgetExceeded, match="ε 0 of ε 1"):
        accounts.reserve(Release(REVIEWS, Gaussian(100.0)))
    with pytest.raises(AccountingError, match="replace=True"):
        accounts.set_budget(REVIEWS, 8.0, 1e-5)
    accounts.set_budget(REVIEWS, 8.0, 1e-5, replace=True)
    assert accounts.reserve(Release(REVIEWS, Gaussian(100.0))).rule == "filter"
    for epsilon, delta in ((0.0, 1e-5), (1.0, 1.0)):
        with pytest.raises(InvalidInput):
            accounts.set_budget(REVIEWS, epsilon, delta, replace=True)


def test_known_data_under_another_name_is_reported(accounts: Accounts) -> None:
    assert accounts.reserve(Release(REVIEWS, Gaussian(2.0), fingerprint="ab12")).aliases == ()
    with pytest.warns(KnownDataWarning, match="data set 'movies' per example: this data was used as 'reviews'"):
        held = accounts.reserve(Release(Account("movies"), Gaussian(2.0), fingerprint="ab12"))
    assert held.aliases == ("reviews",)
    assert accounts.reserve(Release(Account("other"), Gaussian(2.0), fingerprint="cd")).aliases == ()
    assert accounts.statement(REVIEWS).aliases == ("movies",) and accounts.statement(Account("other")).aliases == ()


def test_of_several_tables_one_known_is_enough(accounts: Accounts) -> None:
    accounts.reserve(Release(REVIEWS, Gaussian(2.0), fingerprint=("ab12", "cd34")))
    for name, known in (("movies", "ab12"), ("films", ("ee", "cd34"))):
        with pytest.warns(KnownDataWarning, match="'reviews'"):
            assert accounts.reserve(Release(Account(name), Gaussian(2.0), fingerprint=known)).aliases == ("reviews",)
    with pytest.warns(KnownDataWarning):
        held = accounts.reserve(Release(Account("all"), Gaussian(2.0), fingerprint=("ab12", "ee")))
    assert held.aliases == ("films", "movies", "reviews")
    assert accounts.statement(REVIEWS).aliases == ("all", "films", "movies")


def test_what_a_person_settles_is_on_record(ledger: Ledger, accounts: Accounts) -> None:
    held = accounts.reserve(Release(REVIEWS, SGD))
    for bad in ("", "  ", "a\nb", "x" * 501):
        with pytest.raises(InvalidInput, match="reason"):
            accounts.settle(held, None, reason=bad)
    assert accounts.statement(REVIEWS).open == (held.index,)
    assert accounts.open_release(held.index) == held.release
    accounts.settle(held, SampledGaussian(1.0, 0.01, 20), reason="killed after step 20")
    [row] = ledger.entries(kind="budget.settle")
    assert row.body["reason"] == "killed after step 20"
    found = Accounts(Ledger(ledger.path)).statement(REVIEWS)
    assert found.by_hand == 1 and found.events == group(SampledGaussian(1.0, 0.01, 20))
    with pytest.raises(AccountingError, match="no open reservation"):
        accounts.open_release(held.index)
    assert ledger.verify().rows == 2


def test_a_budget_without_dp_accounting_admits_nothing(ledger: Ledger, accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    accounts.set_budget(REVIEWS, 1.0, 1e-5)
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(MissingExtra):
        accounts.reserve(Release(REVIEWS, Gaussian(100.0)))
    assert ledger.head().index == 1


HELD: dict[str, JsonValue] = {"release": release_to_json(Release(REVIEWS, Gaussian(2.0))), "rule": "unlimited"}
OTHER = release_to_json(Release(Account("reviews", "example", Relation.ADD_REMOVE), Gaussian(2.0)))


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("budget.settle", {"reservation": 1, "spent": event_to_json(Gaussian(0.1))}),
        ("budget.settle", {"reservation": 7, "spent": None}),
        ("budget.settle", {"reservation": True, "spent": None}),
        ("budget.settle", {"reservation": 1}),
        ("budget.settle", {"reservation": 1, "spent": None, "reason": ""}),
        ("budget.settle", {"reservation": 1, "spent": None, "reason": None}),
        ("budget.reserve", {"release": OTHER, "rule": "unlimited"}),
        ("budget.reserve", {**HELD, "rule": "trust me"}),
        ("budget.reserve", {"release": {}, "rule": "unlimited"}),
        ("budget.set", {"account": {"dataset": "x", "unit": "row", "relation": "zero_out"}, "epsilon": -1.0, "delta": 1e-5}),
        ("budget.forgive", {}),
    ],
)
def test_rows_that_do_not_add_up_are_found(ledger: Ledger, accounts: Accounts, kind: str, body: dict[str, JsonValue]) -> None:
    ledger.append("budget.reserve", HELD)
    assert ledger.verify().rows == 1
    ledger.append(kind, body)  # the hashes hold, the bookkeeping does not
    for use in (ledger.verify, lambda: accounts.reserve(Release(REVIEWS, Gaussian(9.0))), lambda: Accounts(ledger).statements()):
        with pytest.raises(LedgerCorrupt, match="row 2 of"):
            use()
    assert ledger.head().index == 2


def test_entries_after_a_row_and_of_a_family(ledger: Ledger) -> None:
    for kind in ("budget.set", "reveal", "budgets", "budget.reserve"):
        ledger.append(kind, {})
    assert [entry.index for entry in ledger.entries(kind="budget.")] == [1, 4]
    assert [entry.index for entry in ledger.entries(kind="budget.", after=1)] == [4]
    assert ledger.entries(kind="budget") == ()
    for after in (-1, 2**62, 1.0):
        with pytest.raises(InvalidInput):
            ledger.entries(after=after)  # type: ignore[arg-type]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["budget", *map(str, arguments)])


def test_budget_command(ledger: Ledger, accounts: Accounts) -> None:
    empty = invoke("--ledger", ledger.path)
    assert empty.exit_code == 0 and "No differentially private release" in empty.stdout
    accounts.set_budget(REVIEWS, 3.0, 1e-5)
    accounts.reserve(Release(REVIEWS, SGD))
    accounts.reserve(Release(Account("[red]stats[/red]", "row"), ZeroConcentrated(0.1)))
    state = accounts.statement(REVIEWS)
    result = invoke("--ledger", ledger.path)
    assert result.exit_code == 0 and "[red]stats[/red]" in result.stdout
    [line] = [line for line in result.stdout.splitlines() if line.startswith("│ reviews")]
    assert "data set 'reviews' per example: not settled: row 2" in result.stdout.splitlines()
    cells = [cell.strip() for cell in line.replace("│", "|").split("|")[1:-1]]
    assert cells[:7] == ["reviews", "example", "zero-out", "1", "1", "1e-05", "3.000"]
    assert state.filtered is not None and state.left is not None
    assert 0 <= float(cells[7]) - state.filtered <= 0.001 and 0 <= state.left - float(cells[8]) <= 0.001
    assert 0 <= float(cells[9]) - state.cost.pld <= 0.001

    found = json.loads(invoke("--ledger", ledger.path, "--json", "--dataset", "reviews").stdout)
    [account] = found["accounts"]
    assert account["budget"] == {"epsilon": 3.0, "delta": 1e-5} and account["open"] == [2] and account["left"] == state.left
    assert (account["filter"], account["pld"], account["rdp"]) == (state.filtered, state.cost.pld, state.cost.rdp)
    assert found["head"] == str(ledger.head())


def test_budget_command_refuses(ledger: Ledger, tmp_path: Path) -> None:
    for arguments in (
        ("--ledger", ledger.path, "--dataset", "none"),
        ("--ledger", tmp_path / "none"),
        ("--ledger", ledger.path, "--delta", 2),
    ):
        result = invoke(*arguments)
        if arguments[-1] == 2:  # nobody is in the ledger, so no δ is needed yet
            Accounts(ledger).reserve(Release(REVIEWS, Gaussian(1.0)))
            result = invoke(*arguments)
        assert result.exit_code == 1 and result.stdout == "" and result.stderr.startswith("error: ")
