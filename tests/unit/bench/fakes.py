"""Contenders without a cryptosystem, for the tests of the benchmark itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.bench.peers.contender import Request, Sample
from tests.bench.peers.environment import NotMeasured


def request(tokens: int = 4) -> Request:
    hidden = np.arange(tokens * 2, dtype=np.float32).reshape(1, tokens, 2)
    return Request(np.zeros((1, tokens), dtype=np.int64), hidden, hidden + 1)


class Fake:
    """Takes ``seconds`` on paper; fails from run number ``fails_at`` on; cannot be set up with a ``broken`` reason."""

    shapes = True
    remark = ""

    def __init__(self, name: str, role: str = "us", *, seconds: float = 1.0, runs: int = 2, fails_at: int = 1000, broken: str = "") -> None:
        self.name, self.role, self.runs, self.seconds, self.fails_at, self.broken = name, role, runs, seconds, fails_at, broken
        self.seen: list[Request] = []
        self.closed = 0

    def set_up(self, say: Callable[[str], None]) -> None:
        if self.broken:
            raise NotMeasured(self.broken)

    def run(self, request: Request) -> Sample:
        if len(self.seen) >= self.fails_at:
            raise NotMeasured("it fell over")
        self.seen.append(request)
        return Sample(self.seconds, 2 * self.seconds, 0.01, 0.001, rounds=100, bytes_sent=1_000_000, peak_mib=200.0)

    def close(self) -> None:
        self.closed += 1


class FakePlain:
    """Stands in for the plain model."""

    def requests(self, tokens: int, count: int) -> list[Any]:
        return [request(tokens) for _ in range(count)]
