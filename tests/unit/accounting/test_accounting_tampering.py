"""Every change of a ledger file is found, and the row is named."""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path

import pytest

from privtensors.accounting import Ledger
from privtensors.accounting.chain import entry_hash
from privtensors.errors import LedgerCorrupt, LedgerError

ROWS = 6


@pytest.fixture
def path(tmp_path: Path) -> Path:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    with ledger.transaction() as transaction:
        for i in range(ROWS):
            transaction.append("reveal", {"i": i, "label": f"row-{i}"})
    return ledger.path


def edit(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        for statement in statements:
            connection.execute(statement)
    finally:
        connection.close()


def without_not_null(path: Path, statement: str) -> None:
    """Run ``statement`` as somebody would who edits the table's definition and puts it back."""
    connection = sqlite3.connect(path, isolation_level=None)
    [(sql,)] = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'entries'").fetchall()
    connection.close()
    for definition, then in ((sql.replace(" NOT NULL", ""), statement), (sql, "SELECT 1")):
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'entries'", (definition,))
        connection.close()
        edit(path, then)


def rehash_from(path: Path, first: int) -> None:
    """Recompute every hash from row ``first`` on, as an attacker who knows the format can."""
    connection = sqlite3.connect(path, isolation_level=None)
    rows = connection.execute('SELECT "index", time, kind, session, body, prev_hash, hash FROM entries ORDER BY "index"').fetchall()
    previous = rows[first - 1][5] if first == 1 else rows[first - 2][6]
    for index, time, kind, session, body, _, _ in rows[first - 1 :]:
        new = entry_hash(index, time, kind, session, body, previous)
        connection.execute('UPDATE entries SET prev_hash = ?, hash = ? WHERE "index" = ?', (previous, new, index))
        previous = new
    connection.close()


def expect(path: Path, row: int, head: str | None = None) -> None:
    with pytest.raises(LedgerCorrupt, match=f"^row {row} of ") as caught:
        Ledger(path).verify(head)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("row", range(1, ROWS))
@pytest.mark.parametrize(
    "change",
    [
        "time = replace(time, 'T', 't')",
        "kind = 'reveals'",
        "session = session || 'x'",
        "body = replace(body, 'row', 'raw')",
        "prev_hash = upper(prev_hash)",
        "hash = substr(hash, 1, 63)",
        "body = CAST(body AS BLOB)",
        "body = 7",
        "hash = x'ff'",
        "kind = CAST(x'7265ff' AS TEXT)",
        "kind = CAST(x'720065' AS TEXT)",
        "body = ''",
        '"index" = 1000',
        '"index" = 0',
        '"index" = -5',
        '"index" = 9223372036854775807',
    ],
)
def test_an_edited_field(path: Path, row: int, change: str) -> None:
    edit(path, f'UPDATE entries SET {change} WHERE "index" = {row}')
    expect(path, row)


@pytest.mark.parametrize("column", ["time", "kind", "session", "body", "prev_hash", "hash"])
def test_a_null(path: Path, column: str) -> None:
    without_not_null(path, f'UPDATE entries SET {column} = NULL WHERE "index" = 3')
    expect(path, 3)


@pytest.mark.parametrize("change", ["body = body || ' '", '"index" = 99', "hash = NULL", "prev_hash = x'00'"])
def test_an_edited_last_row_also_stops_appends(path: Path, change: str) -> None:
    running = Ledger(path)
    without_not_null(path, f'UPDATE entries SET {change} WHERE "index" = {ROWS}')
    for use in (running.verify, running.head, lambda: running.append("reveal", {}), lambda: Ledger(path)):
        with pytest.raises(LedgerCorrupt, match=f"^row {ROWS} of "):
            use()


@pytest.mark.parametrize("row", range(1, ROWS))
def test_a_deleted_row(path: Path, row: int) -> None:
    edit(path, f'DELETE FROM entries WHERE "index" = {row}')
    expect(path, row)
    close_gap = f'UPDATE entries SET "index" = -"index" - 1 WHERE "index" < {-row}'
    edit(path, f'UPDATE entries SET "index" = -"index" WHERE "index" > {row}', close_gap)
    with pytest.raises(LedgerCorrupt, match=r"row \d+ of"):  # closing the gap does not help
        Ledger(path).verify()


def test_swapped_rows(path: Path) -> None:
    swap = ('UPDATE entries SET "index" = -1 WHERE "index" = 2', 'UPDATE entries SET "index" = 2 WHERE "index" = 3')
    edit(path, *swap, 'UPDATE entries SET "index" = 3 WHERE "index" = -1')
    expect(path, 2)


def test_an_inserted_row(path: Path) -> None:
    edit(path, 'INSERT INTO entries SELECT 0, time, kind, session, body, prev_hash, hash FROM entries WHERE "index" = 1')
    with pytest.raises(LedgerCorrupt, match="7 rows are stored, 6 can be reached"):
        Ledger(path).verify()


def test_a_rewritten_row_with_a_matching_hash_is_given_away_by_the_next(path: Path) -> None:
    edit(path, """UPDATE entries SET body = '{"i":9}' WHERE "index" = 3""")
    connection = sqlite3.connect(path, isolation_level=None)
    columns = '"index", time, kind, session, body, prev_hash'
    [row] = connection.execute(f'SELECT {columns} FROM entries WHERE "index" = 3').fetchall()
    connection.execute('UPDATE entries SET hash = ? WHERE "index" = 3', (entry_hash(*row),))
    connection.close()
    with pytest.raises(LedgerCorrupt, match=r"^row 4 of .*does not follow row 3"):
        Ledger(path).verify()


def test_a_chain_rewritten_as_a_whole_is_found_only_against_a_head(path: Path) -> None:
    noted, old = str(Ledger(path).head()), str(Ledger(path).entries()[1].head)
    edit(path, """UPDATE entries SET body = '{"i":9}' WHERE "index" = 3""")
    rehash_from(path, 3)
    assert Ledger(path).verify().rows == ROWS
    assert Ledger(path).verify(old).rows == ROWS  # that head says nothing about later rows
    expect(path, ROWS, noted)


MALFORMED = ['{"i": 9}', '{"i":1,"i":2}', "[]", '{"i":NaN}', '{"i":1e999}', '{"i":' + "[" * 99999, "{" + " " * 9, '{"b":1,"a":2}']


@pytest.mark.parametrize("body", MALFORMED, ids=lambda body: body[:12])
def test_a_malformed_body_with_matching_hashes(path: Path, body: str) -> None:
    edit(path, f"""UPDATE entries SET body = '{body}' WHERE "index" = 3""")
    rehash_from(path, 3)
    expect(path, 3)


@pytest.mark.parametrize("change", ["kind = 'Reveal'", "session = ''", "time = 'yesterday'"])
def test_a_malformed_field_with_matching_hashes(path: Path, change: str) -> None:
    edit(path, f'UPDATE entries SET {change} WHERE "index" = 3')
    rehash_from(path, 3)
    expect(path, 3)


@pytest.mark.parametrize("kept", range(ROWS))
def test_a_cut_chain(path: Path, kept: int) -> None:
    noted = str(Ledger(path).head())
    edit(path, f'DELETE FROM entries WHERE "index" > {kept}')
    assert Ledger(path).verify().rows == kept
    expect(path, ROWS, noted)
    Ledger(path).append("reveal", {})
    expect(path, ROWS, noted)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t BEFORE INSERT ON entries BEGIN SELECT RAISE(IGNORE); END",
        "CREATE TABLE more (x)",
        "CREATE INDEX i ON entries (kind)",
        "ALTER TABLE entries RENAME COLUMN body TO corpse",
        "ALTER TABLE entries ADD COLUMN more",
        "DROP TABLE entries",
        "DROP TABLE meta",
        "DELETE FROM meta",
        "INSERT INTO meta SELECT * FROM meta",
        "UPDATE meta SET ledger_id = replace(ledger_id, substr(ledger_id, 1, 1), 'x')",
        "UPDATE meta SET ledger_id = '00000000000000000000000000000000'",
        "UPDATE meta SET created = replace(created, '20', '19')",
        "UPDATE meta SET genesis = x'00'",
        "UPDATE meta SET genesis = upper(genesis) || 'x'",
        "PRAGMA user_version = 0",
        "PRAGMA user_version = -1",
    ],
)
def test_altered_tables_and_genesis(path: Path, statement: str) -> None:
    running = Ledger(path)
    edit(path, statement)
    for use in (lambda: Ledger(path), running.verify, running.head, running.entries, lambda: running.append("reveal", {})):
        with pytest.raises(LedgerCorrupt):
            use()


