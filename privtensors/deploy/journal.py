"""Used ids on disk: each is appended and flushed before anything is sent under it, and is never taken off again.

A file of records of 32 bytes: a first one with the format, then per id its mark (8 bytes), the id (16) and a
check (8) over number, mark and id. Each append is flushed before the next, so only the last record can be torn, and then
nothing was sent under its id. Damage anywhere else is an error: guessing would mean reuse.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import struct
import threading
from enum import IntEnum
from pathlib import Path
from typing import Final, Self

from privtensors.deploy.durable import sync_folder, write_new
from privtensors.errors import CorrelationError, IdUsed

ID_SIZE: Final = 16
_FIRST: Final = b"privtensors used ids, format 1".ljust(31) + b"\n"
_RECORD: Final = struct.Struct("<Q16s8s")
_SIZE: Final = _RECORD.size
_GUARD: Final = "never copy or restore a store: move it away and deal anew"


class Mark(IntEnum):
    """What an id belongs to."""

    BUNDLE = 1
    ITEM = 2
    REQUEST = 3


def create_journal(path: Path) -> None:
    """An empty journal, where there is none yet; complete or absent whenever the process ends.

    Raises:
        OSError: It cannot be written.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        write_new(draft, [_FIRST])
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)


class Journal:
    """An open journal. One process at a time may have it open: the store's lock sees to that.

    Args:
        path: The file.

    Raises:
        CorrelationError: It is missing, unreadable, damaged, or of another format.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock, self._broken = path, threading.Lock(), False
        self._used: set[bytes] = set()
        try:
            self._file = os.open(path, os.O_RDWR)
        except OSError as error:
            raise CorrelationError(f"the journal of used ids cannot be opened: {error.strerror}", where=str(path), fix=_GUARD) from None
        try:
            self._count = self._read()
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Journal({self._count} ids)"

    def close(self) -> None:
        """Close the file; nothing can be marked afterwards."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
            self._file, self._broken = -1, True

    def used(self, mark: Mark, name: bytes) -> bool:
        """Whether the id was marked."""
        return bytes([mark]) + name in self._used

    def use(self, mark: Mark, name: bytes) -> None:
        """Mark a 16-byte id as used; on disk when this returns.

        Raises:
            IdUsed: It was used before.
            CorrelationError: The mark cannot be written: then no further one is, until the journal is opened again.
        """
        if len(name) != ID_SIZE:
            raise CorrelationError(f"an id of {len(name)} bytes", where=str(self._path), fix=f"an id has {ID_SIZE}")
        key = bytes([mark]) + name
        with self._lock:
            if key in self._used:
                raise IdUsed(f"this {mark.name.lower()} id was used before", where="dealer", fix="send the request under a new id")
            if self._broken:
                raise CorrelationError("the journal of used ids is closed", where=str(self._path), fix="start the dealer again")
            # Used in memory first: whatever happens below, this process does not hand it out a second time.
            self._used.add(key)
            record = _RECORD.pack(mark, name, _check(self._count, mark, name))
            try:
                if os.write(self._file, record) != _SIZE:
                    raise OSError(0, "only a part was written")
                os.fsync(self._file)
            except OSError as error:
                self._broken = True
                raise CorrelationError(
                    f"no id can be marked as used: {error.strerror}", where=str(self._path), fix="free the disk"
                ) from None
            self._count += 1

    def _read(self) -> int:
        """Take in what is there, cut off a torn last record, and stand at the end; the number of ids."""
        data = bytearray()
        while piece := os.read(self._file, 1 << 20):
            data += piece
        if bytes(data[:_SIZE]) != _FIRST:
            raise CorrelationError("this is no journal of used ids, or one of another release", where=str(self._path), fix=_GUARD)
        whole = len(data) // _SIZE * _SIZE
        if whole > _SIZE and not any(data[whole - _SIZE : whole]):
            whole -= _SIZE  # the size was on disk before the content was
        count = whole // _SIZE - 1
        for index in range(count):
            mark, name, check = _RECORD.unpack_from(data, (index + 1) * _SIZE)
            if mark not in Mark.__members__.values() or check != _check(index, mark, name):
                raise CorrelationError(f"record {index} of the journal is damaged", where=str(self._path), fix=_GUARD)
            self._used.add(bytes([mark]) + name)
        try:
            if whole < len(data):
                os.ftruncate(self._file, whole)
            os.fsync(self._file)  # what a killed process wrote and did not flush
            os.lseek(self._file, whole, os.SEEK_SET)
        except OSError as error:
            raise CorrelationError(f"the journal cannot be written: {error.strerror}", where=str(self._path), fix="free the disk") from None
        return count


def _check(index: int, mark: int, name: bytes) -> bytes:
    return hashlib.sha256(struct.pack("<QQ", index, mark) + name).digest()[:8]
