"""The dealer: it makes correlated randomness for pairs of a client and the server. It sees shapes, no value and no mask of a request."""

from __future__ import annotations

import hashlib
import select
import threading
import time
from collections.abc import Mapping
from concurrent.futures import wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from privtensors.backends.mpc.program import DealerState, Program
from privtensors.deploy.config import DEALER, SERVER, Deployment
from privtensors.deploy.descriptor import Descriptor
from privtensors.deploy.ids import Dealt, DurableIds, FreshSupply, Ids, MemoryIds, Supply
from privtensors.deploy.kinds import kind_of
from privtensors.deploy.links import ID_SIZE, Label, Note, Refusal, hear, keep_waiting, number, read_number, refuse, say
from privtensors.deploy.parts import load_dealer_model
from privtensors.deploy.programs import Generation, Programs, Traced
from privtensors.deploy.rooms import LOG, SETUP, deployed_technique
from privtensors.deploy.service import Figures, Service
from privtensors.deploy.store import Store, StoredSupply
from privtensors.deploy.stream import LEAST_WINDOW, send_corrections
from privtensors.deploy.terms import terms_of
from privtensors.errors import CorrelationError, FrameError, IdUsed, ParameterError, PeerLost, PeerTimeout, WrongPeer
from privtensors.transport.peer import Peer
from privtensors.transport.tls import Identity

_HASH_SIZE = 32


@dataclass(slots=True)
class _Guest:
    """Who came first to a session, and whom it waits for."""

    peer: Peer
    client: str
    other: Peer | None = None
    met: threading.Event = field(default_factory=threading.Event)


