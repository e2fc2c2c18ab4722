"""Client, server and dealer apart: each runs the program with its own correlations, in a thread of its own."""

from __future__ import annotations

import queue
import threading
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from privtensors.backends.mpc.backend import MPCBackend
from privtensors.backends.mpc.correlations import PartyCorrelations
from privtensors.backends.mpc.program import DealerState, Program, TraceChannel, Tracer
from privtensors.core.meter import Meter
from privtensors.transport.base import Message, pack, unpack
from tests.unit.backends.mpc.harness import FRAC, seed

# What a party runs: it gets its own backend and its number (None for the dealer).
Run = Callable[[MPCBackend, int | None], Any]


class Half:
    """One party's end of a pair of queues. ``received`` keeps what arrived, with its width and shape."""

    def __init__(self, party: int, outgoing: queue.Queue[list[bytes]], incoming: queue.Queue[list[bytes]]) -> None:
        self.parties: tuple[int, ...] = (party,)
        self._out, self._in = outgoing, incoming
        self.received: list[tuple[Tensor, int]] = []

    def step(self, label: str) -> None:
        """Both ends run one program."""

    def exchange(self, messages: list[Message]) -> list[Tensor]:
        me, other = self.parties[0], 1 - self.parties[0]
        self._out.put([pack(m.words[0], m.bits) for m in messages if m.reaches(other)])
        arrived = iter(self._in.get(timeout=60))
        found = []
        for m in messages:
            shape = tuple(m.words.shape[1:])
            if m.reaches(me):
                found.append(unpack(next(arrived), m.bits, shape).to(m.words.dtype))
                self.received.append((found[-1].clone(), m.bits))
            else:
                found.append(torch.zeros(shape, dtype=m.words.dtype))
        return found


class Corrections:
    """Party 1's stream, dealt ahead."""

    def __init__(self, pieces: Any) -> None:
        self._data, self._at = bytearray(b"".join(pieces)), 0

    def take(self, size: int) -> memoryview:
        self._at += size
        return memoryview(self._data)[self._at - size : self._at]

    def finish(self) -> None:
        assert self._at == len(self._data), "corrections are left over"


@dataclass(frozen=True)
class Apart:
    """What came of a run.

    Attributes:
        results: What ``run`` returned at parties 0 and 1.
        received: What each of them received: words and their width.
        program: What the dealer dealt.
    """

    results: tuple[Any, Any]
    received: tuple[list[tuple[Tensor, int]], list[tuple[Tensor, int]]]
    program: Program = field(repr=False)


def run_apart(run: Run, *, number: int = 1) -> Apart:
    """Run ``run`` at the dealer, which traces it, then at both parties, each in a thread."""
    technique = types.SimpleNamespace(fractional_bits=FRAC)
    tracer = Tracer(Meter())
    tracer.begin()
    run(MPCBackend(technique, tracer.meter, channel=TraceChannel(), dealer=tracer), None)
    program = tracer.end()
    seeds = (seed(10 * number), seed(10 * number + 1))
    stream = Corrections(program.deal(seeds, DealerState(), keep=False))

    lines: tuple[queue.Queue[list[bytes]], queue.Queue[list[bytes]]] = (queue.Queue(), queue.Queue())
    halves = (Half(0, lines[0], lines[1]), Half(1, lines[1], lines[0]))
    results: list[Any] = [None, None]
    errors: list[BaseException] = []

    def party(me: int) -> None:
        try:
            meter = Meter()
            correlations = PartyCorrelations(meter, me, (seed(10 * number + 2), seed(10 * number + 3)))
            correlations.begin(seeds[me], stream if me else None)
            results[me] = run(MPCBackend(technique, meter, channel=halves[me], dealer=correlations), me)
            correlations.end()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=party, args=(me,)) for me in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return Apart((results[0], results[1]), (halves[0].received, halves[1].received), program)