@pytest.mark.parametrize(
    ("statement", "message"), [("PRAGMA user_version = 2", r"is of format 2"), ("PRAGMA application_id = 1", "no privtensors")]
)
def test_another_version_or_another_file(path: Path, statement: str, message: str) -> None:
    edit(path, statement)
    with pytest.raises(LedgerError, match=message):
        Ledger(path)


def test_a_row_of_another_ledger(path: Path, tmp_path: Path) -> None:
    other = Ledger(tmp_path / "other.sqlite")
    other.append("reveal", {"i": 0, "label": "row-0"})
    take = "INSERT INTO entries SELECT * FROM other.entries"
    edit(path, f"ATTACH '{other.path}' AS other", 'DELETE FROM entries WHERE "index" = 1', take)
    with pytest.raises(LedgerCorrupt, match=r"^row 1 of .*does not follow the genesis"):
        Ledger(path).verify()


@pytest.mark.parametrize("size", [0, 1, 15, 16, 99, 100, 512, 4095, 4096, 4097, 8192, 8193])
def test_a_truncated_file(path: Path, size: int) -> None:
    content = path.read_bytes()
    assert size < len(content)
    path.write_bytes(content[:size])
    with pytest.raises(LedgerError):
        Ledger(path).verify()


@pytest.mark.parametrize("kept", [0, 100, 4096])
@pytest.mark.parametrize("filler", [b"\x00", b"\xff"])
def test_garbage(path: Path, kept: int, filler: bytes) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:kept] + filler * (len(content) - kept))
    with pytest.raises(LedgerError):
        Ledger(path).verify()


def test_a_damaged_definition_of_the_tables(path: Path) -> None:
    content = path.read_bytes()
    start, end = content.index(b"CREATE TABLE"), 4096
    for at in range(start, end, 3):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        with pytest.raises(LedgerError):  # SQLite quotes the damaged bytes in its message, which Python cannot decode
            Ledger(path).verify()


def test_the_encoding_is_the_documented_one() -> None:
    fields: list[str | bytes] = ["00" * 32, (7).to_bytes(8, "big"), "2026-01-02T03:04:05.000006Z", "reveal", "s", '{"a":1}']
    encoded = b"privtensors.ledger.entry/1\x00"
    for field in fields:
        raw = field.encode() if isinstance(field, str) else field
        encoded += len(raw).to_bytes(8, "big") + raw
    expected = hashlib.sha256(encoded).hexdigest()
    assert entry_hash(7, "2026-01-02T03:04:05.000006Z", "reveal", "s", '{"a":1}', "00" * 32) == expected
    # A change of the format breaks every ledger in the field, so it is pinned here.
    assert expected == "294862f1c09802007168e5329a5342e11b39ba3301912854f10c9bdd55b5af47"
