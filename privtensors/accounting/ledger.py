"""The ledger: one append-only, hash-chained SQLite file that every reveal is written to before it happens."""

from __future__ import annotations

import contextlib
import operator
import os
import secrets
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from privtensors.accounting import chain, store
from privtensors.accounting.book import Book
from privtensors.accounting.entry import Entry, Head, JsonValue, Snapshot, Verification, canonical_json, check_kind, check_session
from privtensors.errors import InvalidInput, LedgerCorrupt, LedgerError

if TYPE_CHECKING:
    import sqlite3

    from privtensors.core.recorder import Disclosure

_COLUMNS = '"index", time, kind, session, body, prev_hash, hash'
_CHUNK = 1024  # rows read under one lock while verifying: a writer waits for milliseconds, not for the whole walk


def default_path() -> Path:
    """Where the ledger is: the environment variable ``PRIVTENSORS_LEDGER``, or ``ledger.sqlite`` in the user's data directory."""
    named = os.environ.get("PRIVTENSORS_LEDGER")
    if named:
        return Path(named).expanduser()
    from platformdirs import user_data_dir

    return Path(user_data_dir("privtensors", appauthor=False)) / "ledger.sqlite"


class Transaction:
    """Exclusive use of a ledger: what is read here is still true when what is appended here is committed.

    Made by :meth:`Ledger.transaction`; admission under a budget reads the events and reserves within one.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path, head: Head, session: str) -> None:
        self._connection, self._path, self._session = connection, path, session
        self._ended = False
        self.head = head

    def append(self, kind: str, body: Mapping[str, JsonValue]) -> Entry:
        """Add a row; it exists once the transaction has ended without an exception. Errors as :meth:`Ledger.append`."""
        entry = chain.next_entry(self.head, _now(), check_kind(kind), self._session, canonical_json(body))
        self._check_open()
        row = (entry.index, entry.time, entry.kind, entry.session, entry.body_json, entry.prev_hash, entry.hash)
        with store.translated(self._path):
            self._connection.execute(f"INSERT INTO entries ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        self.head = entry.head
        return entry

    def entries(
        self, *, limit: int | None = None, session: str | None = None, kind: str | None = None, after: int = 0
    ) -> tuple[Entry, ...]:
        """As :meth:`Ledger.entries`, including what was appended in this transaction."""
        self._check_open()
        return _select(self._connection, self._path, limit, session, kind, after)

    def _check_open(self) -> None:
        # SQLite ends a transaction by itself after some write errors; going on would leave a gap in the chain.
        if self._ended or not self._connection.in_transaction:
            raise LedgerError("the transaction has ended", where=str(self._path), fix="Begin another one")


class Ledger:
    """An append-only, hash-chained ledger in one SQLite file; implements ``core.recorder.Recorder``.

    Safe for several threads and processes on a local disk. Edits of a row are found by :meth:`verify`; whoever may
    write the file can still rewrite the whole chain or cut its end, which is found only against a head that was kept
    elsewhere. Guarantee class: computational (collision resistance of SHA-256) given such a head; none without one.

    Args:
        path: The file; by default :func:`default_path`. It is made, for its owner only, if it does not exist.
        session: Id written to every row of this object; random by default.
        create: False refuses a path without a ledger instead of making one.
        timeout: Seconds to wait while another process writes.

    Raises:
        LedgerCorrupt: The file is damaged or was altered.
        LedgerError: It cannot be made or opened, is locked, is no ledger, or is of a newer version.
        InvalidInput: The session id is malformed.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, session: str | None = None, create: bool = True, timeout: float = 10.0
    ) -> None:
        self.session = check_session(session if session is not None else secrets.token_hex(8))
        self._timeout = timeout
        self._closed = False
        self._lock = threading.Lock()  # guards _seen only
        try:
            self.path = (Path(path).expanduser() if path is not None else default_path()).resolve()
            missing = not self.path.exists()
        except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL byte, no home directory
            raise LedgerError(f"not a usable path ({type(error).__name__})", where="ledger", fix="Choose another path") from error
        if create and missing:
            store.create(self.path, _now())
        with store.opened(self.path, timeout) as (connection, genesis):
            self.ledger_id = genesis.ledger_id
            self._seen = _read_head(connection, self.path, genesis.head)

    def record(self, disclosure: Disclosure) -> None:
        """Write one reveal durably, or raise, and then the reveal must not happen. Errors as :meth:`append`."""
        try:
            shape = [operator.index(size) for size in disclosure.shape]
            details = [[name, value] for name, value in disclosure.details]
        except (TypeError, ValueError) as error:
            raise InvalidInput("its shape or its details are malformed", where="disclosure", fix="Give integers, pairs of text") from error
        body: dict[str, JsonValue] = {
            "backend": disclosure.backend,
            "shape": shape,
            "dtype": disclosure.dtype,
            "receiver": disclosure.receiver,
            "label": disclosure.label,
            "simulated": disclosure.simulated,
            "guarantee": disclosure.guarantee,
            "details": details,
        }
        self.append("reveal", body)

    def append(self, kind: str, body: Mapping[str, JsonValue]) -> Entry:
        """Add one row; it is on the disk when this returns.

        Args:
            kind: Dotted lower-case identifier of what happened.
            body: Public facts; JSON values only.

        Raises:
            InvalidInput: ``kind`` or ``body`` is malformed.
            LedgerCorrupt: The last row, or the last row this object has seen, is not what it was.
            LedgerError: The row cannot be written: locked, read-only, full, gone, replaced or closed.
        """
        with self.transaction() as transaction:
            return transaction.append(kind, body)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Exclusive use of the ledger for reading and appending: all rows are written at the end, or none.

        An exception inside writes nothing. Other writers wait, this object's other methods included: keep it short.
        Errors as :meth:`append`.
        """
        with self._open() as (connection, genesis):
            with store.translated(self.path):
                connection.execute("BEGIN IMMEDIATE")  # the write lock first, so that the head cannot move under us
            head = self._current_head(connection, genesis)
            transaction = Transaction(connection, self.path, head, self.session)
            try:
                yield transaction  # on an exception the connection is closed, which rolls back
                transaction._check_open()
            finally:
                transaction._ended = True
            with store.translated(self.path):
                connection.execute("COMMIT")
            self._note(transaction.head)

    def head(self) -> Head:
        """Index and hash of the last row; index 0 and the genesis hash when there is none. Errors as :meth:`append`."""
        with self._open() as (connection, genesis):
            return self._current_head(connection, genesis)

    def entries(
        self, *, limit: int | None = None, session: str | None = None, kind: str | None = None, after: int = 0
    ) -> tuple[Entry, ...]:
        """The newest ``limit`` rows (all by default) in the order of the chain, each with its own hash checked.

        Args:
            limit: At most so many rows, at least 1.
            session: Only rows of this session id.
            kind: Only rows of this kind, or of every kind below it: ``"budget."`` with the dot finds ``"budget.reserve"``.
            after: Only rows with a larger index.

        Raises:
            InvalidInput: ``limit`` is below 1.
            LedgerCorrupt: A row is malformed or was edited. The links between rows are checked by :meth:`verify` only.
            LedgerError: The ledger cannot be read.
        """
        with self._open() as (connection, _):
            return _select(connection, self.path, limit, session, kind, after)

    def verify(self, head: str | Head | None = None) -> Verification:
        """Check every row, every link, the bookkeeping of budgets and the file itself.

        Args:
            head: A head kept elsewhere. A ledger that has grown since is fine if the row at that index has that hash.

        Raises:
            LedgerCorrupt: The chain does not hold; the message names the first bad row. With ``head``, also when the
                chain was cut before that row or rewritten up to it.
            LedgerError: The ledger cannot be read.
            InvalidInput: ``head`` is malformed.
        """
        against = Head.parse(head) if isinstance(head, str) else head
        genesis, last, _ = self._verified(against, keep=False)
        return Verification(genesis.ledger_id, last.index, last, against)

    def snapshot(self) -> Snapshot:
        """Every row in the order of the chain, verified, and what it takes to verify them elsewhere. Errors as :meth:`verify`."""
        genesis, _, entries = self._verified(None, keep=True)
        return Snapshot(genesis.ledger_id, genesis.created, genesis.hash, tuple(entries))

    def _verified(self, against: Head | None, *, keep: bool) -> tuple[store.Genesis, Head, list[Entry]]:
        with self._lock:
            seen = self._seen
        found: set[Head] = set()
        entries: list[Entry] = []
        with self._open() as (connection, genesis):
            last = genesis.head
            found.update({last} & {seen, against})
            book = Book(str(self.path))
            for entry in _walk(connection, self.path, last):
                book.apply(entry)  # what hashes cannot see: a settlement of nothing, or of more than was reserved
                last = entry.head
                if keep:
                    entries.append(entry)
                if last in (seen, against):
                    found.add(last)
            with store.translated(self.path):  # what the walk cannot see: overlapping pages, a broken tree
                problems = connection.execute("PRAGMA quick_check(1)").fetchall()
        if problems != [("ok",)]:
            raise LedgerCorrupt("every row can be read, but the file is damaged", where=str(self.path), fix="Go back to a copy")
        for expected, origin in ((against, "the given head"), (seen, "this process")):
            if expected is not None and expected not in found:
                raise chain.not_found(expected, last, origin, str(self.path))
        self._note(last)
        return genesis, last, entries

    def close(self) -> None:
        """Refuse further use. Nothing is open between operations, so there is nothing else to release."""
        self._closed = True

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Ledger({str(self.path)!r}, ledger_id={self.ledger_id!r}, session={self.session!r})"

    @contextlib.contextmanager
    def _open(self) -> Iterator[tuple[sqlite3.Connection, store.Genesis]]:
        if self._closed:
            raise LedgerError("it is closed", where=str(self.path), fix="Open it again")
        with store.opened(self.path, self._timeout) as (connection, genesis):
            if genesis.ledger_id != self.ledger_id:
                raise LedgerError("it was replaced by another ledger", where=str(self.path), fix="Put the file back, or open the new one")
            yield connection, genesis

    def _current_head(self, connection: sqlite3.Connection, genesis: store.Genesis) -> Head:
        head = _read_head(connection, self.path, genesis.head)
        with self._lock:
            seen = self._seen
        if seen.index and seen != head:  # a chain that was cut or rewritten while we run must not be continued
            with store.translated(self.path, seen.index):
                rows = connection.execute('SELECT hash FROM entries WHERE "index" = ?', (seen.index,)).fetchall()
            if rows != [(seen.hash,)]:
                raise chain.not_found(seen, head, "this process", str(self.path))
        self._note(head)
        return head

    def _note(self, head: Head) -> None:
        with self._lock:
            if head.index > self._seen.index:
                self._seen = head


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _read_head(connection: sqlite3.Connection, path: Path, genesis: Head) -> Head:
    """Head of the chain by its last row, that row's own hash checked."""
    try:
        with store.translated(path):
            rows = connection.execute(f'SELECT {_COLUMNS} FROM entries ORDER BY "index" DESC LIMIT 1').fetchall()
        return chain.read_row(rows[0], f"row {rows[0][0]} of {path}").head if rows else genesis
    except LedgerCorrupt:
        with store.translated(path):
            connection.rollback()
        for _ in _walk(connection, path, genesis):  # a moved row is last by its new index: name the row where the chain breaks
            pass
        raise


