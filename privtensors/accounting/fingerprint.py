"""Keyed fingerprints of data sets: the same data is recognised under another name, and nobody without the key learns more.

A fingerprint is a MAC (HMAC-SHA256) over the number of records and the sum, modulo 2^256, of each record's MAC: a multiset
hash (Clarke et al. 2003), so the order of the records does not matter and how often each occurs does. Without the key it
tells two ledgers' readers nothing about the data, not even whether a guessed data set is the one; whoever holds the key can
test guesses, so the key stays in the user's data directory. Guarantee class: computational (HMAC as a pseudorandom function).
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import stat
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from privtensors.errors import AccountingError, InvalidInput, PrivTensorsError

MOST: Final = 10_000
"""Most records that are read for a fingerprint."""

_KEY_BYTES = 32
_RECORD_TAG = b"privtensors.fingerprint.record/1\x00"
_SET_TAG = b"privtensors.fingerprint.set/1\x00"
_CHOICE_TAG = b"privtensors.fingerprint.choice/1\x00"
_HEX_DIGITS = 32
_MAX_DEPTH = 16


class Table(Protocol):
    """Rows by index: a list, an array."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> object: ...


def default_key_path() -> Path:
    """Where the key is: the environment variable ``PRIVTENSORS_FINGERPRINT_KEY``, or ``fingerprint.key`` in the user's data directory."""
    named = os.environ.get("PRIVTENSORS_FINGERPRINT_KEY")
    if named:
        return Path(named).expanduser()
    from platformdirs import user_data_dir

    return Path(user_data_dir("privtensors", appauthor=False)) / "fingerprint.key"


class Fingerprinter:
    """Makes fingerprints under the user's key, which is made with file mode 600 when it is first needed.

    Args:
        key_path: The key's file; by default :func:`default_key_path`.

    Raises:
        AccountingError: The key cannot be made or read, is not 32 bytes, or may be read by others.
    """

    def __init__(self, key_path: str | os.PathLike[str] | None = None) -> None:
        self.key_path = Path(key_path).expanduser() if key_path is not None else default_key_path()
        self._key = _load(self.key_path)

    def of(self, records: Iterable[object]) -> str:
        """The fingerprint of ``records``, 32 hex digits, for ``Release(fingerprint=…)``; reads each record once.

        Args:
            records: What the data set holds, one per example: text, bytes, numbers, None, arrays or tensors on the CPU,
                and lists and mappings of these. Lists of numbers and arrays of the same values count as equal.

        Raises:
            InvalidInput: There is no record, or one holds something else.
        """
        total, count = 0, 0
        for record in records:
            mac = hmac.digest(self._key, _RECORD_TAG + _encoded(record, 0), "sha256")
            total, count = (total + int.from_bytes(mac, "big")) % 2**256, count + 1
        if not count:
            raise InvalidInput("there is no record", where="fingerprint", fix="Give the data set's records")
        return hmac.digest(self._key, _SET_TAG + struct.pack(">Q", count) + total.to_bytes(32, "big"), "sha256").hex()[:_HEX_DIGITS]

    def of_table(self, rows: Table, *, ordered: bool = False) -> str:
        """The fingerprint of a table, 32 hex digits: of all its rows, or of :data:`MOST` at most, chosen by the key and their number.

        Up to :data:`MOST` rows it is what :meth:`of` says, unless ``ordered``.

        Args:
            rows: Each a record as of :meth:`of`.
            ordered: Whether the place of a row counts. For columns of few different values, such as labels, which say little
                without their order: two data sets with as many ones and zeros would look like one.

        Raises:
            InvalidInput: As :meth:`of`.
        """
        return self.of((index, rows[index]) if ordered else rows[index] for index in self._chosen(len(rows)))

    def _chosen(self, count: int) -> Sequence[int]:
        if count <= MOST:
            return range(count)
        seed = hmac.digest(self._key, _CHOICE_TAG + struct.pack(">Q", count), "sha256")
        words = struct.unpack(f">{MOST}Q", hashlib.shake_256(seed).digest(8 * MOST))
        return sorted({word % count for word in words})

    def __repr__(self) -> str:
        return f"Fingerprinter({str(self.key_path)!r})"

    def __reduce__(self) -> str:
        raise AccountingError("the key does not leave its file", where="fingerprinter", fix="Make one in the other process")


