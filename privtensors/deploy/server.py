"""The server: party 1. It holds the model, sees public descriptors and shares, and learns no result."""

from __future__ import annotations

import hashlib
import secrets
import select
import time
from pathlib import Path
from typing import Any, Final, Self

import torch

from privtensors.core.checks import checked_device
from privtensors.core.session import Session
from privtensors.deploy.config import DEALER, SERVER, Deployment
from privtensors.deploy.descriptor import Descriptor
from privtensors.deploy.ids import MemoryIds
from privtensors.deploy.kinds import kind_of
from privtensors.deploy.links import (
    ID_SIZE,
    SEED_SIZE,
    Label,
    Note,
    Refusal,
    answer,
    ask,
    hear,
    keep_waiting,
    number,
    read_number,
    refuse,
    say,
)
from privtensors.deploy.parts import load_server_model
from privtensors.deploy.prepared import Kept, KeptCorrections, Shelf, receive
from privtensors.deploy.rooms import LOG, SETUP, NotTheReceiver, Room, deployed_technique, kept_tokens, reach
from privtensors.deploy.service import Figures, Service
from privtensors.deploy.stream import CorrectionStream
from privtensors.deploy.terms import computing_terms, terms_of
from privtensors.deploy.turns import Turns
from privtensors.errors import FrameError, IdUsed, PartyBusy, PeerTimeout, RequestRefused
from privtensors.hf.families import family_for
from privtensors.hf.model import PrivateModel
from privtensors.hf.wrap import assemble
from privtensors.transport.frames import Kind, op_id
from privtensors.transport.peer import Peer
from privtensors.transport.tcp import TcpChannel
from privtensors.transport.tls import Identity

_DEALER_SHARE: Final = 0.75  # of a client's patience: it hears of a dealer that is gone before it gives up the server


class Server:
    """Serves a deployment's model to its clients, each in a session of its own.

    Args:
        deployment: The policy file.
        keys: Folder of certificates; default the file's.
        model: Folder of the model; default the file's.
        address: Where to listen; default the file's.
        device: Where this party computes, e.g. ``"cuda"``; default the CPU. The other parties' results do not depend on it.

    Raises:
        InvalidInput: The folder holds no model for the task.
        ParameterError: There is no such device.
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
        device: str | None = None,
    ) -> None:
        self.device = checked_device(device)
        self.deployment = deployment
        self.technique = deployed_technique(deployment.policy)
        self.identity = Identity.load(keys or deployment.keys, SERVER)
        self.model = load_server_model(deployment, model or deployment.models[SERVER])
        self.terms, self.dealer_terms = computing_terms(deployment, self.model, self.device), terms_of(deployment, self.model)
        limits = deployment.limits
        self.turns = Turns(limits.running, limits.waiting)
        self.ids = MemoryIds()
        self.service = Service(
            self.identity, deployment.clients, address or deployment.server, self.terms, limits, limits.clients, self._serve
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.service.__exit__()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that clients use."""
        return self.service.address

    def figures(self) -> Figures:
        """What was done so far, and what runs."""
        found = self.service.figures
        found.running, found.waiting = self.turns.running, self.turns.length
        return found

    def run(self) -> None:
        """Serve until :meth:`stop`."""
        self.service.run()

    def stop(self) -> None:
        """End :meth:`run`; safe in a signal handler."""
        self.service.stop()

    def _serve(self, client: Peer) -> None:
        limits = self.deployment.limits
        with client:
            # The client reaches the dealer first, which may not have started yet.
            if hear(client, Label.OPEN, asked=True, timeout=limits.connect_s + limits.idle_s) is None:
                return
            timeout = min(limits.connect_s, _DEALER_SHARE * limits.idle_s)
            with reach(self.deployment, DEALER, self.identity, self.dealer_terms, timeout) as dealer:
                self.service.count(sessions=1)
                try:
                    ServerSession(self, client, dealer).run()
                finally:
                    self.service.count(sessions=-1)


