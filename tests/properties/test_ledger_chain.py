"""Whatever is written holds, and whatever is changed afterwards is found."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privtensors.accounting import Entry, Head, Ledger, verify_export
from privtensors.accounting.export import to_text
from privtensors.errors import LedgerCorrupt, LedgerError

Content = list[tuple[str, dict[str, object]]]

COLUMNS = ("time", "kind", "session", "body", "prev_hash", "hash")
FIELDS = ("time", "kind", "session", "body_json", "prev_hash", "hash")

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
bodies = st.dictionaries(st.text(), json_values, max_size=4)
kinds = st.from_regex(r"[a-z][a-z0-9_]{0,9}(\.[a-z][a-z0-9_]{0,9})?", fullmatch=True)
rows = st.lists(st.tuples(kinds, bodies), min_size=1, max_size=6)
small_rows = st.lists(st.tuples(kinds, st.dictionaries(st.text(max_size=5), st.text(max_size=10), max_size=2)), min_size=1, max_size=5)


@contextmanager
def written(content: Content) -> Iterator[tuple[Path, tuple[Entry, ...]]]:
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.sqlite")
        with ledger.transaction() as transaction:
            entries = tuple(transaction.append(kind, body) for kind, body in content)  # type: ignore[arg-type]
        yield ledger.path, entries


def execute(path: Path, statement: str, arguments: tuple[object, ...]) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute(statement, arguments)
    finally:
        connection.close()


@given(rows)
@settings(deadline=None, max_examples=60)
def test_what_is_written_is_read_back_and_holds_against_every_head(content: Content) -> None:
    with written(content) as (path, entries):
        ledger = Ledger(path)
        assert ledger.entries() == entries
        assert [(entry.kind, entry.body) for entry in entries] == content
        assert [entry.index for entry in entries] == list(range(1, len(content) + 1))
        for entry in entries:
            assert ledger.verify(str(entry.head)).rows == len(content)
        with pytest.raises(LedgerCorrupt):
            ledger.verify(Head(len(content) + 1, entries[-1].hash))


@given(rows, st.data())
@settings(deadline=None, max_examples=150)
def test_any_edited_field_is_found_and_its_row_named(content: Content, data: st.DataObject) -> None:
    with written(content) as (path, entries):
        entry = data.draw(st.sampled_from(entries))
        field = data.draw(st.integers(0, len(FIELDS) - 1))
        old: str = getattr(entry, FIELDS[field])
        at = data.draw(st.integers(0, len(old)))
        removed = data.draw(st.integers(0, 3))
        new = data.draw(
            st.one_of(
                st.text(st.characters(exclude_categories=["Cs"]), max_size=3).map(lambda text: old[:at] + text + old[at + removed :]),
                st.binary(max_size=4),
                st.integers(-(2**63), 2**63 - 1),
                st.floats(allow_nan=False),
            ).filter(lambda value: value != old)
        )
        execute(path, f'UPDATE entries SET {COLUMNS[field]} = ? WHERE "index" = ?', (new, entry.index))
        with pytest.raises(LedgerCorrupt, match=f"^row {entry.index} of "):
            Ledger(path).verify()


@given(rows, st.data())
@settings(deadline=None, max_examples=60)
def test_any_moved_row_is_found_and_named(content: Content, data: st.DataObject) -> None:
    with written(content) as (path, entries):
        entry = data.draw(st.sampled_from(entries))
        taken = {other.index for other in entries}
        index = data.draw((st.integers(-3, 12) | st.integers(-(2**63), 2**63 - 1)).filter(lambda value: value not in taken))
        execute(path, 'UPDATE entries SET "index" = ? WHERE "index" = ?', (index, entry.index))
        if index < 1 and entry.index == len(entries) > 1:  # hidden before the first row, where only the count gives it away
            with pytest.raises(LedgerCorrupt, match=f"^row {entry.index} of .*rows are stored"):
                Ledger(path).verify()
        else:
            with pytest.raises(LedgerCorrupt, match=f"^row {entry.index} of "):
                Ledger(path).verify()


@given(small_rows, st.data())
@settings(deadline=None, max_examples=300)
def test_any_changed_byte_of_a_row_in_the_file_is_found_and_its_row_named(content: Content, data: st.DataObject) -> None:
    with written(content) as (path, entries):
        entry = data.draw(st.sampled_from(entries))
        raw = bytearray(path.read_bytes())
        stored = "".join(getattr(entry, field) for field in FIELDS).encode()
        assert raw.count(stored) == 1
        start = raw.index(stored)
        at = data.draw(st.integers(start, start + len(stored) - 1))
        raw[at] ^= data.draw(st.integers(1, 255))
        path.write_bytes(raw)
        with pytest.raises(LedgerCorrupt, match=f"^row {entry.index} of "):
            Ledger(path).verify()


@given(small_rows, st.data())
@settings(deadline=None, max_examples=300)
def test_a_damaged_file_never_passes_as_another_chain(content: Content, data: st.DataObject) -> None:
    with written(content) as (path, entries):
        raw = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(raw[: data.draw(st.just(len(raw)) | st.integers(0, len(raw)))])
        try:
            ledger = Ledger(path)
            verdict = ledger.verify(entries[-1].head)
        except LedgerError:
            return
        # What survived was the empty space of a page or a field of SQLite's own header.
        assert verdict.head == entries[-1].head and ledger.entries() == entries


@given(rows, st.data())
@settings(deadline=None, max_examples=100)
def test_an_export_holds_and_any_edited_field_of_it_is_found(content: Content, data: st.DataObject) -> None:
    with written(content) as (path, entries):
        ledger, output = Ledger(path), path.with_name("export.json")
        output.write_text("".join(to_text(ledger.snapshot(), "json")), encoding="ascii")
        assert verify_export(output, entries[-1].head) == ledger.verify(entries[-1].head)
        value = json.loads(output.read_text(encoding="ascii"))
        row = value["rows"][data.draw(st.integers(0, len(entries) - 1))]
        field = data.draw(st.sampled_from(sorted(row)))
        old = row[field]
        row[field] = data.draw((st.text(max_size=5) | st.integers() | st.none() | st.just([old])).filter(lambda new: new != old))
        output.write_text(json.dumps(value), encoding="ascii")
        with pytest.raises(LedgerCorrupt):
            verify_export(output)
