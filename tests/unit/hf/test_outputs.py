"""Several outputs of one run leave as one disclosure, or not at all."""

from __future__ import annotations

import pytest
import torch

from privtensors.core import Session, protect
from privtensors.core.recorder import MemoryRecorder
from privtensors.core.safetensor import reveal_outputs
from privtensors.errors import InvalidInput, MixedBackends


def test_one_disclosure_names_every_output(session: Session) -> None:
    values = {"logits": torch.randn(2, 3), "pooler_output": torch.randn(4)}
    got = reveal_outputs({k: protect(v, "mpc") for k, v in values.items()}, to="client")
    assert got.keys() == values.keys()
    for key, value in values.items():
        torch.testing.assert_close(got[key], value, atol=1e-5, rtol=0)
    (row,) = session.recorder.entries  # type: ignore[attr-defined]
    assert row.label == "logits, pooler_output" and row.shape == (2, 3) and row.receiver == "client"
    assert row.details == (("logits", "float32[2, 3]"), ("pooler_output", "float32[4]"))


def test_refusals(session: Session) -> None:
    x = torch.ones(2)
    with pytest.raises(InvalidInput, match="nothing"):
        reveal_outputs({}, to="client")
    with pytest.raises(InvalidInput, match="logits is not a SafeTensor"):
        reveal_outputs({"logits": x}, to="client")
    with pytest.raises(MixedBackends):
        reveal_outputs({"a": protect(x, "mpc"), "b": protect(x, "clear")}, to="client")
    assert isinstance(session.recorder, MemoryRecorder) and not session.recorder.entries
