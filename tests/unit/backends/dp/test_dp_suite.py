"""The dp backend under the public conformance suite: values through real releases with very little noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from privtensors import DP, Gaussian
from privtensors.accounting import Ledger
from privtensors.core.backend import TechniqueSpec
from privtensors.core.optable import OPS
from privtensors.core.recorder import Disclosure, Recorder
from privtensors.testing.backend_suite import BackendSuite

_ROWS = "it would combine the rows of different units other than by a sum"
_SPELL = "written with mul, bmm and add it is tracked as well"
_MODEL = "a model is trained by DP-SGD, not on noised tensors"
_IMAGES = "kernels are for tables; images go through a model"
_ZERO = "unbounded where the divisor or argument may be 0, and the bounds of this suite have 0 in them"
_UNITS = "entries of different units would meet"


class TestDP(BackendSuite):
    missing: ClassVar[dict[str, str]] = {
        **{op.name: _MODEL for op in OPS if op.category in ("backward", "loss")},
        **{op: _SPELL for op in ("addcdiv", "lerp", "log_sigmoid")},
        "baddbmm": _SPELL,
        **{op: _IMAGES for op in ("convolution", "avg_pool2d", "adaptive_avg_pool2d", "max_pool2d")},
        **{op: _MODEL for op in ("layer_norm", "batch_norm", "attention")},
        **{f"{op}[{case}]": _ROWS for op, case in (("argmax", "first axis"), ("argmax", "all"), ("softmax", "first axis"))},
        **{f"{op}[{case}]": _ZERO for op in ("rsqrt", "reciprocal") for case in ("ramp", "small")},
        **dict.fromkeys(("div(SS)", "div(PS)", "div[number first]"), _ZERO),
        **{f"addmm({kinds})": "a bias is one vector for all units" for kinds in ("SSS", "SSP", "SPS", "SPP")},
        "log[ramp]": _ZERO,
        "log[large]": _ZERO,
        "addmm(PSS)": _UNITS,
        "embedding(SS)": "a table of units looked up by other units' ids",
        "embedding(SP)[rows]": _UNITS,
        "view[unsafe]": _UNITS,
    }
    resolution = 2.0**-30
    release = Gaussian(std=2.0**-36)
    unsaved = "a file would hold the data without noise"
    examples = 15

    @pytest.fixture
    def technique(self) -> TechniqueSpec:
        return DP(unit="row", dataset="suite", bounds=(-256, 256))

    def make_recorder(self, folder: Path) -> Recorder:
        return Ledger(folder / "ledger.sqlite")

    def recorded(self, recorder: Any) -> list[Disclosure]:
        keys = ("backend", "dtype", "receiver", "label", "simulated", "guarantee")
        return [Disclosure(shape=tuple(row.body["shape"]), **{k: row.body[k] for k in keys}) for row in recorder.entries(kind="reveal")]

    def refusal(self, op: str, a: tuple[int, ...], b: tuple[int, ...]) -> str:
        if op in ("mm", "mv"):
            return _UNITS
        if op in ("bmm", "dot", "embedding", "bincount", "masked_fill", "where") or op in self.missing:
            return ""
        first, second = torch.broadcast_tensors(_units(a), _units(b))
        return "" if torch.equal(first, second) else _UNITS


def _units(shape: tuple[int, ...]) -> Tensor:
    """The unit of every entry of a freshly protected tensor."""
    return torch.arange(shape[0]).view(-1, *[1] * (len(shape) - 1)).expand(shape) if shape else torch.tensor(0)
