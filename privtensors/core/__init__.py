"""The core: one tensor, closed kernel tables, sessions, meters. It imports no backend."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from privtensors.core.io import load, save
    from privtensors.core.safetensor import SafeTensor, convert, protect, reveal
    from privtensors.core.session import Session, current_session

__all__ = ["SafeTensor", "Session", "convert", "current_session", "load", "protect", "reveal", "save"]


def __getattr__(name: str) -> Any:
    # Lazy: the registry and the recorder are read by modules that must not import torch.
    homes = {
        "io": ("load", "save"),
        "safetensor": ("SafeTensor", "convert", "protect", "reveal"),
        "session": ("Session", "current_session"),
    }
    for module, names in homes.items():
        if name in names:
            return getattr(importlib.import_module(f"privtensors.core.{module}"), name)
    raise AttributeError(f"module 'privtensors.core' has no attribute {name!r}")
