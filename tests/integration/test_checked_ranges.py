"""A model whose activations leave their range, in one process and deployed: the client is told, the server sees no difference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from privtensors import MPC, Policy, wrap
from privtensors.backends.mpc.backend import MPCBackend
from privtensors.deploy import connect
from privtensors.errors import RangeExceeded
from privtensors.transport.memory import MemoryChannel
from privtensors.transport.record import RecordingChannel, Tape
from tests.unit.backends.mpc.uniformity import chi_square
from tests.unit.deploy.places import memory_session, running, write_deployment
from tests.unit.hf.tiny import build, inputs_for

BROKEN = "bert.encoder.layer.1.intermediate"


def broken() -> Any:
    """One activation of its second layer lies beyond 8192 for some inputs: its GELU would read as 0."""
    model = build("bert")
    with torch.no_grad():
        model.get_submodule(BROKEN).dense.weight[3] *= 20_000.0
    return model


def answer(model: Any, technique: MPC) -> tuple[Any, list[tuple[int, bytes]]]:
    """The logits or the error, and what the server received: width and bytes of each message."""
    tape, session = Tape(), memory_session()
    private = wrap(model, Policy(infer=[technique]), session=session, progress=False)
    backend = session.backend(technique)
    assert isinstance(backend, MPCBackend)
    backend.runtime.channel = RecordingChannel(MemoryChannel(), tape)
    try:
        result: Any = private(**inputs_for("bert"))["logits"]
    except RangeExceeded as error:
        result = error
    return result, [(e.bits, bytes(e.data)) for e in tape.entries if e.party == "party1" and not e.sent]


def test_in_range_the_answer_is_that_of_unchecked_ranges() -> None:
    (one, _), (other, _) = answer(build("bert"), MPC(ranges="checked")), answer(build("bert"), MPC())
    assert float((one - other).abs().max()) < 0.02


def test_out_of_range_the_client_is_told_and_the_server_sees_no_difference() -> None:
    good, usual = answer(build("bert"), MPC(ranges="checked"))
    told, seen = answer(broken(), MPC(ranges="checked"))
    assert isinstance(good, torch.Tensor) and isinstance(told, RangeExceeded)
    assert "a value left its range, so the result is withheld" in str(told) and "layer" not in told.what
    assert [(bits, len(data)) for bits, data in seen] == [(bits, len(data)) for bits, data in usual]
    for _, received in (good, usual), (told, seen):
        whole = b"".join(data for bits, data in received if bits in (8, 16, 32, 64))
        words = torch.frombuffer(bytearray(whole), dtype=torch.uint8).to(torch.int64)
        assert words.numel() > 100_000
        assert min(chi_square(words.view(1, -1), 256)) > 1e-6


def test_without_checks_a_wrong_number_is_returned() -> None:
    model = broken()
    wrong, _ = answer(model, MPC())
    with torch.no_grad():
        assert float((wrong - model(**inputs_for("bert")).logits).abs().max()) > 0.1


def test_diagnosing_names_the_layer() -> None:
    told, _ = answer(broken(), MPC(ranges="checked", diagnose=True))
    assert isinstance(told, RangeExceeded) and f"in activate, {BROKEN}" in str(told)


@pytest.mark.parametrize("options", ['ranges = "checked"', 'ranges = "checked"\ndiagnose = true'], ids=["one bit", "diagnose"])
def test_deployed_the_session_goes_on_and_the_server_counts_an_answer(options: str, tmp_path: Path) -> None:
    path = write_deployment(tmp_path, "bert", seed_model=broken())
    path.write_text(path.read_text().replace('technique = "mpc"', f'technique = "mpc"\n{options}'))
    with running(path) as found, connect(found.deployment, session=memory_session()) as remote:
        sessions = remote.setup
        for _ in range(2):
            with pytest.raises(RangeExceeded, match=BROKEN if "diagnose" in options else "so the result is withheld"):
                remote(**inputs_for("bert"))
        assert len(remote.costs) == 2 and remote.setup is sessions  # both were answered, in one session
    assert (found.server.service.figures.served, found.server.service.figures.failed) == (2, 0)
