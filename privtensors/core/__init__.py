"""The core: one tensor, closed kernel tables, sessions, meters. It imports no backend."""

from __future__ import annotations

from privtensors.core.io import load, save
from privtensors.core.safetensor import SafeTensor, convert, protect, reveal
from privtensors.core.session import Session, current_session

__all__ = ["SafeTensor", "Session", "convert", "current_session", "load", "protect", "reveal", "save"]