class ServerSession:
    """One client's session at the server."""

    def __init__(self, server: Server, client: Peer, dealer: Peer) -> None:
        self._server, self._client, self._dealer = server, client, dealer
        self._limits = server.deployment.limits
        self._session = Session(recorder=NotTheReceiver(), device=server.device)
        self._private: PrivateModel | None = None
        self._caches: dict[int, tuple[Any, int]] = {}  # by number: the cache and its batch
        self._family = family_for(server.model.config.model_type, server.technique)
        self._shelf = Shelf(self._limits.prepared_mib << 20)
        ask(dealer, Label.OPEN, client.session, client.name.encode())
        answer(dealer, Label.READY)
        say(client, Label.READY)
        seed = secrets.token_bytes(SEED_SIZE)
        theirs = client.exchange(Kind.REQUEST, [seed], due=SEED_SIZE, op=op_id(Label.SEEDS))
        self._room = Room(server.technique, self._session, TcpChannel(client, 1), (bytes(theirs.payload), seed))

    def run(self) -> None:
        """Serve requests until the client says goodbye.

        Raises:
            TransportError: A peer is gone or stalled, or sends what is not due. The session is over then.
        """
        service = self._server.service
        LOG.info("session of %s opened", self._client.name)
        while not service.ending:
            note = hear(self._client, Label.FORWARD, Label.PREPARE, Label.FORGET, asked=True) if self._await_request() else None
            if note is None:
                break
            if note.label == Label.FORGET:
                self._caches.pop(read_number(note.data), None)
                continue
            service.busy(True)
            try:
                self._request(note) if note.label == Label.FORWARD else self._prepare(note)
            finally:
                service.busy(False)
        LOG.info("session of %s closed", self._client.name)

    def _await_request(self) -> bool:
        """Whether the client speaks. The dealer's end ends the session now, so that the client's next request opens another."""
        if self._client.pending:
            return True
        poll = select.poll()
        for peer in (self._client, self._dealer):
            peer.check_open()  # a closed one cannot be polled
            poll.register(peer, select.POLLIN)
        ready = {number_of for number_of, _ in poll.poll(self._limits.session_s * 1000)}
        if self._dealer.pending or self._dealer.fileno() in ready:
            hear(self._dealer, asked=True)  # it says nothing but goodbye, or that it gives up
            return False
        if not ready:
            raise PeerTimeout(f"no request for {self._limits.session_s:g} s", where=SERVER, fix="open another session")
        return True

    def _request(self, note: Note) -> None:
        service = self._server.service
        request, body = bytes(note.data[:ID_SIZE]), bytes(note.data[ID_SIZE:])
        if len(request) != ID_SIZE or (body == SETUP) == (self._private is not None):
            raise FrameError("a request that is not due", where=self._client.name, fix="install the same release at every party")
        descriptor = None if body == SETUP else Descriptor.decode(body)
        if (reason := self._refusal(descriptor, request)) is not None:
            service.count(refused=1)
            refuse(self._client, reason)
            return
        start, before = time.perf_counter(), self._session.meter.reading()
        try:
            with self._server.turns.turn() as place:
                keep_waiting([self._client], place.ready)
                say(self._client, Label.GO)
                self._compute(request, descriptor)
        except PartyBusy:
            service.count(refused=1)
            refuse(self._client, Refusal.BUSY)
            return
        except RequestRefused as error:  # the dealer's word: it told the client as well, and nothing was dealt
            LOG.warning("request of %s not dealt for: %s", self._client.name, error)
            service.count(refused=1)
            return
        spent, seconds = self._session.meter.reading() - before, time.perf_counter() - start
        service.count(served=int(descriptor is not None), rounds=spent.rounds, bytes_sent=spent.bytes_sent)
        service.figures.last_s = seconds
        what = "set-up" if descriptor is None else f"{descriptor.tokens} tokens"
        sizes = (spent.rounds, spent.bytes_sent / 1e6, spent.dealer_bytes / 1e6, seconds)
        LOG.info("%s for %s: %d rounds, %.1f MB sent, %.1f MB from the dealer, %.2f s", what, self._client.name, *sizes)

    def _refusal(self, descriptor: Descriptor | None, request: bytes) -> Refusal | None:
        """Why a well-formed request is not taken, judged by what is public about it."""
        kept = self._shelf.find(request)
        if kept is not None:
            same = descriptor is not None and not descriptor.cache and kind_of(self._view(descriptor)) == kept.kind
            return None if same else Refusal.DISAGREE
        try:
            self._server.ids.use(request)
        except IdUsed:
            return Refusal.USED_ID
        return None if descriptor is None else self._unfit(descriptor)

    def _unfit(self, descriptor: Descriptor) -> Refusal | None:
        if descriptor.tokens > self._limits.tokens:
            return Refusal.TOO_LARGE
        if not descriptor.suits(self._server.model, self._family):
            return Refusal.UNSUITED
        if descriptor.past:
            kept = self._caches.get(descriptor.cache)
            batch = (descriptor.shape("input_ids") or (0,))[0]
            if kept is None or kept[1] != batch or kept_tokens(kept[0]) != descriptor.past:
                return Refusal.UNKNOWN_CACHE
        elif descriptor.cache in self._caches:
            return Refusal.UNKNOWN_CACHE
        return None

    def _prepare(self, note: Note) -> None:
        """Fetch a request's corrections before it is made."""
        start, service = time.perf_counter(), self._server.service
        request, view = bytes(note.data[:ID_SIZE]), Descriptor.decode(note.data[ID_SIZE:])
        if len(request) != ID_SIZE or view.cache or view != self._view(view) or self._private is None:
            raise FrameError("a request that cannot be prepared", where=self._client.name, fix="install the same release")
        kind, total = kind_of(view), 0
        reason = self._refusal(view, request) or (None if self._shelf.may_fit(kind) else Refusal.NO_ROOM)
        try:
            if reason is None:
                with self._server.turns.turn() as place:
                    keep_waiting([self._client], place.ready)
                    say(self._client, Label.GO)
                    seed, stream = self._dealt(request, view.encode())
                    try:
                        total = stream.total
                        data = receive(stream, keep=self._shelf.fits(total), alive=lambda: say(self._client, Label.WAITING))
                    finally:
                        stream.close()
                if data is None:
                    reason = Refusal.NO_ROOM
                else:
                    self._shelf.put(request, Kept(kind, seed, data))
        except PartyBusy:
            reason = Refusal.BUSY
        except RequestRefused as error:  # the dealer's word, as in _request
            LOG.warning("request of %s not prepared: %s", self._client.name, error)
            service.count(refused=1)
            return
        if reason is not None:
            self._shelf.note(kind, total)
            service.count(refused=1)
            refuse(self._client, reason)
            return
        say(self._client, Label.READY)
        LOG.info("prepared for %s: %.1f MB from the dealer, %.2f s", self._client.name, total / 1e6, time.perf_counter() - start)

    def _compute(self, request: bytes, descriptor: Descriptor | None) -> None:
        kept = self._shelf.take(request)
        stream: CorrectionStream | KeptCorrections
        if kept is not None:
            ask(self._dealer, Label.CREDIT, number(0))  # of nothing: the session is in use
            seed, stream = kept.seed, kept.corrections()
        else:
            seed, stream = self._dealt(request, SETUP if descriptor is None else self._view(descriptor).encode())
        try:
            with self._room.dealt(seed, stream), torch.no_grad():
                self._set_up() if descriptor is None else self._forward(descriptor)
        finally:
            stream.close()

    def _dealt(self, request: bytes, view: bytes) -> tuple[bytes, CorrectionStream]:
        """The dealer's seed, and its corrections on their way."""
        window = self._limits.buffer_mib << 20
        ask(self._dealer, Label.FORWARD, request, hashlib.sha256(view).digest(), number(window))
        dealt = answer(self._dealer, Label.SEED)
        stream = CorrectionStream(self._dealer, read_number(dealt[SEED_SIZE:]), window, self._limits.idle_s)
        return bytes(dealt[:SEED_SIZE]), stream

    def _view(self, descriptor: Descriptor) -> Descriptor:
        """What the dealer gets."""
        return descriptor.for_dealer(causal=self._family.decoder)

    def _set_up(self) -> None:
        server = self._server
        self._private = assemble(server.model, server.deployment.policy, server.technique, self._session, progress=False, client_here=False)

    def _forward(self, descriptor: Descriptor) -> None:
        assert self._private is not None
        cache = None
        if descriptor.cache:
            cache = self._caches[descriptor.cache][0] if descriptor.past else self._new_cache(descriptor)
        model = self._private.model
        model(**descriptor.arguments(model.config, self._family, cache))  # what comes out is a placeholder

    def _new_cache(self, descriptor: Descriptor) -> Any:
        from transformers import DynamicCache

        while len(self._caches) >= self._limits.caches:
            del self._caches[next(iter(self._caches))]
        assert self._private is not None
        cache = DynamicCache(config=self._private.model.config)
        self._caches[descriptor.cache] = (cache, (descriptor.shape("input_ids") or (0,))[0])
        return cache
