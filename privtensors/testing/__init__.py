"""Public tools for tests, of this project and of plugins: conformance suites and real assets.

A plugin's whole test is a subclass of :class:`BackendSuite`, :class:`TechniqueSuite` or :class:`AccountantSuite` with one fixture.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from privtensors.testing.accountant_suite import AccountantSuite
    from privtensors.testing.backend_suite import BackendSuite
    from privtensors.testing.technique_suite import TechniqueSuite

__all__ = ["AccountantSuite", "BackendSuite", "TechniqueSuite"]


def __getattr__(name: str) -> Any:
    # Lazy: the demo imports privtensors.testing.assets and must not pull in pytest and hypothesis.
    homes = {"AccountantSuite": "accountant_suite", "BackendSuite": "backend_suite", "TechniqueSuite": "technique_suite"}
    if name not in homes:
        raise AttributeError(f"module 'privtensors.testing' has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{homes[name]}"), name)
