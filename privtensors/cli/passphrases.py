"""A passphrase from a file: its first line, read alike by every verb that opens a key."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from privtensors.errors import UsageError

_LONGEST: Final = 4096


def passphrase_of(path: Path) -> str:
    """The first line of a file, without its end.

    Raises:
        UsageError: The file cannot be read, or is not one line of text.
    """
    try:
        with path.open("rb") as handle:
            text = handle.read(_LONGEST + 1).decode("utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"it cannot be read ({type(error).__name__})", where=str(path), fix="Give a file of one line of text") from None
    if not text or "\n" in text or len(text) >= _LONGEST:
        raise UsageError("it is not one line of text", where=str(path), fix="Write the passphrase into its first line")
    return text