def _load(path: Path) -> bytes:
    try:
        with contextlib.suppress(FileNotFoundError):
            return _read(path)
        _create(path)
        return _read(path)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise _bad(f"the key of data set fingerprints cannot be made or read ({reason})", path, "Check the path") from error


def _read(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # opening a pipe must not hang
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _bad("the key of data set fingerprints is not a regular file", path, "Give the path of the key")
        if os.name == "posix" and status.st_mode & 0o077:
            raise _bad("others may read the key of data set fingerprints", path, f"Run: chmod 600 {path}")
        key = file.read(_KEY_BYTES + 1)
    if len(key) != _KEY_BYTES:
        raise _bad("the key of data set fingerprints is damaged", path, "Restore it; with a new one known data is not recognised")
    return key


def _create(path: Path) -> None:
    # Finished under another name and then linked into place: nobody reads half a key, and the first of two processes wins.
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    try:
        with open(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _bad(what: str, path: Path, fix: str) -> AccountingError:
    return AccountingError(what, where=str(path), fix=fix)


def _encoded(value: object, depth: int) -> bytes:
    """One encoding per value, self-delimiting: a tag, a length, the content."""
    if depth > _MAX_DEPTH:
        raise InvalidInput("nested too deep", where="fingerprint", fix="Flatten the records")
    if value is None:
        return b"n"
    if isinstance(value, str):
        return _sized(b"s", value.encode("utf-8", "surrogatepass"))
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _sized(b"b", bytes(value))
    if isinstance(value, Mapping):
        pairs = sorted((_encoded(key, depth + 1), _encoded(item, depth + 1)) for key, item in value.items())
        return _sized(b"m", b"".join(key + item for key, item in pairs))
    array = _numbers(value)
    if array is not None:
        return array
    if isinstance(value, (list, tuple)):
        return _sized(b"l", b"".join(_encoded(item, depth + 1) for item in value))
    if isinstance(value, int):
        return _sized(b"z", str(value).encode())
    if hasattr(value, "tolist"):  # an array of text or objects
        return _encoded(value.tolist(), depth + 1)
    raise InvalidInput(f"a {type(value).__name__} has no fingerprint", where="fingerprint", fix="Give text, numbers, arrays or lists")


def _numbers(value: object) -> bytes | None:
    """The encoding of a number, an array or a rectangular list of numbers; None where ``value`` is none.

    3, np.int32(3) and a tensor of int64 are the same data, and so are a float and the half that it came from.
    """
    import numpy as np

    if isinstance(value, (list, tuple)):
        if not value or not all(type(item) in (int, float, bool, list, tuple) for item in value):
            return None
    elif not (isinstance(value, (bool, int, float)) or hasattr(value, "__array__") or hasattr(value, "__array_interface__")):
        return None
    try:
        array = np.asarray(value)
    except PrivTensorsError:
        raise
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        if isinstance(value, (list, tuple, int)):  # of unequal lengths, or beyond 64 bits
            return None
        fix = "Give a plain array on the CPU"  # it is on a device, or part of a graph
        raise InvalidInput(f"a {type(value).__name__} cannot be read as an array", where="fingerprint", fix=fix) from error
    widened = {"b": "<i8", "i": "<i8", "u": "<u8", "f": "<f8", "c": "<c16"}.get(array.dtype.kind)
    if widened is None:
        return None
    if widened == "<u8" and not (array > np.iinfo(np.int64).max).any():
        widened = "<i8"
    if array.shape == (0,):
        return _sized(b"l", b"")  # as an empty list: it has no type
    shape = struct.pack(f">B{array.ndim}Q", array.ndim, *array.shape)
    return _sized(widened[1:2].encode(), shape + np.ascontiguousarray(array, dtype=widened).tobytes())


def _sized(tag: bytes, content: bytes) -> bytes:
    return tag + struct.pack(">Q", len(content)) + content
