"""privtensors: ordinary PyTorch and Hugging Face code under composed privacy techniques."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from privtensors.accounting import Ledger
    from privtensors.backends.clear.technique import Clear
    from privtensors.backends.dp.release import Gaussian, Laplace
    from privtensors.backends.dp.technique import DP
    from privtensors.backends.mpc.technique import MPC
    from privtensors.core import SafeTensor, Session, convert, load, protect, reveal, save
    from privtensors.errors import PrivTensorsError
    from privtensors.hf import DPTrainer, PrivateModel, pipeline, wrap
    from privtensors.obfuscation.technique import Obfuscation
    from privtensors.policy import Policy

__version__ = "0.1.0"

__all__ = [
    "DP",
    "MPC",
    "Clear",
    "DPTrainer",
    "Gaussian",
    "Laplace",
    "Ledger",
    "Obfuscation",
    "Policy",
    "PrivTensorsError",
    "PrivateModel",
    "SafeTensor",
    "Session",
    "convert",
    "load",
    "pipeline",
    "protect",
    "reveal",
    "save",
    "wrap",
]


def __getattr__(name: str) -> Any:
    # Lazy: importing the package must not import transformers, sqlite3 or a backend that is not used.
    homes = {
        "privtensors.accounting": ("Ledger",),
        "privtensors.backends.clear.technique": ("Clear",),
        "privtensors.backends.dp.release": ("Gaussian", "Laplace"),
        "privtensors.backends.dp.technique": ("DP",),
        "privtensors.backends.mpc.technique": ("MPC",),
        "privtensors.core": ("SafeTensor", "Session", "convert", "load", "protect", "reveal", "save"),
        "privtensors.errors": ("PrivTensorsError",),
        "privtensors.hf": ("DPTrainer", "PrivateModel", "pipeline", "wrap"),
        "privtensors.obfuscation.technique": ("Obfuscation",),
        "privtensors.policy": ("Policy",),
    }
    for module, names in homes.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'privtensors' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
