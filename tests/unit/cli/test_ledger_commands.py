"""`privtensors ledger`: totals in show, the plot, export, setting budgets, settling by hand."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from privtensors.accounting import Account, Accounts, Gaussian, Ledger, Release, SampledGaussian
from privtensors.accounting.events import group
from privtensors.cli.ledger import app
from privtensors.errors import AccountingError, KnownDataWarning
from privtensors.report import bars, plot_epsilon

REVIEWS = Account("reviews $x_1$")
SGD = SampledGaussian(1.1, 0.01, 800)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(*arguments: object, code: int = 1) -> str:
    """The one line on standard error of a command that must fail."""
    result = invoke(*arguments)
    assert result.exit_code == code and result.stdout == ""
    [line] = result.stderr.splitlines()
    return line


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    accounts = Accounts(ledger)
    accounts.set_budget(REVIEWS, 6.0, 1e-5)
    accounts.reserve(Release(REVIEWS, SGD, "dp_sgd", "ab"))
    accounts.settle(accounts.reserve(Release(REVIEWS, Gaussian(9.0), "dp_tensor")), Gaussian(9.0))
    return ledger


def test_show_has_totals_per_account(ledger: Ledger) -> None:
    result = invoke("show", "--ledger", ledger.path)
    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    [row] = [line for line in lines if "dp_sgd" in line]
    assert "800 steps, sampled Gaussian, noise 1.1, rate 0.01 (filter)" in row and "reviews $x_1$ per example" in row
    assert any("row 3: Gaussian, noise 9" in line for line in lines) and any("ε 6.0 at δ 1e-05" in line for line in lines)
    now = Accounts(ledger).statement(REVIEWS)
    [total] = [line for line in lines if line.startswith("│ reviews")]
    cells = [cell.strip() for cell in total.split("│")[1:-1]]
    assert cells[3:5] == ["2", "1"] and 0 <= float(cells[9]) - now.cost.pld <= 0.001
    assert len(cells[11]) == 4 and set(cells[11]) <= set("▁▂▃▄▅▆▇█")
    assert "data set 'reviews $x_1$' per example: not settled: row 2" in lines


def test_show_json_and_selection(ledger: Ledger) -> None:
    with pytest.warns(KnownDataWarning):
        Accounts(ledger).reserve(Release(Account("copy"), SGD, fingerprint="ab"))
    found = json.loads(invoke("show", "--ledger", ledger.path, "--dataset", "copy", "--json").stdout)
    [account] = found["accounts"]
    assert account["dataset"] == "copy" and account["aliases"] == [REVIEWS.dataset] and account["by_hand"] == 0
    assert len(found["entries"]) == 5
    shown = invoke("show", "--ledger", ledger.path).stdout
    assert f"data set 'copy' per example: its records were also used as {REVIEWS.dataset!r}, counted apart" in shown
    assert "no account" in refused("show", "--ledger", ledger.path, "--dataset", "absent")


def test_show_finds_accounts_below_the_shown_rows(ledger: Ledger) -> None:
    for _ in range(3):
        ledger.append("reveal", {})
    shown = invoke("show", "--ledger", ledger.path, "--limit", 2).stdout
    assert "newest 2 of 7 rows" in shown and "│ reviews" in shown


def test_bars_rise_to_the_budget(ledger: Ledger) -> None:
    accounts = Accounts(ledger)
    drawn = bars(accounts.history(REVIEWS))
    assert drawn[0] == "▁" and list(drawn) == sorted(drawn) and "█" not in drawn
    assert bars(()) == ""


@pytest.mark.parametrize("over", ["releases", "time"])
@pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_plot(ledger: Ledger, tmp_path: Path, over: str, ending: str, start: bytes) -> None:
    picture = tmp_path / f"epsilon.{ending}"
    result = invoke("show", "--ledger", ledger.path, "--plot", picture, "--over", over)
    assert result.exit_code == 0 and f"plot {picture}" in result.stdout.splitlines()
    content = picture.read_bytes()
    assert content.startswith(start) and len(content) > 5_000


def test_plot_refuses(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "one of these endings" in refused("show", "--ledger", ledger.path, "--plot", ledger.path)
    empty = Ledger(tmp_path / "empty.sqlite")
    assert "no release and no budget" in refused("show", "--ledger", empty.path, "--plot", tmp_path / "x.png")
    with pytest.raises(AccountingError, match="no release"):
        plot_epsilon({REVIEWS: ()}, tmp_path / "x.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "matplotlib is not installed" in refused("show", "--ledger", ledger.path, "--plot", tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_export_and_verify_it_elsewhere(ledger: Ledger, tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    answer = json.loads(invoke("export", "--ledger", ledger.path, "--output", output, "--json").stdout)
    assert answer["rows"] == 4 and answer["head"] == str(ledger.head()) and answer["output"] == str(output)
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    result = invoke("verify", "--export", output, "--head", ledger.head())
    assert result.exit_code == 0 and "4 rows checked" in result.stdout and "contains the given head, row 4" in result.stdout
    assert "exists already" in refused("export", "--ledger", ledger.path, "--output", output)
    assert json.loads(invoke("export", "--ledger", ledger.path, "--json").stdout) == json.loads(output.read_text())
    assert len(invoke("export", "--ledger", ledger.path, "--format", "jsonl").stdout.splitlines()) == 4
    assert len(invoke("export", "--ledger", ledger.path, "--format", "csv").stdout.splitlines()) == 5
    output.write_text(output.read_text().replace("dp_sgd", "dp_sgt"))
    assert "row 2 of" in refused("verify", "--export", output)


def test_contradicting_options_are_refused(ledger: Ledger, tmp_path: Path) -> None:
    path = ("--ledger", ledger.path)
    assert "one of --ledger and --export" in refused("verify", *path, "--export", tmp_path / "x", code=2)
    assert "Give --dataset" in refused("budget", *path, "--epsilon", 3, code=2)
    assert "Give --epsilon" in refused("budget", *path, "--replace", code=2)
    result = invoke("export", *path, "--format", "csv", "--json")
    assert result.exit_code == 2 and json.loads(result.stdout)["error"] == "UsageError"


def test_a_budget_is_set_before_there_is_a_ledger(tmp_path: Path) -> None:
    path = tmp_path / "new.sqlite"
    result = invoke("budget", "--ledger", path, "--dataset", "d", "--unit", "user", "--epsilon", 2, "--delta", 1e-6)
    assert result.exit_code == 0 and "│ d " in result.stdout and f"ledger {path}" in result.stdout
    budget = Accounts(Ledger(path)).statement(Account("d", "user")).budget
    assert budget is not None and (budget.epsilon, budget.delta) == (2.0, 1e-6)
    again = ("budget", "--ledger", path, "--dataset", "d", "--unit", "user", "--epsilon", 4)
    assert "replace" in refused(*again)
    changed = json.loads(invoke(*again, "--replace", "--json").stdout)
    assert changed["accounts"][0]["budget"] == {"epsilon": 4.0, "delta": 1e-5} and Ledger(path).verify().rows == 2
    assert "above zero" in refused("budget", "--ledger", path, "--dataset", "e", "--epsilon", -1)


def test_settling_by_hand_is_explicit_and_recorded(ledger: Ledger) -> None:
    path = ("--ledger", ledger.path)
    why = ("--reason", "the log ends at step 20")
    assert invoke("settle", 2, *path, "--steps", 20).exit_code == 2  # without a reason
    for wrong in ((), ("--all", "--nothing"), ("--steps", 1, "--all")):
        assert "Give one of" in refused("settle", 2, *path, *wrong, *why, code=2)
    assert "it has 800 steps" in refused("settle", 2, *path, "--steps", 801, *why)
    assert "no open reservation" in refused("settle", 3, *path, "--all", *why)
    result = invoke("settle", 2, *path, "--steps", 20, *why)
    assert result.exit_code == 0 and "20 steps, sampled Gaussian" in result.stdout and str(ledger.head()) in result.stdout
    now = Accounts(ledger).statement(REVIEWS)
    assert now.by_hand == 1 and now.open == () and now.events == group([Gaussian(9.0), SampledGaussian(1.1, 0.01, 20)])
    shown = invoke("show", *path).stdout
    assert ", by hand: " in shown and "settled by hand, on somebody's word: 1 of 2" in shown
    last = json.loads(invoke("show", *path, "--limit", 1, "--json").stdout)["entries"][0]
    assert last["body"]["reason"] == "the log ends at step 20"


@pytest.mark.parametrize(("option", "left"), [("--all", group([Gaussian(9.0), Gaussian(5.0)])), ("--nothing", group(Gaussian(9.0)))])
def test_settling_all_or_nothing(ledger: Ledger, option: str, left: object) -> None:
    held = Accounts(ledger).reserve(Release(REVIEWS, Gaussian(5.0)))
    path = ("--ledger", ledger.path, "--reason", "asked the operator")
    assert "without steps" in refused("settle", held.index, "--steps", 1, *path)
    answer = json.loads(invoke("settle", held.index, option, *path, "--json").stdout)
    assert answer["row"] == held.index and answer["accounts"][0]["by_hand"] == 1
    Accounts(ledger).settle(2, None)
    assert Accounts(ledger).statement(REVIEWS).events == left
