"""Who really saw what: keeps every payload byte that a party sends and receives. It holds shares, so it is for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from privtensors.transport.base import Channel, Message, pack
from privtensors.transport.frames import Kind
from privtensors.transport.peer import Peer


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of an exchange, or the payload of one frame.

    Attributes:
        party: Whose view this is: ``"party0"``, ``"party1"``, or the name given to :meth:`Tape.watch`.
        sent: Whether that party sent it; else it received it.
        number: Round for a channel, frame in its direction for a connection.
        kind: The frame's kind.
        op: The frame's step, 0 for a channel.
        data: The bytes; not shown.
        bits: Bits per word, 0 for a frame.
        shape: The tensor's shape, empty for a frame.
        peer: Who is at the other end.
    """

    party: str
    sent: bool
    number: int
    kind: Kind
    op: int
    data: bytes = field(repr=False)
    bits: int = 0
    shape: tuple[int, ...] = ()
    peer: str = ""


class Tape:
    """What was recorded, in order."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def __repr__(self) -> str:
        return f"Tape({len(self.entries)} entries)"

    def received(self, party: str) -> list[Entry]:
        """What ``party`` received."""
        return [e for e in self.entries if e.party == party and not e.sent]

    def sent(self, party: str) -> list[Entry]:
        """What ``party`` sent."""
        return [e for e in self.entries if e.party == party and e.sent]

    def view(self, party: str) -> bytes:
        """Every byte that ``party`` received, in order."""
        return b"".join(e.data for e in self.received(party))

    def watch(self, peer: Peer, party: str) -> None:
        """Record every frame from here on that ``party`` exchanges over ``peer``; what it tried to send counts as sent."""
        counts = {True: 0, False: 0}

        def observe(sent: bool, kind: Kind, op: int, payload: Sequence[bytes | memoryview]) -> None:
            data = b"".join(payload)
            self.entries.append(Entry(party, sent, counts[sent], kind, op, data, peer=peer.name))
            counts[sent] += 1

        peer.observe = observe


class RecordingChannel:
    """Records the packed words of every exchange as each party held here sees them.

    Args:
        inner: The channel that does the exchange; with both parties in one process, both views are recorded.
        tape: Where to.
    """

    def __init__(self, inner: Channel, tape: Tape) -> None:
        self.inner, self.tape = inner, tape
        self.parties: tuple[int, ...] = inner.parties
        self.rounds = 0

    def step(self, label: str) -> None:
        """Passed on to the inner channel."""
        self.inner.step(label)

    def exchange(self, messages: list[Message]) -> list[Tensor]:
        """One round of the inner channel, recorded."""
        # A failed round is recorded as sent: the words may have left.
        for row, party in enumerate(self.parties):
            self._note(party, True, [(m, m.words[row]) for m in messages if m.reaches(1 - party)])
        received = self.inner.exchange(messages)
        first = self.parties[0]
        self._note(first, False, [(m, words) for m, words in zip(messages, received, strict=True) if m.reaches(first)])
        if len(self.parties) == 2:
            self._note(self.parties[1], False, [(m, m.words[0]) for m in messages if m.reaches(self.parties[1])])
        self.rounds += 1
        return received

    def _note(self, party: int, sent: bool, messages: list[tuple[Message, Tensor]]) -> None:
        for message, tensor in messages:
            data, shape = pack(tensor, message.bits), tuple(tensor.shape)
            name, other = f"party{party}", f"party{1 - party}"
            self.tape.entries.append(Entry(name, sent, self.rounds, Kind.EXCHANGE, 0, data, message.bits, shape, other))
