"""The client: party 0. ``connect`` gives a model that is called like a wrapped one and computed by three parties."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self

from privtensors.core.session import Session
from privtensors.deploy.config import Deployment
from privtensors.deploy.descriptor import Descriptor, describe
from privtensors.deploy.kinds import expected, kind_of
from privtensors.deploy.line import Line, Places, Prepared, RequestCost
from privtensors.deploy.parts import load_client_model
from privtensors.deploy.rooms import LOG, SETUP, deployed_technique, kept_tokens
from privtensors.deploy.terms import computing_terms, terms_of
from privtensors.errors import InvalidInput, PartyBusy, PeerTimeout, PrivTensorsError, RequestRefused, TransportError
from privtensors.hf.model import PrivateModel
from privtensors.hf.wrap import assemble
from privtensors.policy import Explanation
from privtensors.transport.tls import Identity


class _Requests:
    """What the private model tells of its forwards; keeps the session, and opens another when it was lost."""

    def __init__(self, places: Places, session: Session) -> None:
        self._places, self._session = places, session
        self.remote: RemoteModel | None = None
        self._line: Line | None = None
        self.costs: list[RequestCost] = []
        self.setup: RequestCost | None = None

    def open(self, timeout: float | None = None) -> PrivateModel:
        """Open a session: the model's weights are shared and opened under masks. Reaches the parties within ``timeout``, if given."""
        places = self._places if timeout is None else dataclasses.replace(self._places, timeout=timeout)
        line = Line(places, self._session)
        try:
            line.begin(SETUP, SETUP)
            deployment = self._places.deployment
            private = assemble(
                self._places.model, deployment.policy, deployed_technique(deployment.policy), self._session, progress=False, requests=self
            )
            self.setup = line.end()
        except BaseException:
            line.abort()
            raise
        self._line = line
        LOG.info("session opened: %d rounds, %.1f MB sent, %.2f s", self.setup.rounds, self.setup.bytes_sent / 1e6, self.setup.seconds)
        return private

    def begin(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """See :class:`privtensors.hf.boundary.Requests`."""
        self._check_open()
        new_line = self._line is None
        line = self._line or self._renew()
        inputs, cache = self._with_cache(inputs, line)
        try:
            self._announce(line, inputs, cache)
        except (PrivTensorsError, KeyboardInterrupt) as error:
            if self._goes_on(error):
                raise
            lost = _ended(error) and line.fresh and not new_line and not kept(cache)
            self._drop()
            if not lost:
                raise
            # The session ended while nobody asked for anything, e.g. by its time limit: nothing was dealt, so ask in another.
            self._announce(self._renew(), inputs, cache)
        return inputs

    def _announce(self, line: Line, inputs: dict[str, Any], cache: Any) -> None:
        remote = self.remote
        assert remote is not None
        number_of = 0 if cache is None else line.number_of(cache)
        descriptor = describe(inputs, remote.family, cache=number_of, past=kept(cache))
        view = self._for_dealer(descriptor)
        line.begin(descriptor.encode(), view.encode(), None if number_of else kind_of(view))

    def _for_dealer(self, descriptor: Descriptor) -> Descriptor:
        assert self.remote is not None
        return descriptor.for_dealer(causal=self.remote.family.decoder)

    def prepare(self, request: Descriptor, count: int) -> Prepared:
        """See :meth:`RemoteModel.prepare`; ``request`` is the dealer's view of it."""
        self._check_open()
        start, size = time.perf_counter(), 0
        body, kind, new_line = request.encode(), kind_of(request), self._line is None
        line = self._line or self._renew()
        for _ in range(count):
            try:
                size += line.prepare(body, kind)
            except (PrivTensorsError, KeyboardInterrupt) as error:
                if self._goes_on(error):
                    raise
                lost = _ended(error) and line.fresh and not new_line and not line.prepared
                self._drop()
                if not lost:
                    raise
                line, new_line = self._renew(), True  # the session had ended, as in begin()
                size += line.prepare(body, kind)
        return Prepared(count, time.perf_counter() - start, size)

    @property
    def prepared(self) -> int:
        """Requests that were prepared and not made."""
        return 0 if self._line is None else self._line.prepared

    def _check_open(self) -> None:
        """Refuse a closed model; clear away a request that an interrupt left."""
        if self.remote is None or self.remote.closed:
            raise TransportError("the connection is closed", where="RemoteModel", fix="call privtensors.deploy.connect again")
        if self._line is not None and self._line.under_way:
            self._drop()

    def _with_cache(self, inputs: dict[str, Any], line: Line) -> tuple[dict[str, Any], Any]:
        """The arguments with a cache that all parties keep, or with none: one is made only where it was asked for."""
        from transformers import DynamicCache

        remote = self.remote
        assert remote is not None
        if not remote.family.decoder:
            return inputs, None
        cache = inputs.get("past_key_values")
        if cache is None:
            if not inputs.get("use_cache"):
                return {**inputs, "use_cache": False}, None
            cache = DynamicCache(config=remote.config)
        if type(cache) is not DynamicCache:
            what = f"a {type(cache).__name__} is not kept by the other parties"
            raise InvalidInput(what, where="past_key_values", fix="pass transformers' DynamicCache, or none")
        if kept(cache) and cache not in line.caches:
            raise InvalidInput("the cache belongs to another session", where="past_key_values", fix="start the generation again")
        return {**inputs, "past_key_values": cache, "use_cache": True}, cache

    def done(self) -> None:
        """See :class:`privtensors.hf.boundary.Requests`."""
        if self._line is not None and self._line.under_way:
            self.costs.append(self._line.end())

    def failed(self) -> None:
        """See :class:`privtensors.hf.boundary.Requests`."""
        if self._line is not None and self._line.under_way:
            self._drop()

    def close(self) -> None:
        """End the session."""
        line, self._line = self._line, None
        if line is not None:
            line.abort() if line.under_way else line.close()

    def _goes_on(self, error: BaseException) -> bool:
        """Whether the session outlives ``error``: a request that was not taken, or one that never left."""
        refused = isinstance(error, RequestRefused | PartyBusy)
        return refused or not isinstance(error, TransportError | KeyboardInterrupt)

    def _drop(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.abort()

    def _renew(self) -> Line:
        """Another session for the same private model: its weights are shared anew."""
        assert self.remote is not None
        # Within a request a party that is gone counts as lost as fast as one that falls silent.
        fresh = self.open(min(self._places.timeout, self._places.deployment.limits.idle_s))
        for where, module in fresh.model.named_modules():
            self.remote.model.get_submodule(where)._parameters.update(module._parameters)
        assert self._line is not None
        return self._line


def _ended(error: BaseException) -> bool:
    """Whether a session is over, and the other party may still answer: one that is silent is not waited for twice."""
    return isinstance(error, TransportError) and not isinstance(error, PeerTimeout)


class RemoteModel(PrivateModel):
    """A private model whose other parties are on the network: what :func:`connect` returns. Use it as a PrivateModel.

    As a context manager it says goodbye at the end. A session that was lost between requests is opened again with the next
    one; a request that fails raises, and nothing of it is repeated.

    Attributes:
        requests: Used by the model's hooks.
    """

    def __init__(self, private: PrivateModel, requests: _Requests) -> None:
        super().__init__(private.model, private.policy, private.family, private.technique, private.session, private._fronts)
        self.requests = requests
        self.closed = False
        requests.remote = self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"RemoteModel({type(self.model).__name__}, {'closed' if self.closed else 'open'})"

    def close(self) -> None:
        """End the session; the model cannot be called afterwards."""
        self.closed = True
        self.requests.close()

    def prepare(
        self, tokens: int | None = None, *, count: int = 1, batch: int = 1, masked: bool = False, image_size: int | None = None
    ) -> Prepared:
        """Have the dealer deal for requests to come, and the server keep what it gets, so that nothing is dealt while they run.

        Each later forward of that shape takes one; a forward of another shape, or one with a key-value cache, is dealt for when
        it is made. What was prepared belongs to the session: when that ends or is lost, it is burnt. Guarantee class as for
        requests that are not prepared.

        Args:
            tokens: Length of the texts, padding included; None for images.
            count: Requests.
            batch: Texts or images in each.
            masked: Whether their attention mask leaves anything out.
            image_size: Side of the images, pixels; default the configuration's.

        Raises:
            InvalidInput: Not a request that the model takes.
            RequestRefused: The server has no room for it (``limits.prepared_mib``), or the dealer nothing in store; what was
                prepared before stays.
            PartyBusy: Too many requests wait at the server.
            TransportError: The session is lost.
        """
        if count < 1:
            raise InvalidInput(f"{count} requests", where="count", fix="give 1 or more")
        causal = self.family.decoder
        view = expected(self.model, causal=causal, tokens=tokens, batch=batch, masked=masked, image_size=image_size)
        return self.requests.prepare(view, count)

    @property
    def prepared(self) -> int:
        """Requests that were prepared and not made."""
        return self.requests.prepared

    @property
    def last(self) -> RequestCost | None:
        """What the last forward took."""
        return self.requests.costs[-1] if self.requests.costs else None

    @property
    def costs(self) -> tuple[RequestCost, ...]:
        """What each forward took, in order."""
        return tuple(self.requests.costs)

    @property
    def setup(self) -> RequestCost | None:
        """What the set-up of the current session took."""
        return self.requests.setup

    def explain(self, *, collude: Iterable[str] = frozenset(), deployment: Literal["simulated", "deployed"] = "deployed") -> Explanation:
        """Who sees what; see ``PrivateModel.explain``."""
        return super().explain(collude=collude, deployment=deployment)


def kept(cache: Any) -> int:
    """Tokens in a cache; 0 for none."""
    return 0 if cache is None else kept_tokens(cache)


def connect(
    policy: str | Path | Deployment,
    *,
    party: str | None = None,
    keys: str | Path | None = None,
    model: str | Path | None = None,
    session: Session | None = None,
    timeout: float = 30.0,
) -> RemoteModel:
    """Open a session with the server and the dealer of a deployment. They may start later: it tries again until ``timeout``.

    Guarantee class: computational, against one semi-honest party; the dealer colludes with nobody.

    Args:
        policy: A policy file with a table ``[deployment]``.
        party: Name of this client's certificate; default the first client of the file.
        keys: Folder with that certificate; default the file's.
        model: The client's folder: ``config.json`` and its embedding tables; default the file's.
        session: Whose recorder, meter and device are used; default one with the user's ledger, on the CPU.
        timeout: Seconds to reach the parties; for a session that has to be opened again, ``limits.idle_s`` at most.

    Returns:
        A :class:`RemoteModel`.

    Raises:
        PolicyFileError: The file is malformed or has no such table.
        InvalidInput: The client's folder does not hold its part of the model.
        VersionMismatch: The parties run different releases, policies or models, or the client's tables are not the server's; says
            which. Nothing else was sent.
        WrongPeer: A certificate is not the expected one.
        PartyBusy: The server has no room for another session.
        TransportError: A party cannot be reached, or is lost.
    """
    deployment = policy if isinstance(policy, Deployment) else Deployment.load(policy)
    name = party or deployment.clients[0]
    if name not in deployment.clients:
        fix = f"Allowed: {', '.join(deployment.clients)}"
        raise InvalidInput(f"{name!r} is no client of this deployment", where=f"{deployment.source}: deployment.server.clients", fix=fix)
    identity = Identity.load(Path(keys) if keys else deployment.keys, name)
    part = load_client_model(deployment, Path(model) if model else deployment.models["client"])
    session = session or Session()
    terms = computing_terms(deployment, part, session.device)
    places = Places(deployment, identity, part, terms, terms_of(deployment, part), timeout)
    requests = _Requests(places, session)
    return RemoteModel(requests.open(), requests)
