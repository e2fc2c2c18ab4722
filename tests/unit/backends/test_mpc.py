"""The mpc backend under the public conformance suite."""

from __future__ import annotations

from typing import ClassVar

import pytest

from privtensors import MPC
from privtensors.core.backend import TechniqueSpec
from privtensors.testing.backend_suite import BackendSuite

_TRAINING = "training on shares is not built yet"


class TestMPC(BackendSuite):
    missing: ClassVar[dict[str, str]] = {
        name: _TRAINING
        for name in (
            "relu_backward",
            "gelu_backward",
            "silu_backward",
            "tanh_backward",
            "sigmoid_backward",
            "clamp_backward",
            "softmax_backward",
            "layer_norm_backward",
            "attention_backward",
            "select_backward",
            "slice_backward",
            "convolution_backward",
        )
    }
    resolution = 2.0**-18
    examples = 20

    @pytest.fixture
    def technique(self) -> TechniqueSpec:
        return MPC()
