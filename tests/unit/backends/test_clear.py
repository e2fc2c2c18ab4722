"""The reference backend passes the conformance suite with nothing missing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from privtensors.backends.clear.kernels import KERNELS, operand_choices
from privtensors.backends.clear.technique import Clear
from privtensors.core import Session, protect
from privtensors.core.optable import OPS
from privtensors.core.recorder import MemoryRecorder
from privtensors.errors import InvalidInput, UnsupportedOp
from privtensors.testing.backend_suite import BackendSuite


class TestClear(BackendSuite):
    @pytest.fixture
    def technique(self) -> Clear:
        return Clear()


def test_complete_over_the_op_table() -> None:
    assert {op for op, _ in KERNELS} == {op.name for op in OPS if not op.alias}


def test_every_mix_of_operands_has_an_entry() -> None:
    assert {k for op, k in KERNELS if op == "add"} == {"C", "CC", "CP", "PC"}
    assert {k for op, k in KERNELS if op == "cat"} == {"C", "CP"}
    assert {k for op, k in KERNELS if op == "index"} == {"CP"}
    assert {k for op, k in KERNELS if op == "copy"} == {"CC", "CP"}
    assert list(operand_choices(torch.ops.aten.addmm.default)) == ["C,P", "C,P", "C,P"]


def test_batch_norm_in_training_mode_is_refused() -> None:
    with Session(recorder=MemoryRecorder()), pytest.raises(UnsupportedOp, match=r"model\.eval"):
        nn.BatchNorm2d(3)(protect(torch.randn(2, 3, 4, 4), "clear"))


def test_shape_errors_are_typed() -> None:
    with Session(recorder=MemoryRecorder()), pytest.raises(InvalidInput, match="mm"):
        torch.mm(protect(torch.zeros(2, 3), "clear"), torch.zeros(2, 3))
