"""Several processes at one ledger, and processes that die while they write."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

import privtensors
from privtensors.accounting import Ledger
from privtensors.errors import LedgerError

ROOT = Path(privtensors.__file__).parents[1]


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    # A fresh interpreter, as a spawned worker has, and safe to kill.
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def await_line(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None and process.stdout.readline() == f"{line}\n"


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, "the other process never got there"
        time.sleep(0.005)


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


WRITER = """
import sys, time
from privtensors.accounting import Ledger
print("ready", flush=True)
sys.stdin.readline()
ledger = Ledger(sys.argv[1], session=sys.argv[2], timeout=30)
for i in range(int(sys.argv[3])):
    ledger.append("reveal", {"i": i})
    time.sleep(0.002)  # or one writer has the file to itself while the others back off
"""


def test_processes_that_create_and_append_at_once_make_one_chain(tmp_path: Path) -> None:
    path, count = tmp_path / "ledger.sqlite", 60
    writers = [start(WRITER, path, f"s{k}", count) for k in range(3)]
    for writer in writers:
        await_line(writer, "ready")  # so that they create and write at the same time
    for writer in writers:
        go(writer)
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    ledger = Ledger(path, create=False)
    assert ledger.verify().rows == 3 * count
    for k in range(3):
        assert [entry.body["i"] for entry in ledger.entries(session=f"s{k}")] == list(range(count))
    sessions = [entry.session for entry in ledger.entries()]
    assert sum(a != b for a, b in pairwise(sessions)) > 5  # they did take turns
    assert [name.name for name in tmp_path.iterdir()] == ["ledger.sqlite"]


def test_a_process_killed_while_appending_leaves_a_valid_chain(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path)
    for round_ in range(4):
        before = ledger.head().index
        writer = start(WRITER, path, f"s{round_}", 10**6)
        go(writer)
        wait_for(lambda floor=before + 5: ledger.head().index > floor, writer)  # type: ignore[misc]
        kill(writer)
        assert ledger.verify().rows > before
        ledger.append("reveal", {})  # and nobody is locked out
    assert ledger.verify().rows == ledger.head().index


def test_a_process_killed_inside_a_transaction_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path)
    ledger.append("reveal", {})
    code = """
import os, signal, sys
from privtensors.accounting import Ledger
with Ledger(sys.argv[1]).transaction() as transaction:
    transaction.append("reveal", {})
    os.kill(os.getpid(), signal.SIGKILL)
"""
    process = start(code, path)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert ledger.verify().rows == 1
    assert ledger.append("reveal", {}).index == 2


def test_a_half_written_commit_is_rolled_back(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    head = Ledger(path).append("reveal", {"i": 0}).head
    # With no cache to speak of, SQLite writes pages of the open transaction into the file, covered by the journal.
    code = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 1")
connection.execute("BEGIN IMMEDIATE")
connection.execute("UPDATE entries SET body = 'half written'")
for i in range(2, 400):
    connection.execute("INSERT INTO entries VALUES (?, '', '', '', ?, '', '')", (i, "x" * 3000))
os.kill(os.getpid(), signal.SIGKILL)
"""
    process = start(code, path)
    process.communicate(timeout=60)
    assert path.stat().st_size > 400_000 and path.with_name("ledger.sqlite-journal").exists()
    ledger = Ledger(path)
    assert ledger.verify().head == head
    assert ledger.append("reveal", {}).index == 2


def test_a_writer_waits_for_another_process_and_then_gives_up(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    Ledger(path)
    code = """
import sys
from privtensors.accounting import Ledger
with Ledger(sys.argv[1]).transaction() as transaction:
    transaction.append("reveal", {})
    print("locked", flush=True)
    sys.stdin.readline()
"""
    holder = start(code, path)
    await_line(holder, "locked")
    with pytest.raises(LedgerError, match="another process keeps it locked"):
        Ledger(path, timeout=0.1).append("reveal", {})
    holder.communicate("\n", timeout=60)
    assert Ledger(path, timeout=0.1).append("reveal", {}).index == 2


def test_a_forked_child_may_append(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.append("reveal", {})
    code = """
import os, sys
from privtensors.accounting import Ledger
ledger = Ledger(sys.argv[1])
ledger.append("reveal", {"who": "parent"})
child = os.fork()
for _ in range(20):
    ledger.append("reveal", {"who": "parent" if child else "child"})
if child:
    assert os.waitpid(child, 0)[1] == 0
"""
    process = start(code, ledger.path)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert ledger.verify().rows == 42


def test_a_reader_does_not_stop_a_writer_for_long(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    reader = sqlite3.connect(ledger.path, isolation_level=None)
    try:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM meta").fetchall()
        with pytest.raises(LedgerError, match="locked"):  # a reader that never ends: refused, not hung
            Ledger(ledger.path, timeout=0.05).append("reveal", {})
        assert ledger.head().index == 0
    finally:
        reader.close()
    assert ledger.append("reveal", {}).index == 1
