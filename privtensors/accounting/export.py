"""A ledger as text: one canonical JSON that can be verified anywhere, and rows for tables and notebooks.

The canonical JSON holds each row's body as the very text that was hashed, so that whoever checks it needs SHA-256 and the
rule in the ledger guide and no JSON writer that agrees with ours.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from privtensors.accounting import chain
from privtensors.accounting.book import RESERVE, SET, Book
from privtensors.accounting.entry import Entry, Head, Snapshot, Verification, is_time
from privtensors.errors import LedgerCorrupt, LedgerError

FORMAT = "privtensors.ledger/1"
FORMATS = ("json", "jsonl", "csv")

_MAX_BYTES = 1 << 30
_FIELDS = ("index", "time", "kind", "session", "body", "prev_hash", "hash")
_TOP = ("format", "ledger_id", "created", "genesis", "rows", "head")
_CSV = ("index", "time", "kind", "session", "dataset", "unit", "technique", "receiver", "label", "body", "prev_hash", "hash")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would compute


def to_text(snapshot: Snapshot, format: str) -> Iterator[str]:
    """The ledger in pieces that end with line breaks.

    Args:
        snapshot: From :meth:`privtensors.accounting.Ledger.snapshot`.
        format: ``"json"``, which :func:`verify_export` checks; ``"jsonl"``, one row per line with its body as an object;
            ``"csv"``, one row per line with the fields people look for in columns of their own.

    Raises:
        LedgerError: An unknown format.
    """
    if format == "json":
        return _json(snapshot)
    if format == "jsonl":
        return (json.dumps({**_row(entry), "body": entry.body}) + "\n" for entry in snapshot.entries)
    if format == "csv":
        return _csv(snapshot)
    raise LedgerError(f"there is no format {format!r}", where="ledger export", fix=f"Choose one of {', '.join(FORMATS)}")


def verify_export(path: str | os.PathLike[str], head: str | Head | None = None) -> Verification:
    """Check an export in the format ``"json"`` as :meth:`privtensors.accounting.Ledger.verify` checks a ledger.

    Args:
        path: The file. It may come from anywhere.
        head: A head kept elsewhere.

    Raises:
        LedgerCorrupt: The chain or the bookkeeping of budgets does not hold, or it does not hold ``head``.
        LedgerError: The file cannot be read or is no export.
        InvalidInput: ``head`` is malformed.
    """
    against = Head.parse(head) if isinstance(head, str) else head
    where = str(path)
    found = _load(Path(path), where)
    genesis = chain.genesis_hash(found["ledger_id"], found["created"])
    if not is_time(found["created"]) or genesis != found["genesis"]:
        raise LedgerCorrupt("its genesis was edited", where=where, fix="Export it again from a ledger that verifies")
    last, book, holds = Head(0, genesis), Book(where), against is None
    holds = holds or last == against
    for row in found["rows"]:
        here = f"row {last.index + 1} of {where}"
        if not isinstance(row, dict) or set(row) != set(_FIELDS):
            raise LedgerCorrupt("it does not have exactly the fields of a row", where=here, fix="Export it again")
        chain.check_index(row["index"], last.index + 1, here)
        entry = chain.read_row([row[name] for name in _FIELDS], here)
        chain.check_follows(entry, last, here)
        book.apply(entry)
        last = entry.head
        holds = holds or last == against
    if str(last) != found["head"]:
        raise LedgerCorrupt("its rows do not end at its head", where=where, fix="Export it again from a ledger that verifies")
    if against is not None and not holds:
        raise chain.not_found(against, last, "the given head", where)
    return Verification(found["ledger_id"], last.index, last, against)


def _json(snapshot: Snapshot) -> Iterator[str]:
    # Sorted keys, no blanks, ASCII; one row per line, so that two exports can be compared by eye.
    def text(value: object) -> str:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)

    yield f'{{"created":{text(snapshot.created)},"format":{text(FORMAT)},"genesis":{text(snapshot.genesis)},'
    yield f'"head":{text(str(snapshot.head))},"ledger_id":{text(snapshot.ledger_id)},"rows":[\n'
    for entry in snapshot.entries:
        yield text(_row(entry)) + (",\n" if entry.index < snapshot.head.index else "\n")
    yield "]}\n"


def _row(entry: Entry) -> dict[str, Any]:
    values = (entry.index, entry.time, entry.kind, entry.session, entry.body_json, entry.prev_hash, entry.hash)
    return dict(zip(_FIELDS, values, strict=True))


def _csv(snapshot: Snapshot) -> Iterator[str]:
    line = io.StringIO()
    writer = csv.writer(line, lineterminator="\n")
    for values in (_CSV, *map(_cells, snapshot.entries)):
        writer.writerow(values)
        yield line.getvalue()
        line.seek(0)
        line.truncate()


def _cells(entry: Entry) -> tuple[object, ...]:
    body = entry.body
    release = body.get("release") if entry.kind == RESERVE else body if entry.kind == SET else None
    account: Any = release.get("account") if isinstance(release, dict) else None
    named = {**(release if isinstance(release, dict) else {}), **body, **(account if isinstance(account, dict) else {})}
    texts = (str(named.get(name) or "") for name in ("dataset", "unit", "technique", "receiver", "label"))
    safe = ("'" + text if text.startswith(_FORMULA) else text for text in texts)
    return (entry.index, entry.time, entry.kind, entry.session, *safe, entry.body_json, entry.prev_hash, entry.hash)


def _load(path: Path, where: str) -> dict[str, Any]:
    try:
        if not path.is_file():
            raise LedgerError("there is no such file", where=where, fix="Give the path of an export")
        if path.stat().st_size > _MAX_BYTES:
            raise LedgerError("it is too large for an export", where=where, fix="Give the path of an export")
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise LedgerError(f"it cannot be read ({error.strerror})", where=where, fix="Check the path and its permissions") from error
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, numbers of thousands of digits
        raise _no_export(where) from error
    if not isinstance(found, dict) or set(found) != set(_TOP) or found["format"] != FORMAT:
        raise _no_export(where)
    if not isinstance(found["rows"], list) or not all(isinstance(found[name], str) for name in _TOP if name != "rows"):
        raise _no_export(where)
    try:
        f"{found['ledger_id']}{found['created']}".encode()
    except UnicodeEncodeError as error:
        raise _no_export(where) from error
    return found


def _no_export(where: str) -> LedgerError:
    return LedgerError("it is no ledger export in the format json", where=where, fix="Make one with `privtensors ledger export`")
