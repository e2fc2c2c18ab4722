"""A session that keeps its disclosures in memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from privtensors.core import Session
from privtensors.core.recorder import MemoryRecorder


@pytest.fixture
def session() -> Iterator[Session]:
    with Session(recorder=MemoryRecorder()) as current:
        yield current
