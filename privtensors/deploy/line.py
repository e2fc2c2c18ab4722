"""The client's connections in one session: set-up, requests, and requests prepared ahead."""

from __future__ import annotations

import secrets
import time
import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from privtensors.core.session import Session
from privtensors.deploy.config import DEALER, SERVER, Deployment
from privtensors.deploy.links import ID_SIZE, SEED_SIZE, Label, answer, ask, number, read_number
from privtensors.deploy.rooms import Room, deployed_technique, reach
from privtensors.transport.frames import Kind, Reason, op_id
from privtensors.transport.tcp import TcpChannel
from privtensors.transport.tls import Identity


@dataclass(frozen=True, slots=True)
class RequestCost:
    """What one forward, or the set-up of a session, took at the client.

    Attributes:
        seconds: From the announcement to the result, everything included.
        queue_seconds: Until the server took the request up.
        dealer_seconds: Until the dealer said that it deals; 0 for a request that was prepared.
        offline_seconds: Spent here on correlated randomness: ``dealer_seconds``, and expanding seeds.
        rounds: Exchanges with the server.
        bytes_sent: Bytes sent to the server in them; it sends as many.
        dealer_bytes: Corrections that the dealer sent to the server for it.
        prepared: Whether they were there before the request was made.
    """

    seconds: float
    queue_seconds: float
    dealer_seconds: float
    offline_seconds: float
    rounds: int
    bytes_sent: int
    dealer_bytes: int
    prepared: bool

    @property
    def online_seconds(self) -> float:
        """The rest. What the *server* waited for corrections is in it, so of a request that was not prepared this is no measure."""
        return self.seconds - self.queue_seconds - self.offline_seconds


@dataclass(frozen=True, slots=True)
class Prepared:
    """What preparing requests took.

    Attributes:
        count: Requests.
        seconds: Until the server had everything.
        dealer_bytes: Corrections that the dealer sent to the server.
    """

    count: int
    seconds: float
    dealer_bytes: int


@dataclass(frozen=True, slots=True)
class Places:
    """Where the client connects, as whom, on which terms.

    Attributes:
        deployment: The policy file.
        identity: The client's certificate and key.
        model: The client's part of the model.
        terms: What the server must agree on.
        dealer_terms: What the dealer must agree on.
        timeout: Seconds to reach each of them.
    """

    deployment: Deployment
    identity: Identity
    model: Any
    terms: Mapping[str, str]
    dealer_terms: Mapping[str, str]
    timeout: float


@dataclass(frozen=True, slots=True)
class _Ready:
    """A prepared request at the client."""

    request: bytes
    kind: str
    seed: bytes = field(repr=False)
    size: int