class DealerServer:
    """Deals for a deployment.

    Args:
        deployment: The policy file.
        keys: Folder of certificates; default the file's.
        model: Folder with the model's ``config.json``; default the file's.
        address: Where to listen; default the file's.
        store: Folder of randomness dealt ahead, and of used ids, which are then remembered across restarts and crashes; default
            none: all is dealt on request, and ids are remembered while this object lives.
        stored_only: Refuse what is not in store, instead of dealing it on request.

    Raises:
        CorrelationError: The store is damaged, of another deployment, or in use by another dealer; or all of it is used up and
            nothing else may be dealt.
        InvalidInput: The folder holds no configuration for the task.
        PolicyError: The policy cannot be deployed.
        TransportError: Certificates cannot be used, or the address is taken.
    """

    def __init__(
        self,
        deployment: Deployment,
        *,
        keys: Path | None = None,
        model: Path | None = None,
        address: tuple[str, int] | None = None,
        store: Path | None = None,
        stored_only: bool = False,
    ) -> None:
        self.deployment = deployment
        self.ids: Ids = MemoryIds()
        self.supply: Supply = FreshSupply()
        technique = deployed_technique(deployment.policy)
        identity = Identity.load(keys or deployment.keys, DEALER)
        structure = load_dealer_model(deployment, model or deployment.models[DEALER])
        terms = terms_of(deployment, structure)
        self.programs = Programs(structure, deployment.policy, technique)
        limits = deployment.limits
        callers = (SERVER, *deployment.clients)
        self._store = ExitStack()
        if store is not None or stored_only:
            self._open_store(store, terms, stored_only)
        try:
            self.service = Service(identity, callers, address or deployment.dealer, terms, limits, 2 * limits.clients + 2, self._serve)
        except BaseException:
            self._store.close()
            raise
        self._lobby: dict[bytes, _Guest] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.service.__exit__()
        self.programs.close()
        self._store.close()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that the parties use."""
        return self.service.address

    def figures(self) -> Figures:
        """What was done so far, and what runs."""
        return self.service.figures

    def run(self) -> None:
        """Deal until :meth:`stop`."""
        self.service.run()

    def stop(self) -> None:
        """End :meth:`run`; safe in a signal handler."""
        self.service.stop()

    def _open_store(self, folder: Path | None, terms: Mapping[str, str], stored_only: bool) -> None:
        if folder is None:
            raise ParameterError("stored_only without a store", where="DealerServer", fix="give the store's folder")
        store = Store(folder, terms, self.programs.setup.program.digest)
        self._store.callback(store.close)
        if stored_only and not store.unused:
            self._store.close()
            raise CorrelationError("the store is used up", where=str(folder), fix="deal more: privtensors deal")
        LOG.info("%d unused bundles in store", store.unused)
        self.ids, self.supply = DurableIds(store.journal), StoredSupply(store, stored_only=stored_only)

    def _serve(self, peer: Peer) -> None:
        limits = self.deployment.limits
        note = hear(peer, Label.OPEN, asked=True, timeout=limits.idle_s)
        if note is None or len(note.data) < ID_SIZE:
            peer.close()
            return
        # The server says whose session it is, so that no other client can take the place.
        session, named = bytes(note.data[:ID_SIZE]), bytes(note.data[ID_SIZE:]).decode("ascii", "replace")
        client = named if peer.name == SERVER else peer.name
        with self._lock:
            guest = self._lobby.pop(session, None)
            if guest is None:
                guest = self._lobby[session] = _Guest(peer, client)
            else:
                self._check_pair(guest, peer, client)
                guest.other = peer
                guest.met.set()
                return  # the other one's thread serves both
        try:
            self._await(guest, limits.idle_s)  # the other one calls as soon as it knows of this one
        finally:
            with self._lock:
                self._lobby.pop(session, None)
        other = guest.other
        assert other is not None
        pair = {p.name: p for p in (peer, other)}
        with other, peer:
            self.service.count(sessions=1)
            try:
                DealerSession(self, pair[client], pair[SERVER]).run()
            finally:
                self.service.count(sessions=-1)

    def _check_pair(self, guest: _Guest, peer: Peer, client: str) -> None:
        if guest.client != client or {guest.peer.name, peer.name} != {SERVER, client}:
            raise WrongPeer(f"{peer.name!r} asks for a session of others", where=DEALER, fix="start the session again")

    def _await(self, guest: _Guest, seconds: float) -> None:
        deadline = time.monotonic() + seconds

        def met(moment: float) -> bool:
            if guest.met.wait(moment):
                return True
            if time.monotonic() >= deadline or self.service.ending:
                with self._lock:
                    if not guest.met.is_set():
                        raise PeerTimeout("the other party did not come", where=DEALER, fix="start client and server again")
            return False

        keep_waiting([guest.peer], met)


class DealerSession:
    """One pair's session at the dealer."""

    def __init__(self, dealer: DealerServer, client: Peer, server: Peer) -> None:
        self._dealer, self._client, self._server = dealer, client, server
        self._limits = dealer.deployment.limits
        self._state, self._supply = DealerState(), dealer.supply.open()
        self._ready = False
        self._generations: dict[int, Generation] = {}

    def run(self) -> None:
        """Deal until a party says goodbye.

        Raises:
            TransportError: A party is gone or stalled, or sends what is not due. The session is over then.
        """
        try:
            self._run()
        finally:
            self._supply.close()

    def _run(self) -> None:
        service = self._dealer.service
        for peer in (self._client, self._server):
            say(peer, Label.READY)
        while not service.ending:
            first = self._next()
            note = hear(first, Label.FORWARD, Label.FORGET, Label.CREDIT, asked=True)
            if note is None:
                return
            if self._aside(note, first):
                continue
            service.busy(True)
            try:
                self._request(note, first)
            finally:
                service.busy(False)

    def _aside(self, note: Note, peer: Peer) -> bool:
        """Take in what is said beside requests: a cache to be forgotten, a sign of life; whether it was that."""
        if note.label == Label.FORGET:
            if peer is not self._client:
                raise FrameError("a message that is the client's", where=peer.name, fix="install the same release")
            self._generations.pop(read_number(note.data), None)
        return note.label != Label.FORWARD

    def _next(self) -> Peer:
        """Whoever speaks next."""
        peers = (self._client, self._server)
        poll = select.poll()
        for peer in peers:
            if peer.pending:
                return peer
            peer.check_open()  # a closed one cannot be polled
            poll.register(peer, select.POLLIN)
        ready = {number_of for number_of, _ in poll.poll(self._limits.session_s * 1000)}
        for peer in peers:
            if peer.fileno() in ready:
                return peer
        raise PeerTimeout(f"no request for {self._limits.session_s:g} s", where=DEALER, fix="open another session")

    def _request(self, note: Note, first: Peer) -> None:
        second = self._server if first is self._client else self._client
        other = hear(second, Label.FORWARD, Label.CREDIT, Label.FORGET, asked=True)
        while other is not None and self._aside(other, second):
            other = hear(second, Label.FORWARD, Label.CREDIT, Label.FORGET, asked=True)
        if other is None:
            raise PeerLost("a party said goodbye within a request", where=DEALER, fix="see its log")
        asked, agreed = (note, other) if first is self._client else (other, note)
        request, view = bytes(asked.data[:ID_SIZE]), bytes(asked.data[ID_SIZE:])
        if len(agreed.data) != ID_SIZE + _HASH_SIZE + 8:
            raise FrameError("a malformed request", where=SERVER, fix="install the same release at every party")
        digest = bytes(agreed.data[ID_SIZE : ID_SIZE + _HASH_SIZE])
        window = read_number(agreed.data[ID_SIZE + _HASH_SIZE :])
        if window < LEAST_WINDOW:
            raise FrameError("an impossible buffer", where=SERVER, fix="install the same release at every party")
        if request != bytes(agreed.data[:ID_SIZE]) or digest != hashlib.sha256(view).digest():
            self._refuse(Refusal.DISAGREE)
            return
        self._deal(request, view, window)

    def _deal(self, request: bytes, view: bytes, window: int) -> None:
        start, service = time.perf_counter(), self._dealer.service
        generation: Generation | None = None
        descriptor: Descriptor | None = None
        if view == SETUP:
            if self._ready:
                raise FrameError("a second set-up", where=DEALER, fix="install the same release at every party")
            traced = self._dealer.programs.setup
            self._ready = True
        else:
            descriptor = Descriptor.decode(view)
            if descriptor.tokens > self._limits.tokens:
                self._refuse(Refusal.TOO_LARGE)
                return
            if not self._dealer.programs.suit(descriptor):
                self._refuse(Refusal.UNSUITED)
                return
            if descriptor.cache:
                generation = self._generation(descriptor)
                if generation is None:
                    self._refuse(Refusal.UNKNOWN_CACHE)
                    return
            traced = self._find(descriptor, generation)
        try:
            self._dealer.ids.use(request)
            dealt = self._draw(traced.program, descriptor, generation)
        except CorrelationError as error:
            LOG.error("nothing dealt for %s: %s", self._client.name, error)
            self._refuse(Refusal.USED_ID if isinstance(error, IdUsed) else Refusal.NOT_STORED)
            return
        total = traced.program.correction_bytes
        say(self._client, Label.SEED, dealt.seeds[0], number(total))
        say(self._server, Label.SEED, dealt.seeds[1], number(total))
        sent = send_corrections(self._server, dealt.corrections, window)
        if generation is not None:
            generation.at = traced
        seconds = time.perf_counter() - start
        service.count(served=int(view != SETUP), bytes_sent=sent)
        service.figures.last_s = seconds
        LOG.info("%s for %s: %.1f MB, %.2f s", "sent from store" if dealt.stored else "dealt", self._client.name, sent / 1e6, seconds)

    def _draw(self, program: Program, descriptor: Descriptor | None, generation: Generation | None) -> Dealt:
        if descriptor is None:
            return self._supply.set_up(program, self._state)
        if generation is not None:
            return self._supply.draw(program, generation.state, kind=None)
        return self._supply.draw(program, self._state, kind=kind_of(descriptor))

    def _find(self, descriptor: Descriptor, generation: Generation | None) -> Traced:
        future = self._dealer.programs.find(descriptor, generation.at if generation is not None else None)
        keep_waiting((self._client, self._server), lambda seconds: bool(wait([future], seconds).done))
        return future.result()

    def _generation(self, descriptor: Descriptor) -> Generation | None:
        kept = self._generations.get(descriptor.cache)
        if descriptor.past:
            return kept if kept is not None and kept.at is not None and kept.at.past == descriptor.past else None
        if kept is not None:
            return None
        while len(self._generations) >= self._limits.caches:
            del self._generations[next(iter(self._generations))]
        found = self._generations[descriptor.cache] = Generation.begin(self._state)
        return found

    def _refuse(self, reason: Refusal) -> None:
        self._dealer.service.count(refused=1)
        for peer in (self._client, self._server):
            refuse(peer, reason)
