"""The same program in three roles: client, server and dealer, each with its own backend, joined by queues in one process."""

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
from privtensors.backends.mpc.dealer import Dealer
from privtensors.backends.mpc.program import DealerState, Program, TraceChannel, Tracer
from privtensors.core.meter import Meter
from privtensors.core.safetensor import SafeTensor, State
from privtensors.errors import CorrelationError, FrameError, PeerLost
from privtensors.transport.base import Message, pack, unpack
from tests.unit.backends.mpc.harness import seed

TECHNIQUE = types.SimpleNamespace(name="mpc", backend="mpc", fractional_bits=18)
OWNERS = ("client", "server")
# What a party does: given its backend and a way to protect (value, owner), returns a result.
Job = Callable[["Role"], Any]
Seeds = tuple[bytes, bytes]


def seeds(number: int = 1) -> tuple[Seeds, Seeds]:
    """A run's fixed seeds: of the two parties, and of the two as owners of inputs."""
    return (seed(number), seed(1000 + number)), (seed(2000 + number), seed(3000 + number))


class QueueChannel:
    """One party's end: packed bytes and the step's label go through a queue, as they would through a socket.

    ``received`` keeps the words that arrived, and how many bits of each.
    """

    def __init__(self, party: int, out: queue.Queue[Any], into: queue.Queue[Any]) -> None:
        self.parties: tuple[int, ...] = (party,)
        self._party, self._out, self._into, self._label = party, out, into, ""
        self.received: list[tuple[Tensor, int]] = []

    def step(self, label: str) -> None:
        self._label = label

    def exchange(self, messages: list[Message]) -> list[Tensor]:
        ours = [(m.bits, tuple(m.words.shape[1:]), pack(m.words[0], m.bits)) for m in messages if m.reaches(1 - self._party)]
        self._out.put((self._label, ours))
        label, theirs = self._into.get(timeout=20) or (None, None)
        if label is None:
            raise PeerLost("the other party has ended", where="test")
        if label != self._label:
            raise FrameError(f"step {label!r}, due is {self._label!r}", where="test")
        received, out = iter(theirs), []
        for m in messages:
            shape = tuple(m.words.shape[1:])
            if not m.reaches(self._party):
                out.append(torch.zeros(shape, dtype=m.words.dtype))
                continue
            bits, sent, data = next(received)
            assert (bits, sent) == (m.bits, shape)
            out.append(unpack(data, bits, shape).to(m.words.dtype))
            self.received.append((out[-1].clone(), bits))
        return out


class Corrections:
    """Dealt corrections, read in order."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = bytearray(data), 0

    def take(self, size: int) -> memoryview:
        if self._at + size > len(self._data):
            raise CorrelationError("no more", where="test")
        self._at += size
        return memoryview(self._data)[self._at - size : self._at]

    def finish(self) -> None:
        if self._at != len(self._data):
            raise CorrelationError(f"{len(self._data) - self._at} bytes left over", where="test")


@dataclass
class Role:
    """What a job sees of the party it runs at."""

    backend: MPCBackend
    meter: Meter

    def protect(self, x: Tensor, owner: str) -> SafeTensor:
        """The value where this party knows it, else its shape alone."""
        given = x if self.backend.holds(owner) else torch.empty_like(x, device="meta")
        return SafeTensor(State(self.backend.protect(given, owner=owner), self.backend, owner))

    def reveal(self, x: SafeTensor, to: str) -> Tensor:
        return self.backend.reveal(x._state.current(), to=to)


@dataclass
class Outcome:
    """Per role: the job's result, the meter and what arrived of the other party; and the dealer's program."""

    results: dict[str, Any] = field(default_factory=dict)
    received: dict[str, list[tuple[Tensor, int]]] = field(default_factory=dict)
    meters: dict[str, Meter] = field(default_factory=dict)
    program: Program | None = None
    corrections: bytes = b""


def together(job: Job, technique: Any = TECHNIQUE) -> tuple[Any, Meter]:
    """The job with both parties and the dealer in one process."""
    meter = Meter()
    backend = MPCBackend(technique, meter, dealer=Dealer(meter, *seeds()))
    return job(Role(backend, meter)), meter


def trace(job: Job, technique: Any = TECHNIQUE) -> tuple[Program, Meter]:
    """The job at the dealer."""
    meter = Meter()
    tracer = Tracer(meter)
    tracer.begin()
    job(Role(MPCBackend(technique, meter, channel=TraceChannel(), dealer=tracer), meter))
    return tracer.end(), meter


def apart(
    job: Job,
    technique: Any = TECHNIQUE,
    *,
    jobs: tuple[Job, Job] | None = None,
    number: int = 1,
    devices: tuple[torch.device | None, torch.device | None] = (None, None),
) -> Outcome:
    """The job at the dealer, which deals, then at both parties side by side.

    Args:
        jobs: What the two parties run instead, for parties that disagree.
        number: Which fixed seeds: another number, other randomness.
        devices: Where the parties compute; None for the CPU.
    """
    parties, inputs = seeds(number)
    outcome = Outcome()
    outcome.program, outcome.meters["dealer"] = trace(job, technique)
    outcome.corrections = b"".join(outcome.program.deal(parties, DealerState(), keep=False))
    queues: tuple[queue.Queue[Any], queue.Queue[Any]] = (queue.Queue(), queue.Queue())
    errors: list[BaseException] = []

    def run(party: int) -> None:
        meter = outcome.meters[OWNERS[party]] = Meter()
        correlations = PartyCorrelations(meter, party, inputs, devices[party])
        channel = QueueChannel(party, queues[party], queues[1 - party])
        outcome.received[OWNERS[party]] = channel.received
        try:
            correlations.begin(parties[party], Corrections(outcome.corrections) if party else None)
            role = Role(MPCBackend(technique, meter, channel=channel, dealer=correlations, device=devices[party]), meter)
            outcome.results[OWNERS[party]] = (jobs[party] if jobs else job)(role)
            correlations.end()
        except queue.Empty:
            errors.append(PeerLost("nothing came", where="test"))
        except BaseException as error:
            errors.append(error)
        finally:
            queues[party].put(None)  # whoever waits for more need not wait long

    threads = [threading.Thread(target=run, args=(party,)) for party in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return outcome


def same_as_one_process(expected: list[Tensor], meter: Meter, outcome: Outcome) -> None:
    """Three roles gave the client what one process gave, word for word, in as many rounds and bytes; the server saw none of it."""
    for mine, theirs, seen in zip(expected, outcome.results["client"], outcome.results["server"], strict=True):
        assert torch.equal(mine, theirs) and mine.dtype == theirs.dtype
        assert not seen.any() and seen.shape == mine.shape
    for role in ("client", "server", "dealer"):
        assert (outcome.meters[role].rounds, outcome.meters[role].bytes_sent) == (meter.rounds, meter.bytes_sent), role
    assert outcome.meters["dealer"].dealer_bytes == outcome.meters["server"].dealer_bytes == meter.dealer_bytes
    assert outcome.meters["client"].dealer_bytes == 0
    assert outcome.program is not None and outcome.program.correction_bytes == len(outcome.corrections)
