"""Sessions: one backend per technique, the current session, and the line that says a run is simulated."""

from __future__ import annotations

import logging

import pytest
import torch

from privtensors import MPC, Clear, Session, protect, reveal
from privtensors.core import current_session
from privtensors.core.recorder import MemoryRecorder
from privtensors.errors import InvalidInput


def test_one_backend_per_technique() -> None:
    session = Session(recorder=MemoryRecorder())
    assert session.backend(MPC()) is session.backend("mpc")
    assert session.backend(MPC(fractional_bits=16)) is not session.backend(MPC())


def test_the_innermost_session_is_current() -> None:
    with Session(recorder=MemoryRecorder()) as outer:
        with Session(recorder=MemoryRecorder()) as inner:
            assert current_session() is inner
        assert current_session() is outer


def test_a_reveal_goes_to_the_session_s_recorder() -> None:
    recorder = MemoryRecorder()
    with Session(recorder=recorder):
        reveal(protect(torch.ones(2), "mpc"), to="server", label="ones")
    (entry,) = recorder.entries
    assert (entry.receiver, entry.label, entry.simulated, entry.shape) == ("server", "ones", True, (2,))


def test_what_is_no_technique_is_refused() -> None:
    with pytest.raises(InvalidInput, match="expected a technique"):
        Session(recorder=MemoryRecorder()).backend(3)  # type: ignore[arg-type]


def test_a_simulated_run_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "privtensors"), Session(recorder=MemoryRecorder()):
        for _ in range(3):
            protect(torch.ones(2), "mpc")
    assert [r.getMessage() for r in caplog.records] == ["SIMULATED: one process holds every party's view (backend mpc)"]


def test_the_reference_backend_does_not_claim_to_simulate_a_protection(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "privtensors"), Session(recorder=MemoryRecorder()):
        protect(torch.ones(2), Clear())
    assert not caplog.records
