"""What the dealer deals for: programs traced once per kind of forward, and kept for the next of its kind."""

from __future__ import annotations

import copy
import hashlib
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from privtensors.backends.mpc.backend import MPCBackend
from privtensors.backends.mpc.program import DealerState, Program, TraceChannel, Tracer
from privtensors.core.safetensor import SafeTensor, State
from privtensors.core.session import Session
from privtensors.deploy.descriptor import Descriptor
from privtensors.deploy.rooms import NotTheReceiver
from privtensors.hf.wrap import assemble
from privtensors.policy import Policy, Technique

_KEPT: Final = 256


@dataclass(frozen=True, slots=True, eq=False)
class Traced:
    """A program with where it leaves off.

    Attributes:
        key: Digest of the descriptors that led here: one, or those of a generation so far.
        program: The randomness of the last of them.
        cache: The key-value cache afterwards, without content; None where there is none.
        past: Tokens in it.
    """

    key: str
    program: Program
    cache: Any = field(default=None, repr=False)
    past: int = 0


class Programs:
    """Traces forwards of one model, one at a time, on no rows: shapes only, no weight, no input.

    Args:
        model: The structure, without content.
        policy: The deployment's.
        technique: Its technique.
    """

    def __init__(self, model: Any, policy: Policy, technique: Technique) -> None:
        self._session = Session(recorder=NotTheReceiver())
        self._tracer = Tracer(self._session.meter)
        self._backend = MPCBackend(technique, self._session.meter, channel=TraceChannel(), dealer=self._tracer)
        self._session.use(technique, self._backend)
        self._kept: OrderedDict[str, Traced] = OrderedDict()
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1, "trace")
        self._tracer.begin()
        with torch.no_grad():
            self._private = assemble(model, policy, technique, self._session, progress=False, client_here=False)
        self.setup = Traced("", self._tracer.end())

    @property
    def causal(self) -> bool:
        """Whether the model is a decoder."""
        return self._private.family.decoder

    def suit(self, view: Descriptor) -> bool:
        """Whether the model takes such a request."""
        return view.suits(self._private.model, self._private.family)

    def find(self, view: Descriptor, before: Traced | None) -> Future[Traced]:
        """The program of a forward, traced by a worker where it is new.

        Args:
            view: The dealer's view of it.
            before: Where its cache's last forward left off; None for none or an empty cache.
        """
        key = hashlib.sha256(f"{before.key if before else ''}|{view.key()}".encode()).hexdigest()
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                known: Future[Traced] = Future()
                known.set_result(self._kept[key])
                return known
        return self._worker.submit(self._trace, key, view, before)

    def close(self) -> None:
        """End the worker."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _trace(self, key: str, view: Descriptor, before: Traced | None) -> Traced:
        with self._lock:
            if key in self._kept:
                return self._kept[key]
        cache = None
        if view.cache:
            cache = self._empty_cache() if before is None else _copied(before.cache)
        model = self._private.model
        self._tracer.begin()
        try:
            with torch.no_grad():
                model(**view.arguments(model.config, self._private.family, cache))
            program = self._tracer.end()
        except BaseException:
            self._tracer.abandon()
            self._backend.forget()
            raise
        past = int(cache.get_seq_length()) if cache is not None else 0
        found = Traced(key, program, _copied(cache) if cache is not None else None, past)
        with self._lock:
            self._kept[key] = found
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return found

    def _empty_cache(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self._private.model.config)


@dataclass(slots=True, eq=False)
class Generation:
    """A session's key-value cache at the dealer: the masks drawn for it so far, and where it stands."""

    state: DealerState
    at: Traced | None = None

    @classmethod
    def begin(cls, session: DealerState) -> Generation:
        """A new one: it reads the masks of the session's weights."""
        state = DealerState()
        state.values.update(session.values)
        return cls(state)


def _copied(cache: Any) -> Any:
    """A cache of its own with the same entries: extending one does not extend the other, nor is what one opens open in the other."""
    twin = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in twin.layers:
        for name in ("keys", "values"):
            tensor = getattr(layer, name, None)
            if isinstance(tensor, SafeTensor):
                state = tensor._state
                setattr(layer, name, SafeTensor(State(copy.copy(state.current()), state.backend, state.owner)))
    return twin
