"""Every byte that each party of a deployment receives, in a real run over TLS: recorded at its own end of each connection."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from privtensors.backends.mpc.correlations import padded
from privtensors.deploy import connect
from privtensors.deploy.links import Label
from privtensors.transport.base import unpack
from privtensors.transport.frames import Kind, Layout, op_id, parse_description
from privtensors.transport.peer import Peer
from privtensors.transport.record import Entry, Tape
from tests.unit.backends.mpc.harness import Round
from tests.unit.deploy.places import memory_session, running, write_deployment

LABELS = {op_id(label): str(label) for label in Label if label not in (Label.NO, Label.PREPARE)}  # neither is due here


@dataclass
class Request:
    """What one request, or the set-up of a session, put on the wire.

    Attributes:
        opened: Messages of which both parties hold a word each.
        one_way: Messages that only one party receives.
        corrections: What party 1 received of the dealer, step by step.
        words: Bytes of packed words that the client sent.
        plan: Bits and shapes of every message, in order.
        answer: The logits.
    """

    opened: list[Round]
    one_way: list[Round]
    corrections: list[Round]
    words: int
    plan: list[tuple[int, tuple[int, ...]]]
    answer: Tensor | None = None


@dataclass
class Recorded:
    """A session with its requests.

    Attributes:
        tape: Everything, with parties ``client``, ``server``, ``dealer``.
        setup: The session's set-up.
        requests: In order.
        said: What ``explain`` tells.
        costs: Rounds, bytes and dealer bytes that the client counted, per request.
    """

    tape: Tape
    setup: Request
    requests: list[Request]
    said: Any
    costs: list[tuple[int, int, int]]


@contextmanager
def every_peer(tape: Tape, monkeypatch: Any) -> Iterator[None]:
    """Every connection of this process is recorded from its first frame on."""
    honest = Peer.__init__

    def watched(peer: Peer, *args: Any, **kwargs: Any) -> None:
        honest(peer, *args, **kwargs)
        counts = {True: 0, False: 0}

        def observe(sent: bool, kind: Kind, op: int, payload: Sequence[bytes | memoryview]) -> None:
            party, _, other = peer._where.partition(" to ")
            tape.entries.append(Entry(party, sent, counts[sent], kind, op, b"".join(payload), peer=other.split(" at ")[0]))
            counts[sent] += 1

        peer.observe = observe

    with monkeypatch.context() as patch:
        patch.setattr(Peer, "__init__", watched)
        yield


def record(folder: Path, inputs: Sequence[dict[str, Tensor]], monkeypatch: Any, *, model: Any = None) -> Recorded:
    """Run a deployment of the tiny BERT, or of ``model``, and record a session with these requests."""
    tape = Tape()
    path = write_deployment(folder, "bert", seed_model=model)
    with running(path) as place, every_peer(tape, monkeypatch), connect(place.deployment, session=memory_session()) as remote:
        programs = place.dealer.programs
        requests, at = [], len(tape.entries)
        setup = request(tape, 0, at, programs.setup.program.steps)
        for given in inputs:
            logits = remote(**given).logits
            wait_for_server(tape)
            kind = list(programs._kept.values())[-1]
            requests.append(request(tape, at, len(tape.entries), kind.program.steps))
            requests[-1].answer, at = logits, len(tape.entries)
        costs = [(c.rounds, c.bytes_sent, c.dealer_bytes) for c in remote.costs]
        said = remote.explain()
    return Recorded(tape, setup, requests, said, costs)


def wait_for_server(tape: Tape) -> None:
    """Until the server has noted the last round: its thread may be behind the client's."""

    def count(party: str) -> int:
        return sum(e.kind is Kind.EXCHANGE and e.sent for e in list(tape.entries) if e.party == party)

    for _ in range(500):
        if count("client") == count("server"):
            break
        time.sleep(0.01)


def split(entry: Entry) -> list[tuple[Layout, Tensor]]:
    """The tensors of an exchange's payload."""
    layouts, at = parse_description(entry.data)
    found = []
    for layout in layouts:
        found.append((layout, unpack(entry.data[at : at + layout.size()], layout.bits, layout.shape)))
        at += layout.size()
    assert at == len(entry.data)
    return found


def request(tape: Tape, start: int, end: int, steps: Any) -> Request:
    """The frames between two places of the tape, taken apart."""
    found = Request([], [], [], 0, [])
    entries = tape.entries[start:end]
    ours, theirs = ([e for e in entries if e.kind is Kind.EXCHANGE and e.sent and e.party == p] for p in ("client", "server"))
    assert len(ours) == len(theirs)
    for mine, yours in zip(ours, theirs, strict=True):
        a, b = split(mine), split(yours)
        found.words += sum(layout.size() for layout, _ in a)
        found.plan += [(layout.bits, layout.shape) for layout, _ in (*a, *b)]
        if [layout for layout, _ in a] == [layout for layout, _ in b]:
            found.opened += [Round(torch.stack([x, y]), layout.bits) for (layout, x), (_, y) in zip(a, b, strict=True)]
        else:
            found.one_way += [Round(x.unsqueeze(0), layout.bits) for layout, x in (*a, *b)]
    data = b"".join(e.data for e in entries if e.kind is Kind.CORRELATION and e.party == "server" and not e.sent)
    at = 0
    for step in steps:
        if step.shared:
            found.corrections.append(Round(unpack(data[at : at + step.size], step.bits, step.shape).unsqueeze(0), step.bits))
            assert not any(data[at + step.size : at + padded(step.size)])
            at += padded(step.size)
    assert at == len(data)
    return found
