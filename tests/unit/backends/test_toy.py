"""A plugin's whole test: one fixture and the list of what it cannot do. The plugin lives in tests/plugins/toy."""

from __future__ import annotations

from typing import ClassVar

import pytest
from privtensors_toy.backend import KERNELS
from privtensors_toy.technique import Toy

from privtensors.core.optable import OPS
from privtensors.testing.backend_suite import BackendSuite


class TestToy(BackendSuite):
    resolution: ClassVar[float] = 1e-6
    missing: ClassVar[dict[str, str]] = {
        **{op.name: "a toy has few kernels" for op in OPS if not op.alias and op.name not in {key[0] for key in KERNELS}},
        "mm(SS)": "one factor must be public",
        "mm(PS)": "one factor must be public",
    }

    @pytest.fixture
    def technique(self) -> Toy:
        return Toy()
