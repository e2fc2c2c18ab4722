"""Text that came from outside, made fit for a terminal."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    """``text`` with every character that could drive a terminal replaced."""
    return "".join("�" if unicodedata.category(char).startswith("C") else char for char in text)
