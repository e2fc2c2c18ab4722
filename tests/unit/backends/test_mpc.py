"""The mpc backend under the public conformance suite."""

from __future__ import annotations

from typing import ClassVar

import pytest

from privtensors import MPC
from privtensors.core.backend import TechniqueSpec
from privtensors.testing.backend_suite import BackendSuite


class TestMPC(BackendSuite):
    missing: ClassVar[dict[str, str]] = dict.fromkeys(("eq", "bincount", "histc", "renorm"), "no protocol for it yet")
    resolution = 2.0**-18
    examples = 20

    @pytest.fixture
    def technique(self) -> TechniqueSpec:
        return MPC()
