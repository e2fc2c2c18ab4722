"""The ledger as a writer and a reader meet it."""

from __future__ import annotations

import json
import os
import resource
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import privtensors
from privtensors.accounting import Entry, Head, Ledger, default_path
from privtensors.core.recorder import Disclosure, Recorder
from privtensors.errors import InvalidInput, LedgerCorrupt, LedgerError

ROOT = Path(privtensors.__file__).parents[1]


def disclosure(label: str = "logits") -> Disclosure:
    return Disclosure("mpc", (1, 2), "float32", "client", label, True, "computational", (("model", "minilm"),))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.sqlite", session="s1")


def test_record_writes_every_fact_of_the_disclosure(ledger: Ledger) -> None:
    recorder: Recorder = ledger
    recorder.record(disclosure())
    [entry] = ledger.entries()
    assert (entry.index, entry.kind, entry.session) == (1, "reveal", "s1")
    assert entry.body == {
        "backend": "mpc",
        "shape": [1, 2],
        "dtype": "float32",
        "receiver": "client",
        "label": "logits",
        "simulated": True,
        "guarantee": "computational",
        "details": [["model", "minilm"]],
    }
    assert set(entry.body) == set(Disclosure.__dataclass_fields__)  # a new field of Disclosure must reach the ledger
    assert entry.head == ledger.head() == ledger.verify().head


@pytest.mark.parametrize("change", [{"shape": ("a",)}, {"shape": 3}, {"details": (("only one",),)}, {"label": b"bytes"}])
def test_a_malformed_disclosure_raises_and_writes_nothing(ledger: Ledger, change: dict[str, object]) -> None:
    good = disclosure()
    fields = {name: getattr(good, name) for name in Disclosure.__dataclass_fields__}
    with pytest.raises(InvalidInput):
        ledger.record(Disclosure(**{**fields, **change}))
    assert ledger.verify().rows == 0


def test_empty_ledger_has_the_genesis_as_head(ledger: Ledger) -> None:
    assert ledger.entries() == ()
    assert ledger.head().index == 0
    assert ledger.verify(str(ledger.head())).rows == 0
    other = Ledger(ledger.path.with_name("other.sqlite"))
    assert other.head().hash != ledger.head().hash
    with pytest.raises(LedgerCorrupt, match="row 0"):
        ledger.verify(other.head())


def test_entries_are_the_newest_in_chain_order_and_filtered(ledger: Ledger) -> None:
    for i in range(5):
        ledger.append("reveal" if i % 2 else "dp.reserve", {"i": i})
    Ledger(ledger.path, session="s2").append("reveal", {"i": 5})
    assert [entry.body["i"] for entry in ledger.entries(limit=2)] == [4, 5]
    assert [entry.body["i"] for entry in ledger.entries(session="s1")] == [0, 1, 2, 3, 4]
    assert [entry.body["i"] for entry in ledger.entries(kind="dp.reserve", limit=2)] == [2, 4]
    assert len(ledger.entries(limit=10**30)) == 6
    with pytest.raises(InvalidInput):
        ledger.entries(limit=0)


def test_an_entry_is_frozen(ledger: Ledger) -> None:
    entry = ledger.append("reveal", {"list": [1]})
    entry.body["list"].append(2)
    assert entry.body == {"list": [1]}
    with pytest.raises(AttributeError):
        entry.kind = "other"  # type: ignore[misc]


@pytest.mark.parametrize("kind", ["", "Reveal", "a b", "1a", "a.", ".a", "a\n", "a" * 65, "é", None])
def test_bad_kinds_are_refused(ledger: Ledger, kind: str) -> None:
    with pytest.raises(InvalidInput):
        ledger.append(kind, {})
    assert ledger.head().index == 0


def _nested(depth: int) -> object:
    return [_nested(depth - 1)] if depth else 0


