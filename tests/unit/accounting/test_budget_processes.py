"""Several processes at one budget, and a process that dies between reserving and settling."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import privtensors
from privtensors.accounting import Account, Accounts, Gaussian, Ledger, RenyiFilter
from privtensors.accounting.events import EventGroups, group

ROOT = Path(privtensors.__file__).parents[1]
DATA = Account("shared")
NOISE = 12.0

SPENDER = """
import sys
import dp_accounting
from privtensors.accounting import Account, Accounts, Gaussian, Ledger, Release
from privtensors.errors import BudgetExceeded
accounts, event = Accounts(Ledger(sys.argv[1], timeout=30)), Gaussian(float(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
admitted = 0
for _ in range(40):
    try:
        held = accounts.reserve(Release(Account("shared"), event))
    except BudgetExceeded:
        break
    admitted += 1
    if admitted % 2:
        accounts.settle(held, event)
print(admitted)
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_processes_together_never_overspend(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    Accounts(ledger).set_budget(DATA, 2.0, 1e-5)
    room = RenyiFilter(2.0, 1e-5).fits(EventGroups(), Gaussian(NOISE))
    spenders = [start(SPENDER, ledger.path, NOISE) for _ in range(3)]
    for spender in spenders:
        assert spender.stdout is not None and spender.stdout.readline() == "ready\n"
    for spender in spenders:
        assert spender.stdin is not None
        spender.stdin.write("\n")
        spender.stdin.flush()
    admitted = [int(spender.communicate(timeout=120)[0]) for spender in spenders]
    assert all(spender.returncode == 0 for spender in spenders)
    assert 10 < sum(admitted) == room  # all of the budget, and not one release more
    statement = Accounts(ledger).statement(DATA)
    assert statement.events == group([Gaussian(NOISE)] * room) and len(statement.open) == sum(count // 2 for count in admitted)
    assert statement.filtered is not None and statement.filtered <= 2.0
    ledger.verify()


def test_a_process_that_dies_keeps_its_reservation(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    accounts = Accounts(ledger)
    accounts.set_budget(DATA, 2.0, 1e-5)
    code = """
import os, signal, sys
from privtensors.accounting import Account, Accounts, Gaussian, Ledger, Release
Accounts(Ledger(sys.argv[1])).reserve(Release(Account("shared"), Gaussian(float(sys.argv[2]))))
os.kill(os.getpid(), signal.SIGKILL)
"""
    process = start(code, ledger.path, NOISE)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    statement = accounts.statement(DATA)
    assert statement.open == (2,) and statement.events == group(Gaussian(NOISE))
    assert statement.left is not None and statement.left < 2.0
    accounts.settle(2, None)  # whoever knows that nothing left may say so, by the row
    assert accounts.statement(DATA).left == 2.0
    assert ledger.verify().rows == 3
