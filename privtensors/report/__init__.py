"""Reports for people, rendered with rich. Imports no torch."""

from __future__ import annotations

from privtensors.report.who_sees_what import who_sees_what

__all__ = ["who_sees_what"]
