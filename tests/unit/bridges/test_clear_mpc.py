"""From the reference backend to shares and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from privtensors.core import Session, convert, protect, reveal
from privtensors.core.recorder import MemoryRecorder
from privtensors.errors import InvalidInput, MixedBackends


@pytest.fixture(autouse=True)
def session() -> Iterator[Session]:
    with Session(recorder=MemoryRecorder()) as current:
        yield current


def test_converts_and_records_nothing(session: Session) -> None:
    x = torch.linspace(-3, 3, 7)
    y = convert(protect(x, "clear", owner="alice"), "mpc")
    assert (y.backend_name, y.owner) == ("mpc", "alice")
    assert isinstance(session.recorder, MemoryRecorder) and not session.recorder.entries
    torch.testing.assert_close(reveal(y), x, rtol=0, atol=2**-17)
    assert convert(y, "mpc") is y


def test_refuses_an_overflow_computed_in_the_clear() -> None:
    big = (protect(torch.tensor([100.0]), "clear") * 10).exp()
    with pytest.raises(InvalidInput, match="clear → mpc: 1 of 1 values are NaN or infinite"):
        convert(big, "mpc")


def test_there_is_no_way_back() -> None:
    with pytest.raises(MixedBackends, match="no bridge from 'mpc' to 'clear'"):
        convert(protect(torch.ones(2), "mpc"), "clear")
