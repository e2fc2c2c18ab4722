"""The hash chain: what exactly is hashed, and whether a row is well formed and follows the row before it.

Every hash is SHA-256 over a domain tag with a format version, followed by fields that are each preceded by their
length (8 bytes, big endian), so that no two different rows have one encoding. The genesis binds the ledger's random
id, and each row binds the hash before it: rows cannot be moved between ledgers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from privtensors.accounting.entry import Entry, Head, check_kind, check_session, is_canonical_object, is_hash, is_time
from privtensors.errors import InvalidInput, LedgerCorrupt

FORMAT = 1
"""Version of the row encoding and of the table layout; bound into every hash."""

_GENESIS_TAG = b"privtensors.ledger.genesis/1\x00"
_ENTRY_TAG = b"privtensors.ledger.entry/1\x00"
_TEXT_FIELDS = ("time", "kind", "session", "body", "prev_hash", "hash")


def genesis_hash(ledger_id: str, created: str) -> str:
    """Hash that the first row follows: binds the ledger's random id and the time of its creation."""
    return _digest(_GENESIS_TAG, (ledger_id.encode(), created.encode()))


def entry_hash(index: int, time: str, kind: str, session: str, body_json: str, prev_hash: str) -> str:
    """Hash of one row over every field but the hash itself, as 64 hex digits."""
    fields = (prev_hash.encode(), index.to_bytes(8, "big", signed=True), time.encode(), kind.encode(), session.encode(), body_json.encode())
    return _digest(_ENTRY_TAG, fields)


def next_entry(head: Head, time: str, kind: str, session: str, body_json: str) -> Entry:
    """The row that follows ``head``."""
    index = head.index + 1
    return Entry(index, time, kind, session, body_json, head.hash, entry_hash(index, time, kind, session, body_json, head.hash))


def read_row(row: Sequence[object], where: str) -> Entry:
    """The entry that a database row holds, its own hash checked.

    Args:
        row: index, time, kind, session, body, prev_hash, hash, as SQLite gave them. SQLite's types are per value, so
            any of them may be of any type in an edited file.
        where: Name of the row for the message.

    Raises:
        LedgerCorrupt: A field is of a wrong type or form, or the hash is not the hash of the other fields.
    """
    index, *rest = row
    if type(index) is not int:
        raise _corrupt(f"its index is a {type(index).__name__}", where)
    texts: list[str] = []
    for name, value in zip(_TEXT_FIELDS, rest, strict=True):
        if not isinstance(value, str) or not _encodable(value):
            raise _corrupt(f"its {name} is no text", where)
        texts.append(value)
    time, kind, session, body, prev_hash, stored = texts
    if entry_hash(index, time, kind, session, body, prev_hash) != stored:
        raise _corrupt("it was edited: its hash is not the hash of its fields", where)
    # What follows can only fail on a row that was written with a matching hash by something else than this package.
    if not (is_time(time) and is_hash(prev_hash) and is_canonical_object(body)):
        raise _corrupt("its time, previous hash or body is malformed", where)
    try:
        check_kind(kind)
        check_session(session)
    except InvalidInput as error:
        raise _corrupt("its kind or session is malformed", where) from error
    return Entry(index, time, kind, session, body, prev_hash, stored)


def check_follows(entry: Entry, head: Head, where: str) -> None:
    """Raise LedgerCorrupt unless ``entry`` is the row that follows ``head``."""
    if entry.prev_hash != head.hash:
        before = f"row {head.index}" if head.index else "the genesis"
        raise _corrupt(f"it does not follow {before}: one of the two was rewritten, inserted or moved", where)


def check_index(index: object, expected: int, where: str) -> None:
    """Raise LedgerCorrupt unless a row's index is the next one; ``where`` names the row that is expected."""
    if type(index) is int and index != expected:
        raise _corrupt(f"it is missing: the next row says it is row {index}", where)


def not_found(expected: Head, last: Head, origin: str, where: str) -> LedgerCorrupt:
    """The error for a chain that ends at ``last`` and does not hold ``expected``, which ``origin`` knows."""
    if expected.index > last.index:
        what = f"it is missing: {origin} knows row {expected.index}, but the chain ends at row {last.index} (cut, or an old copy)"
    else:
        what = f"it is not the row that {origin} knows (rewritten, or another ledger)"
    return LedgerCorrupt(what, where=f"row {expected.index} of {where}", fix="Go back to a copy that holds against that head")


def _corrupt(what: str, where: str) -> LedgerCorrupt:
    return LedgerCorrupt(what, where=where, fix="Keep the file as evidence and go back to a copy whose head you know")


def _encodable(text: str) -> bool:
    # Invalid UTF-8 arrives as lone surrogates (see store.py), which cannot be encoded again.
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _digest(tag: bytes, fields: Iterable[bytes]) -> str:
    state = hashlib.sha256(tag)
    for field in fields:
        state.update(len(field).to_bytes(8, "big"))
        state.update(field)
    return state.hexdigest()
