"""What a ledger holds: entries, heads and the verdict of a verification, all plain frozen data."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from privtensors.errors import InvalidInput

JsonValue: TypeAlias = "bool | int | float | str | Sequence[JsonValue] | Mapping[str, JsonValue] | None"

# Entries are facts about releases, not data; both limits are far above any of ours and keep a slip (a tensor turned
# into a list) out of the ledger.
MAX_BODY_BYTES = 1 << 20
MAX_DEPTH = 32

_KIND = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*")
_SESSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z")
_HASH = re.compile(r"[0-9a-f]{64}")
_HEAD = re.compile(r"([0-9]{1,19}):([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Head:
    """Where a chain ends: enough, kept elsewhere, to detect that the chain was rewritten or cut.

    Attributes:
        index: Index of the last row; 0 for a ledger without rows.
        hash: Its SHA-256, 64 lower-case hex digits; of an empty ledger, the hash of its genesis.
    """

    index: int
    hash: str

    def __str__(self) -> str:
        return f"{self.index}:{self.hash}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """Read ``"12:ab34…"``: an index and all 64 hex digits.

        Raises:
            InvalidInput: The text is not such a head.
        """
        match = _HEAD.fullmatch(text.strip().lower())
        if match is None:
            raise InvalidInput("not a ledger head", where="head", fix="Give INDEX:HASH with all 64 hex digits, as `ledger show` prints it")
        return cls(int(match[1]), match[2])


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of a ledger.

    Attributes:
        index: Position in the chain; the first row is 1.
        time: When it was written by the writer's clock: UTC, ISO 8601, microseconds, ``Z``. The chain orders rows, the clock does not.
        kind: What happened, e.g. ``"reveal"``; a dotted lower-case identifier.
        session: Id of the :class:`~privtensors.accounting.Ledger` object that wrote it.
        body_json: The facts, as canonical JSON (sorted keys, no blanks, ASCII).
        prev_hash: Hash of the row before it, or of the genesis.
        hash: SHA-256 over all of the above, 64 hex digits.
    """

    index: int
    time: str
    kind: str
    session: str
    body_json: str
    prev_hash: str
    hash: str

    @property
    def body(self) -> dict[str, Any]:
        """The facts, parsed afresh: changing the result changes no entry."""
        value: dict[str, Any] = json.loads(self.body_json)
        return value

    @property
    def head(self) -> Head:
        """The head of a chain that ends with this row."""
        return Head(self.index, self.hash)


@dataclass(frozen=True, slots=True)
class Verification:
    """A chain that holds.

    Attributes:
        ledger_id: Random id of the ledger, bound into every hash.
        rows: Number of rows, all of them checked.
        head: The head that was reached.
        against: The head kept elsewhere that the chain was held against, if any.
    """

    ledger_id: str
    rows: int
    head: Head
    against: Head | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A whole ledger as it was at one time, outside its file.

    Attributes:
        ledger_id: Random id of the ledger.
        created: When it was made.
        genesis: The hash that binds both, which the first row follows.
        entries: Every row in the order of the chain.
    """

    ledger_id: str
    created: str
    genesis: str
    entries: tuple[Entry, ...]

    @property
    def head(self) -> Head:
        """Where the chain ends."""
        return self.entries[-1].head if self.entries else Head(0, self.genesis)


def canonical_json(body: Mapping[str, JsonValue]) -> str:
    """The one JSON text of ``body``: sorted keys, no blanks, ASCII only.

    Raises:
        InvalidInput: A key is not text, a value is not JSON (NaN and infinity included), or the whole is too deep or too long.
    """
    if not isinstance(body, Mapping):
        raise InvalidInput(f"the body is a {type(body).__name__}", where="ledger entry", fix="Give a mapping of text to JSON values")
    try:
        text = json.dumps(_plain(body, "body", 0), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except ValueError as error:  # NaN, infinity, an integer of thousands of digits
        raise InvalidInput("the body holds a number that JSON cannot hold", where="ledger entry", fix="Store it as text") from error
    if len(text) > MAX_BODY_BYTES:
        raise InvalidInput(f"the body has {len(text)} bytes, the limit is {MAX_BODY_BYTES}", where="ledger entry", fix="Store a summary")
    return text


def is_canonical_object(text: str) -> bool:
    """Whether ``text`` is what :func:`canonical_json` writes for some mapping."""
    try:
        value = json.loads(text)
        return isinstance(value, dict) and canonical_json(value) == text
    except (ValueError, RecursionError, InvalidInput):
        return False


def check_kind(kind: str) -> str:
    """``kind``, or InvalidInput unless it is a dotted lower-case identifier of at most 64 characters."""
    if not (isinstance(kind, str) and len(kind) <= 64 and _KIND.fullmatch(kind)):
        raise InvalidInput("not an entry kind", where="ledger entry", fix="Use lower-case identifiers joined by dots, e.g. 'dp.reserve'")
    return kind


def check_session(session: str) -> str:
    """``session``, or InvalidInput unless it is 1 to 128 letters, digits and ``. _ : -``."""
    if not (isinstance(session, str) and _SESSION.fullmatch(session)):
        raise InvalidInput("not a session id", where="ledger", fix="Use 1 to 128 letters, digits and . _ : -")
    return session


def is_time(text: str) -> bool:
    """Whether ``text`` has the form of :attr:`Entry.time`."""
    return _TIME.fullmatch(text) is not None


def is_hash(text: str) -> bool:
    """Whether ``text`` is a SHA-256 in lower-case hex."""
    return _HASH.fullmatch(text) is not None


def _plain(value: object, where: str, depth: int) -> object:
    """``value`` with tuples as lists and mappings as dicts; raises on what JSON would coerce or refuse."""
    if depth > MAX_DEPTH:
        raise InvalidInput(f"nested deeper than {MAX_DEPTH}", where=f"ledger entry, {where[:80]}", fix="Flatten it")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (dict, Mapping)):  # dict first: asking an abstract class is slow
        if not all(isinstance(key, str) for key in value):  # json would turn 1 and "1" into one key
            raise InvalidInput("a key is not text", where=f"ledger entry, {where[:80]}", fix="Use text keys")
        return {key: _plain(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    raise InvalidInput(f"a {type(value).__name__} is not a JSON value", where=f"ledger entry, {where[:80]}", fix="Use text, numbers, lists")
