"""Stand-ins for what ``import crypten`` (0.4.1) asks for and a current installation does not have.

CrypTen imports ``torch.onnx.symbolic_registry``, which torch removed in 2.0, and calls ``torchvision`` while it is imported.
Neither is used by tensor operations. :func:`installed` puts empty modules with proper specs in their place and takes them away
again, so that a later ``import torchvision`` finds the real package or fails as it should.

This file imports the standard library only and is usable by path::

    spec = importlib.util.spec_from_file_location("standins", ".../privtensors_crypten/worker/standins.py")
    standins = importlib.util.module_from_spec(spec); spec.loader.exec_module(standins)
    crypten = standins.import_crypten()
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

NAMES: Final = ("torch.onnx.symbolic_registry", "torchvision", "torchvision.models")


def _absent(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is None
    except ModuleNotFoundError:
        return True


def _stand_in(name: str) -> ModuleType:
    module = ModuleType(name, "Stand-in while crypten is imported.")
    module.__spec__ = ModuleSpec(name, loader=None, is_package=name == "torchvision")
    if name == "torchvision":
        module.__path__ = []
    return module


@contextmanager
def installed() -> Iterator[None]:
    """Register stand-ins for those of :data:`NAMES` that are not installed; remove them on leaving."""
    added: list[str] = []
    try:
        for name in NAMES:
            if name not in sys.modules and _absent(name):
                sys.modules[name] = _stand_in(name)
                added.append(name)
                parent, _, child = name.rpartition(".")
                if parent in added:
                    setattr(sys.modules[parent], child, sys.modules[name])
        yield
    finally:
        for name in reversed(added):
            module = sys.modules.pop(name)
            parent, _, child = name.rpartition(".")
            if vars(sys.modules.get(parent, module)).get(child) is module:
                delattr(sys.modules[parent], child)


def import_crypten() -> Any:
    """Import CrypTen with the stand-ins in place and return the module; start parties with ``crypten.mpc.run_multiprocess``.

    Raises:
        ImportError: CrypTen, or something that has no stand-in, is not installed.
    """
    with installed(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations of 2022's code on today's torch and Python
        return importlib.import_module("crypten")