@pytest.mark.parametrize(
    "body",
    [
        {"x": float("nan")},
        {"x": [float("-inf")]},
        {1: "x"},
        {"x": {1: 2}},
        {"x": b"b"},
        {"x": {1, 2}},
        [1],
        None,
        {"x": "a" * (1 << 20)},
        {"x": _nested(40)},
        {"x": 10**5000},
    ],
)
def test_bad_bodies_are_refused(ledger: Ledger, body: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        ledger.append("reveal", body)  # type: ignore[arg-type]
    assert ledger.head().index == 0


def test_an_error_shows_no_value_of_the_body(ledger: Ledger) -> None:
    with pytest.raises(InvalidInput) as caught:
        ledger.append("reveal", {"x": [{"y": b"secret-value"}]})
    assert "secret" not in str(caught.value) and "body.x[0].y" in str(caught.value)


@pytest.mark.parametrize("session", ["", "a b", "-a", "a" * 129, "a\n"])
def test_bad_sessions_are_refused(tmp_path: Path, session: str) -> None:
    with pytest.raises(InvalidInput):
        Ledger(tmp_path / "l", session=session)


def test_two_objects_have_two_sessions(tmp_path: Path) -> None:
    assert Ledger(tmp_path / "l").session != Ledger(tmp_path / "l").session


def test_heads_are_read_back(ledger: Ledger) -> None:
    head = ledger.append("reveal", {}).head
    assert Head.parse(f" {str(head).upper()}\n") == head
    for bad in ["", "1", "1:", "1:ab", f"-1:{head.hash}", f"{head}0", head.hash, f"1:{'g' * 64}"]:
        with pytest.raises(InvalidInput):
            Head.parse(bad)


def test_a_ledger_that_has_grown_still_holds_against_an_old_head(ledger: Ledger) -> None:
    heads = [ledger.head()] + [ledger.append("reveal", {"i": i}).head for i in range(4)]
    for head in heads:
        assert ledger.verify(str(head)).against == head
    with pytest.raises(LedgerCorrupt, match=r"row 9 .*ends at row 4"):
        ledger.verify(Head(9, heads[-1].hash))
    with pytest.raises(LedgerCorrupt, match="row 2 "):
        ledger.verify(Head(2, heads[3].hash))


def test_a_transaction_is_all_or_nothing(ledger: Ledger) -> None:
    with ledger.transaction() as transaction:
        assert transaction.entries() == ()
        transaction.append("dp.reserve", {"epsilon": 1.0})
        transaction.append("dp.settle", {"of": 1})
        assert [entry.kind for entry in transaction.entries()] == ["dp.reserve", "dp.settle"]
    assert ledger.verify().rows == 2
    with pytest.raises(KeyError), ledger.transaction() as transaction:
        transaction.append("dp.reserve", {})
        raise KeyError("refused")
    assert ledger.verify().rows == 2
    with pytest.raises(LedgerError, match="ended"):
        transaction.append("reveal", {})


def test_a_transaction_that_sqlite_ended_leaves_no_gap(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="ended"), ledger.transaction() as transaction:
        transaction.append("reveal", {})
        transaction._connection.execute("ROLLBACK")  # as SQLite itself does when the disk is full
        transaction.append("reveal", {})
    assert ledger.verify().rows == 0


def test_the_file_is_for_its_owner_only_and_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        ledger = Ledger(tmp_path / "new" / "deep" / "ledger.sqlite")
    finally:
        os.umask(old)
    ledger.record(disclosure())
    assert stat.S_IMODE(ledger.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(ledger.path.parent.stat().st_mode) == 0o700
    assert [path.name for path in ledger.path.parent.iterdir()] == ["ledger.sqlite"]


def test_names_with_special_characters(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "a b?c#d%20é.sqlite")
    ledger.record(disclosure())
    assert ledger.path.exists() and ledger.verify().rows == 1


def test_default_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PRIVTENSORS_LEDGER", str(tmp_path / "env.sqlite"))
    assert default_path() == tmp_path / "env.sqlite"
    assert Ledger().path == (tmp_path / "env.sqlite").resolve()
    assert Ledger(tmp_path / "argument.sqlite").path.name == "argument.sqlite"
    monkeypatch.setenv("PRIVTENSORS_LEDGER", "")
    assert (default_path().name, default_path().parent.name) == ("ledger.sqlite", "privtensors")


def test_closed(ledger: Ledger) -> None:
    with ledger as same:
        same.record(disclosure())
    for use in (ledger.head, ledger.entries, ledger.verify, lambda: ledger.append("reveal", {})):
        with pytest.raises(LedgerError, match="closed"):
            use()


def test_repr_names_the_file(ledger: Ledger) -> None:
    assert str(ledger.path) in repr(ledger)


def test_bad_places(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("hello")
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    for name in ("file", "empty", "pipe", ".", "file/below", "nul\0", "n" * 300):
        with pytest.raises(LedgerError) as caught:
            Ledger(tmp_path / name)
        assert caught.value.fix
    assert (tmp_path / "file").read_text() == "hello" and (tmp_path / "empty").stat().st_size == 0
    with pytest.raises(LedgerError, match="there is no ledger"):
        Ledger(tmp_path / "absent", create=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "pipe"]  # nothing is left behind


def test_a_locked_ledger_refuses_the_reveal(ledger: Ledger) -> None:
    impatient = Ledger(ledger.path, timeout=0.05)
    with ledger.transaction() as transaction:
        transaction.append("reveal", {})
        with pytest.raises(LedgerError, match="locked"):
            impatient.record(disclosure())
        assert impatient.verify().rows == 0  # readers are not held up
    assert ledger.verify().rows == 1


def test_a_full_disk_refuses_the_reveal(ledger: Ledger) -> None:
    head = ledger.append("reveal", {}).head
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ledger.path.stat().st_size, hard))
    try:
        with pytest.raises(LedgerError) as caught:
            ledger.append("reveal", {"x": "y" * 20_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert type(caught.value) is LedgerError  # the disk is at fault, not the chain
    assert ledger.verify().head == head
    ledger.record(disclosure())


def test_a_ledger_that_vanished_or_was_replaced_refuses(ledger: Ledger) -> None:
    ledger.record(disclosure())
    moved = ledger.path.rename(ledger.path.with_name("moved"))
    with pytest.raises(LedgerError, match="there is no ledger"):
        ledger.record(disclosure())
    Ledger(ledger.path)
    with pytest.raises(LedgerError, match="replaced"):
        ledger.record(disclosure())
    moved.replace(ledger.path)
    ledger.record(disclosure())
    assert ledger.verify().rows == 2


def test_going_back_to_an_old_copy_is_noticed_by_the_running_process(ledger: Ledger) -> None:
    ledger.record(disclosure())
    old = ledger.path.read_bytes()
    ledger.record(disclosure())
    ledger.path.write_bytes(old)
    for use in (lambda: ledger.append("reveal", {}), ledger.head, ledger.verify):
        with pytest.raises(LedgerCorrupt, match=r"row 2 .*this process"):
            use()
    assert Ledger(ledger.path).verify().rows == 1  # a new process has no head to hold it against


def test_threads_share_a_ledger(ledger: Ledger) -> None:
    threads = [threading.Thread(target=lambda: [ledger.append("reveal", {}) for _ in range(10)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.verify().rows == 40


def test_canonical_json_and_round_trip(ledger: Ledger) -> None:
    entry = ledger.append("reveal", {"b": 1.5, "a": (1, None, True), "é": "\ud800\n"})
    assert entry.body_json == '{"a":[1,null,true],"b":1.5,"\\u00e9":"\\ud800\\n"}'
    assert ledger.entries() == (entry,)
    assert isinstance(entry, Entry) and json.loads(entry.body_json) == entry.body


def test_accounting_imports_neither_torch_nor_sqlite_nor_core() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; import privtensors.accounting, privtensors.accounting.store as _\n"
        "heavy = {'sqlite3', 'rich', 'platformdirs', 'numpy'}\n"
        "print([m for m in sys.modules if m.split('.')[0] in heavy or m.startswith('privtensors.core')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_one_record_costs_milliseconds(ledger: Ledger) -> None:
    ledger.record(disclosure())
    started = time.process_time()
    for _ in range(20):
        ledger.record(disclosure())
    assert (time.process_time() - started) / 20 < 0.02  # measured: 0.8 ms of CPU; the rest is the disk's