class Line:
    """The client's connections in one session, and the request under way.

    Raises:
        TransportError: A party cannot be reached, or is not the one expected.
    """

    def __init__(self, remote: Places, session: Session) -> None:
        self._session = session
        self._open = ExitStack()
        self._fresh = True
        deadline = time.monotonic() + remote.timeout
        try:
            self.server = self._open.enter_context(reach(remote.deployment, SERVER, remote.identity, remote.terms, remote.timeout))
            left = max(1.0, deadline - time.monotonic())
            self.dealer = self._open.enter_context(reach(remote.deployment, DEALER, remote.identity, remote.dealer_terms, left))
            ask(self.dealer, Label.OPEN, self.server.session)
            ask(self.server, Label.OPEN)
            answer(self.server, Label.READY)
            answer(self.dealer, Label.READY)
            seed = secrets.token_bytes(SEED_SIZE)
            theirs = self.server.exchange(Kind.REQUEST, [seed], due=SEED_SIZE, op=op_id(Label.SEEDS))
            technique = deployed_technique(remote.deployment.policy)
            self._room = Room(technique, session, TcpChannel(self.server, 0), (seed, bytes(theirs.payload)))
        except BaseException:
            self.abort()
            raise
        self.caches: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._next_cache = 0
        self._dropped: list[int] = []
        self._computing: ExitStack | None = None
        self._shelf: list[_Ready] = []

    def begin(self, body: bytes, view: bytes, kind: str | None = None) -> None:
        """Announce a request, wait for its turn and for the dealer; afterwards the protocols may run.

        Args:
            body: What the server gets.
            view: What the dealer gets.
            kind: Take a prepared request of this kind where there is one: the dealer is not asked then.

        Raises:
            PartyBusy, RequestRefused: It is not taken; the session goes on.
            TransportError: A party is gone, stalled, or sends what is not due; the session is over.
        """
        for cache in self._take_dropped():
            ask(self.server, Label.FORGET, number(cache))
            ask(self.dealer, Label.FORGET, number(cache))
        ready = next((r for r in self._shelf if r.kind == kind), None)
        request, self._fresh = new_id() if ready is None else ready.request, True
        self._start, self._before = time.perf_counter(), self._session.meter.reading()
        ask(self.server, Label.FORWARD, request, body)
        answer(self.server, Label.GO)
        self._fresh = False
        self._queued = time.perf_counter()
        if ready is None:
            seed, self._dealer_bytes = self._ask_dealer(request, view)
        else:
            self._shelf.remove(ready)
            seed, self._dealer_bytes = ready.seed, ready.size
        self._prepared, self._dealt = ready is not None, time.perf_counter()
        self._computing = ExitStack()
        self._computing.enter_context(self._room.dealt(seed, None))

    def end(self) -> RequestCost:
        """The request is answered."""
        assert self._computing is not None
        computing, self._computing = self._computing, None
        computing.close()
        spent = self._session.meter.reading() - self._before
        dealer_s = 0.0 if self._prepared else self._dealt - self._queued
        return RequestCost(
            time.perf_counter() - self._start,
            self._queued - self._start,
            dealer_s,
            dealer_s + spent.offline_seconds,
            spent.rounds,
            spent.bytes_sent,
            self._dealer_bytes,
            self._prepared,
        )

    def prepare(self, view: bytes, kind: str) -> int:
        """Have the correlated randomness of a request brought to the parties now; bytes of corrections.

        Args:
            view: What the dealer gets, and the server.
            kind: Of it.

        Raises:
            PartyBusy, RequestRefused: It is not prepared, e.g. for lack of room; the session goes on.
            TransportError: As :meth:`begin`.
        """
        request, self._fresh = new_id(), True
        ask(self.server, Label.PREPARE, request, view)
        answer(self.server, Label.GO)
        self._fresh = False
        seed, size = self._ask_dealer(request, view)
        answer(self.server, Label.READY)
        self._shelf.append(_Ready(request, kind, seed, size))
        return size

    @property
    def prepared(self) -> int:
        """Requests that were prepared and not made."""
        return len(self._shelf)

    @property
    def under_way(self) -> bool:
        """Whether a request was begun and not ended."""
        return self._computing is not None

    @property
    def fresh(self) -> bool:
        """Whether nothing was dealt for the request that is being announced: it may be sent again in another session."""
        return self._fresh

    def number_of(self, cache: Any) -> int:
        """The number under which the other parties keep ``cache``; a new one for a new cache."""
        if cache not in self.caches:
            self._next_cache += 1
            self.caches[cache] = self._next_cache
            weakref.finalize(cache, self._dropped.append, self._next_cache)
        return self.caches[cache]

    def abort(self, reason: Reason = Reason.LOCAL) -> None:
        """Tell both parties to give up, and forget the session. Never raises."""
        for name in ("server", "dealer"):
            peer = getattr(self, name, None)
            if peer is not None:
                peer.abort(reason)

    def close(self) -> None:
        """Say goodbye. Never raises."""
        self._open.close()

    def _ask_dealer(self, request: bytes, view: bytes) -> tuple[bytes, int]:
        """This party's seed, and the bytes that the other one gets."""
        ask(self.dealer, Label.FORWARD, request, view)
        dealt = answer(self.dealer, Label.SEED)
        return bytes(dealt[:SEED_SIZE]), read_number(dealt[SEED_SIZE:])

    def _take_dropped(self) -> list[int]:
        taken, self._dropped[:] = list(self._dropped), []
        return taken


def new_id() -> bytes:
    """A request id: 128 random bits."""
    return secrets.token_bytes(ID_SIZE)
