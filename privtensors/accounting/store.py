"""The SQLite file under a ledger: made atomically, opened per operation, its errors translated.

A connection lives for one operation. That costs a fraction of the disk flush of an append and makes threads, forks
and a file that is replaced under a running process unproblematic. The rollback journal is kept rather than WAL: a
ledger at rest is then one file that can be copied, checked and read from read-only media, and appends are so rare
(one per reveal) that WAL's speed buys nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from privtensors.accounting.chain import FORMAT, genesis_hash
from privtensors.accounting.entry import MAX_BODY_BYTES, Head, is_time
from privtensors.errors import LedgerCorrupt, LedgerError

if TYPE_CHECKING:
    import sqlite3

_APPLICATION_ID = 0x70744C67  # "ptLg": SQLite's own field for "whose file is this"
_ENTRIES = (
    'CREATE TABLE entries ("index" INTEGER PRIMARY KEY, time TEXT NOT NULL, kind TEXT NOT NULL, session TEXT NOT NULL, '
    "body TEXT NOT NULL, prev_hash TEXT NOT NULL, hash TEXT NOT NULL)"
)
_META = "CREATE TABLE meta (ledger_id TEXT NOT NULL, created TEXT NOT NULL, genesis TEXT NOT NULL)"
_SCHEMA = frozenset({("table", "entries", _ENTRIES), ("table", "meta", _META)})
_LEDGER_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Genesis:
    """The beginning of a chain: random ledger id (32 hex digits), time of creation and the hash that binds both."""

    ledger_id: str
    created: str
    hash: str

    @property
    def head(self) -> Head:
        """The head of a ledger without rows."""
        return Head(0, self.hash)


def create(path: Path, created: str) -> None:
    """Make an empty ledger at ``path``, readable and writable by its owner only; leave one that is already there.

    The file is finished under another name and then linked into place, so nobody ever sees half a ledger and an
    empty file is never taken for a new one.

    Raises:
        LedgerError: The directory or the file cannot be made.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    ledger_id = secrets.token_hex(16)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        try:
            with _connected(temporary, 0.0) as connection, translated(path):
                connection.execute("BEGIN IMMEDIATE")
                connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {FORMAT}")
                connection.execute(_ENTRIES)
                connection.execute(_META)
                connection.execute("INSERT INTO meta VALUES (?, ?, ?)", (ledger_id, created, genesis_hash(ledger_id, created)))
                connection.execute("COMMIT")
            with contextlib.suppress(FileExistsError):  # another process was first: theirs is the ledger
                os.link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_directory(path.parent)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise LedgerError(
            f"it cannot be created ({reason})", where=str(path), fix="Choose a path you may write on a local disk with hard links"
        ) from error


@contextlib.contextmanager
def opened(path: Path, timeout: float) -> Iterator[tuple[sqlite3.Connection, Genesis]]:
    """A connection to the ledger at ``path`` and its checked genesis; never creates a file.

    Args:
        path: The ledger file.
        timeout: Seconds to wait for another process.

    Raises:
        LedgerCorrupt: The file is damaged, or its tables or its genesis were altered.
        LedgerError: It does not exist, cannot be opened, is locked, is no ledger, or is of a newer version.
    """
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError as error:
        raise LedgerError("there is no ledger", where=str(path), fix="Check the path, --ledger and PRIVTENSORS_LEDGER") from error
    except OSError as error:
        raise LedgerError(f"it cannot be opened ({error.strerror})", where=str(path), fix="Check the path and its permissions") from error
    if not regular:  # opening a pipe would hang
        raise LedgerError("it is not a regular file", where=str(path), fix="Give the path of a ledger file")
    with _connected(path, timeout) as connection:
        with translated(path):
            genesis = _read_genesis(connection, path)
        yield connection, genesis


@contextlib.contextmanager
def translated(path: Path, row: int | None = None) -> Iterator[None]:
    """Turn every error of SQLite into a LedgerError, or a LedgerCorrupt that names ``row`` where one is given."""
    import sqlite3

    try:
        yield
    except (sqlite3.Error, sqlite3.Warning, MemoryError, UnicodeDecodeError) as error:  # the last: bytes of a damaged file in a message
        raise _explain(error, path, row) from error


@contextlib.contextmanager
def _connected(path: Path, timeout: float) -> Iterator[sqlite3.Connection]:
    import sqlite3

    with translated(path):
        # mode=rw: never create, but do roll back what a crash left behind. A write-protected file is opened for reading.
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=timeout, isolation_level=None)
    try:
        with translated(path):
            # Text stays apart from blobs, and invalid UTF-8 becomes a value that is then found out, not a crash.
            connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 4 * MAX_BODY_BYTES)
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA cell_size_check = ON")
            # FULL, and the directory is flushed too: without that a power cut could bring the journal back and undo a commit.
            connection.execute("PRAGMA synchronous = EXTRA")
        yield connection
    finally:
        connection.close()


def _read_genesis(connection: sqlite3.Connection, path: Path) -> Genesis:
    [(application,)] = connection.execute("PRAGMA application_id").fetchall()
    if application != _APPLICATION_ID:
        raise LedgerError("it is no privtensors ledger", where=str(path), fix="Give the path of a ledger file")
    [(version,)] = connection.execute("PRAGMA user_version").fetchall()
    if version > FORMAT:
        raise LedgerError(f"it is of format {version}, this privtensors reads {FORMAT}", where=str(path), fix="Update privtensors")
    schema = connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
    # Exact: a trigger or a view in place of a table could swallow appends.
    if version != FORMAT or len(schema) != len(_SCHEMA) or set(schema) != _SCHEMA:
        raise _altered("its tables were altered", path)
    rows = connection.execute("SELECT ledger_id, created, genesis FROM meta LIMIT 2").fetchall()
    if len(rows) != 1 or not all(isinstance(value, str) for value in rows[0]):
        raise _altered("its genesis is malformed", path)
    genesis = Genesis(*rows[0])
    well_formed = _LEDGER_ID.fullmatch(genesis.ledger_id) and is_time(genesis.created)
    if not well_formed or genesis_hash(genesis.ledger_id, genesis.created) != genesis.hash:
        raise _altered("its genesis (row 0) was edited", path)
    return genesis


def _altered(what: str, path: Path) -> LedgerCorrupt:
    return LedgerCorrupt(what, where=str(path), fix="Keep the file as evidence and go back to a copy whose head you know")


def _explain(error: Exception, path: Path, row: int | None) -> LedgerError:
    import sqlite3

    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    name = getattr(error, "sqlite_errorname", None) or type(error).__name__
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return LedgerError(f"another process keeps it locked ({name})", where=str(path), fix="Try again, or end the process that holds it")
    unwritable = (
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_AUTH,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_NOLFS,
    )
    if code in unwritable:
        return LedgerError(f"it cannot be opened or written ({name})", where=str(path), fix="Check permissions and free space")
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_PROTOCOL):
        return LedgerError(f"it could not be read or written ({name})", where=str(path), fix="Check the disk and try again")
    if isinstance(error, MemoryError):
        return LedgerError("out of memory", where=str(path), fix="Free memory and try again")
    # Our statements are fixed and the tables were checked, so anything else means that the file is damaged.
    where = str(path) if row is None else f"row {row} of {path}"
    return LedgerCorrupt(f"the file is damaged or no ledger ({name})", where=where, fix="Go back to a copy whose head you know")


def _sync_directory(directory: Path) -> None:
    if os.name != "posix":  # elsewhere a directory cannot be opened, and the name is durable with the file
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
