"""Files of the dealer that are complete on disk, or that nothing refers to yet."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path


def write_new(path: Path, chunks: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """Write a file that is not there yet, its owner's alone (mode 0600); on disk when this returns. Its name needs :func:`sync_folder`.

    Returns:
        Bytes, and their SHA-256 in hexadecimal digits.

    Raises:
        OSError: It exists, or cannot be written. What was written of it stays: the caller removes it.
    """
    check, size = hashlib.sha256(), 0
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        for chunk in chunks:
            left = memoryview(chunk).cast("B")
            check.update(left)
            size += len(left)
            while left:
                left = left[os.write(number, left) :]
        os.fsync(number)
    finally:
        os.close(number)
    return size, check.hexdigest()


def sync_folder(folder: Path) -> None:
    """Make names that were added to ``folder``, moved or removed there, survive a loss of power."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
