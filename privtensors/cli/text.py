"""Text that came from outside, made fit for a terminal."""

from __future__ import annotations

from privtensors.report.text import printable

__all__ = ["one_line", "printable"]


def one_line(text: str) -> str:
    """``text`` as one printable line."""
    return printable(" ".join(text.split()))