def _select(
    connection: sqlite3.Connection, path: Path, limit: int | None, session: str | None, kind: str | None, after: int
) -> tuple[Entry, ...]:
    if limit is not None and limit < 1:
        raise InvalidInput(f"limit is {limit}", where="ledger entries", fix="Ask for at least one row")
    if type(after) is not int or not 0 <= after < 2**62:
        raise InvalidInput("after is no index of a row", where="ledger entries", fix="Give 0 or the index of a row")
    query = (
        f"SELECT {_COLUMNS} FROM entries WHERE (?1 IS NULL OR session = ?1) AND "
        "(?2 IS NULL OR kind = ?2 OR (substr(?2, -1) = '.' AND substr(kind, 1, length(?2)) = ?2)) "
        'AND "index" > ?4 ORDER BY "index" DESC LIMIT ?3'
    )
    with store.translated(path):
        rows = connection.execute(query, (session, kind, -1 if limit is None else min(limit, 2**62), after)).fetchall()
    return tuple(chain.read_row(row, f"row {row[0]} of {path}") for row in reversed(rows))


def _walk(connection: sqlite3.Connection, path: Path, head: Head) -> Iterator[Entry]:
    """Every row after ``head``, checked; rows that are appended meanwhile are included."""
    complete = False
    while not complete:
        with store.translated(path):
            connection.execute("BEGIN")
        number = 0
        for entry in _checked_chunk(connection, path, head):
            head, number = entry.head, number + 1
            yield entry
        complete = number < _CHUNK
        with store.translated(path):
            if complete:  # in the snapshot of the last rows: whatever the search by index did not reach
                [(total,)] = connection.execute("SELECT count(*) FROM entries").fetchall()
                if total != head.index:
                    where = f"row {head.index + 1} of {path}"
                    raise LedgerCorrupt(f"{total} rows are stored, {head.index} can be reached", where=where, fix="Go back to a copy")
            connection.execute("ROLLBACK")


def _checked_chunk(connection: sqlite3.Connection, path: Path, head: Head) -> Iterator[Entry]:
    with store.translated(path, head.index + 1):
        rows = connection.execute(f'SELECT {_COLUMNS} FROM entries WHERE "index" > ? ORDER BY "index" LIMIT {_CHUNK}', (head.index,))
    with contextlib.closing(rows):  # an open cursor would keep the file locked for as long as an exception is kept
        while True:
            with store.translated(path, head.index + 1):
                row = rows.fetchone()
            if row is None:
                return
            where = f"row {head.index + 1} of {path}"
            chain.check_index(row[0], head.index + 1, where)
            entry = chain.read_row(row, where)
            chain.check_follows(entry, head, where)
            head = entry.head
            yield entry
