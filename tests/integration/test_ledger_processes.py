"""One ledger under real processes: several that reserve at once, runs that are killed, files that are damaged or locked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import privtensors
from privtensors.accounting import Account, Accounts, Ledger, RenyiFilter, SampledGaussian, verify_export
from privtensors.accounting.events import group
from privtensors.errors import LedgerCorrupt, LedgerError

ROOT = Path(privtensors.__file__).parents[1]
DATA = Account("reviews")

# A run as training makes it: reserve all steps, take them, settle. It prints what was admitted.
RUN = """
import sys
import dp_accounting
from privtensors.accounting import Account, Accounts, Ledger, Release, SampledGaussian
from privtensors.errors import BudgetExceeded
path, noise, steps, stop = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
accounts, event = Accounts(Ledger(path, timeout=30)), SampledGaussian(noise, 0.01, steps)
print("ready", flush=True)
sys.stdin.readline()
try:
    held = accounts.reserve(Release(Account("reviews"), event, "dp_sgd"))
except BudgetExceeded as error:
    print("refused " + error.what, flush=True)
else:
    print(f"reserved {held.index}", flush=True)
    if stop == "hang":
        sys.stdin.readline()
    accounts.settle(held, event)
"""


def run(path: Path, noise: float, steps: int, stop: str = "end") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RUN, str(path), str(noise), str(steps), stop]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "privtensors", "ledger", *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    Accounts(ledger).set_budget(DATA, 3.0, 1e-5)
    return ledger


def test_runs_that_start_at_once_are_admitted_only_as_far_as_they_fit_together(ledger: Ledger) -> None:
    sizes = [(1.0, 400), (1.5, 1500), (0.9, 250), (1.2, 900)]  # each fits alone, all of them do not
    gate = RenyiFilter(3.0, 1e-5)
    events = [SampledGaussian(noise, 0.01, steps) for noise, steps in sizes]
    assert all(gate.admits(group(event)) for event in events) and not gate.admits(group(events))
    runs = [run(ledger.path, noise, steps) for noise, steps in sizes]
    for process in runs:
        go(process)
    outputs = [process.communicate(timeout=120)[0] for process in runs]
    assert all(process.returncode == 0 for process in runs)
    admitted = [event for event, output in zip(events, outputs, strict=True) if output.startswith("reserved")]
    assert 0 < len(admitted) < len(events) and gate.admits(group(admitted))
    for event, output in zip(events, outputs, strict=True):
        if event not in admitted:
            assert "is left, and the release needs more" in output and not gate.admits(group([*admitted, event]))
    now = Accounts(ledger).statement(DATA)
    assert now.events == group(admitted) and now.open == () and now.filtered is not None and now.filtered <= 3.0
    ledger.verify()


def test_a_run_that_is_killed_keeps_its_reservation_until_somebody_settles_it(ledger: Ledger, tmp_path: Path) -> None:
    dying = run(ledger.path, 1.0, 1000, "hang")
    go(dying)
    assert dying.stdout is not None and dying.stdout.readline() == "reserved 2\n"
    os.kill(dying.pid, signal.SIGKILL)
    dying.communicate(timeout=60)
    assert dying.returncode == -signal.SIGKILL

    shown = json.loads(command("budget", "--ledger", ledger.path, "--json").stdout)
    assert shown["accounts"][0]["open"] == [2]
    second = run(ledger.path, 1.0, 1000)  # the same again does not fit while the first counts in full
    assert second.communicate("\n", timeout=120)[0].startswith("refused") and second.returncode == 0

    settled = command("settle", 2, "--ledger", ledger.path, "--steps", 100, "--reason", "killed after step 100")
    assert settled.returncode == 0, settled.stderr
    third = run(ledger.path, 1.0, 800)
    assert third.communicate("\n", timeout=120)[0].startswith("reserved") and third.returncode == 0
    assert Accounts(ledger).statement(DATA).events == group(SampledGaussian(1.0, 0.01, 900))

    output = tmp_path / "elsewhere.json"
    assert command("export", "--ledger", ledger.path, "--output", output).returncode == 0
    assert verify_export(output, ledger.head()).rows == 5


def test_a_ledger_that_is_damaged_under_a_running_process_admits_nothing(ledger: Ledger) -> None:
    waiting = run(ledger.path, 1.0, 100)
    raw = bytearray(ledger.path.read_bytes())
    at = raw.index(b'"epsilon":3.0')
    raw[at + 10 : at + 13] = b"9.0"  # a larger budget, by hand
    ledger.path.write_bytes(raw)
    output, _ = waiting.communicate("\n", timeout=120)
    assert waiting.returncode == 1 and "reserved" not in output
    result = command("verify", "--ledger", ledger.path)
    assert result.returncode == 1 and "row 1 of" in result.stderr
    ledger.path.write_bytes(b"\x00" * len(raw))
    for use in (ledger.head, Accounts(ledger).statements):
        with pytest.raises(LedgerError):
            use()
    with pytest.raises((LedgerCorrupt, LedgerError)):
        Ledger(ledger.path)


def test_a_locked_ledger_is_an_error_in_bounded_time(ledger: Ledger) -> None:
    code = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.readline()
"""
    arguments = [sys.executable, "-c", code, str(ledger.path)]
    holder = subprocess.Popen(arguments, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
    start = time.monotonic()
    with pytest.raises(LedgerError, match="another process keeps it locked"):
        Ledger(ledger.path, timeout=0.3)
    assert time.monotonic() - start < 5
    holder.communicate("\n", timeout=60)
    assert Ledger(ledger.path, timeout=0.3).verify().rows == 1
