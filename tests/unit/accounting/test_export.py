"""Exports: what is written can be verified anywhere, whatever was changed in it is found, and tables hold every row."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from privtensors.accounting import Account, Accounts, Gaussian, Ledger, Release, verify_export
from privtensors.accounting.chain import entry_hash
from privtensors.accounting.export import to_text
from privtensors.core.recorder import Disclosure
from privtensors.errors import InvalidInput, LedgerCorrupt, LedgerError


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    accounts = Accounts(ledger)
    accounts.set_budget(Account("reviews"), 3.0, 1e-5)
    held = accounts.reserve(Release(Account("reviews"), Gaussian(9.0), "dp_tensor"))
    accounts.settle(held, Gaussian(9.0))
    ledger.record(Disclosure("mpc", (4, 2), "float32", "client", "=1+1 ε", True, "computational"))
    return ledger


@pytest.fixture
def exported(ledger: Ledger, tmp_path: Path) -> Path:
    path = tmp_path / "ledger.json"
    path.write_text("".join(to_text(ledger.snapshot(), "json")), encoding="utf-8")
    return path


def edited(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def test_an_export_verifies_as_its_ledger_does(ledger: Ledger, exported: Path) -> None:
    assert verify_export(exported) == ledger.verify()
    old = ledger.entries()[1].head
    assert verify_export(exported, str(old)).against == old
    ledger.append("reveal", {})
    with pytest.raises(LedgerCorrupt, match=r"row 5 of .*the given head"):
        verify_export(exported, ledger.head())  # older than that head
    with pytest.raises(InvalidInput):
        verify_export(exported, "5")


def test_anybody_can_check_it_with_sha256_alone(exported: Path) -> None:
    found = json.loads(exported.read_bytes())

    def digest(tag: bytes, *fields: str | int) -> str:
        raw = [field.to_bytes(8, "big") if isinstance(field, int) else field.encode() for field in fields]
        return sha256(tag + b"".join(len(one).to_bytes(8, "big") + one for one in raw)).hexdigest()

    last = digest(b"privtensors.ledger.genesis/1\x00", found["ledger_id"], found["created"])
    for number, row in enumerate(found["rows"], 1):
        values = (last, number, row["time"], row["kind"], row["session"], row["body"])
        last = digest(b"privtensors.ledger.entry/1\x00", *values)
        assert last == row["hash"]
    assert found["head"] == f"{len(found['rows'])}:{last}"


def test_the_json_is_canonical_and_ascii(ledger: Ledger, exported: Path) -> None:
    text = exported.read_text(encoding="ascii")
    value = json.loads(text)
    assert text.replace("\n", "") == json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    assert "".join(to_text(ledger.snapshot(), "json")) == text


def test_an_empty_ledger(tmp_path: Path) -> None:
    empty, path = Ledger(tmp_path / "empty.sqlite"), tmp_path / "empty.json"
    path.write_text("".join(to_text(empty.snapshot(), "json")))
    assert verify_export(path, empty.head()).rows == 0
    assert list(to_text(empty.snapshot(), "jsonl")) == [] and len(list(to_text(empty.snapshot(), "csv"))) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value["rows"][1].update(body=value["rows"][1]["body"].replace("9.0", "90.0")),
        lambda value: value["rows"].pop(2),
        lambda value: value["rows"].pop(),
        lambda value: value["rows"].reverse(),
        lambda value: value["rows"].insert(1, value["rows"][0]),
        lambda value: value["rows"][0].update(extra=1),
        lambda value: value["rows"][0].update(index=1.0),
        lambda value: value["rows"].__setitem__(0, None),
        lambda value: value.update(created="2020-01-01T00:00:00.000000Z"),
        lambda value: value.update(ledger_id="0" * 32),
        lambda value: value.update(head="0:" + "0" * 64),
    ],
)
def test_what_was_changed_is_found(exported: Path, change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(LedgerCorrupt):
        verify_export(edited(exported, change))


def test_rows_that_do_not_add_up_are_found_though_the_hashes_hold(exported: Path) -> None:
    def forge(value: dict[str, Any]) -> None:
        row, head = value["rows"][2], value["rows"][1]["hash"]
        row["body"] = row["body"].replace("9.0", "0.5")  # settles more than was reserved
        row["hash"] = entry_hash(3, row["time"], row["kind"], row["session"], row["body"], head)
        value["rows"] = value["rows"][:3]
        value["head"] = f"3:{row['hash']}"

    with pytest.raises(LedgerCorrupt, match=r"row 3 of .*bookkeeping"):
        verify_export(edited(exported, forge))


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"format":"privtensors.ledger/2"}', b"SQLite format 3\x00"]
)
def test_what_is_no_export_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "no.json"
    path.write_bytes(content)
    with pytest.raises(LedgerError, match="no ledger export"):
        verify_export(path)
    with pytest.raises(LedgerError, match="no such file"):
        verify_export(tmp_path / "absent")


def test_lone_surrogates_are_refused(exported: Path) -> None:
    with pytest.raises(LedgerError):
        verify_export(edited(exported, lambda value: value.update(ledger_id="\ud800")))


def test_rows_for_notebooks_and_tables(ledger: Ledger) -> None:
    lines = [json.loads(line) for line in to_text(ledger.snapshot(), "jsonl")]
    assert [line["index"] for line in lines] == [1, 2, 3, 4] and lines[1]["body"]["release"]["technique"] == "dp_tensor"
    table = list(csv.DictReader(io.StringIO("".join(to_text(ledger.snapshot(), "csv")))))
    assert [row["dataset"] for row in table] == ["reviews", "reviews", "", ""] and table[1]["technique"] == "dp_tensor"
    assert table[3]["label"] == "'=1+1 ε" and table[3]["receiver"] == "client"  # no formula for a spreadsheet
    assert json.loads(table[3]["body"])["label"] == "=1+1 ε"
    with pytest.raises(LedgerError, match="no format"):
        to_text(ledger.snapshot(), "xml")


def test_a_ledger_that_does_not_hold_is_not_exported(ledger: Ledger) -> None:
    connection = sqlite3.connect(ledger.path, isolation_level=None)
    connection.execute("UPDATE entries SET time = '2020-01-01T00:00:00.000000Z' WHERE \"index\" = 2")
    connection.close()
    with pytest.raises(LedgerCorrupt, match="row 2 of"):
        ledger.snapshot()
