"""SafeTensor: one torch.Tensor wrapper subclass for every backend, and ``protect`` / ``reveal`` / ``convert``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from privtensors.core.backend import Backend, Payload, Releasing, TechniqueSpec
from privtensors.core.checks import check_finite, check_plain
from privtensors.core.recorder import Disclosure
from privtensors.core.registry import bridges
from privtensors.core.session import Session, current_session
from privtensors.errors import InvalidInput, MixedBackends, ParameterError, PlaintextLeak, RangeExceeded, RegistryError, StaleView


class State:
    """What a SafeTensor points to. ``detach`` and ``Parameter`` share it; a view has its own and remembers its base.

    An in-place write to a view does not reach its base, so it makes the base, and every other view of it, stale:
    using one of them raises instead of giving the old value.
    """

    __slots__ = ("backend", "base", "base_version", "owner", "payload", "stale", "version")

    def __init__(self, payload: Payload, backend: Backend, owner: str, base: State | None = None) -> None:
        self.payload, self.backend, self.owner = payload, backend, owner
        self.version = 0
        self.stale = False
        self.base = base
        self.base_version = base.version if base is not None else 0

    def current(self) -> Payload:
        """The payload, refusing one that an in-place write elsewhere has overtaken.

        Raises:
            StaleView: The base of this view, or a view of this base, was changed in place since.
        """
        if self.stale:
            raise StaleView(
                "a view of this tensor was changed in place", where="SafeTensor", fix="use the view, or write out of place: y = x + z"
            )
        if self.base is not None and (self.base.stale or self.base.version != self.base_version):
            raise StaleView("this view's base was changed in place after the view was taken", where="SafeTensor", fix="take the view again")
        return self.payload

    def replace(self, payload: Payload) -> None:
        """In-place write: store ``payload`` and advance the version, so that masks opened for the old value are dropped."""
        if self.base is not None:
            self.base.stale = True
            self.base = None
        self.payload = payload
        self.version += 1

    def __reduce_ex__(self, _protocol: Any) -> NoReturn:
        raise PlaintextLeak("pickle would take the payload out of protection", where="SafeTensor", fix="call privtensors.save for files")


def _closed(name: str) -> Any:
    def refuse(self: SafeTensor, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise PlaintextLeak(
            f"{name} would take the value out of protection",
            where=f"SafeTensor of backend {self._state.backend.name!r}",
            fix="call privtensors.reveal(x, to=…), or privtensors.save for files",
        )

    refuse.__name__ = name
    return refuse


class SafeTensor(Tensor):
    """A protected tensor: shape, dtype and device of the plain one, the value held by a backend.

    Made by :func:`protect`, left only through :func:`reveal`. Ordinary torch code runs on it; every ATen operation is
    routed to a kernel of its backend at ``__torch_dispatch__``, below autograd. It prevents accidents; code in the same
    process that means harm can reach the payload, so it is no security boundary.
    """

    __slots__ = ("_state",)
    _state: State

    # Route below autograd only: an op intercepted above it would cut the graph.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, state: State) -> SafeTensor:
        payload = state.payload
        self: SafeTensor = Tensor._make_wrapper_subclass(cls, payload.shape, dtype=payload.dtype)
        # The wrapper has no storage: C++ code that asks for its memory (to_dlpack) gets an error instead of a null pointer.
        torch._C._set_throw_on_mutable_data_ptr(self)
        self._state = state
        return self

    def __init__(self, state: State) -> None:
        super().__init__()

    def __init_subclass__(cls, **_kwargs: Any) -> NoReturn:
        raise RegistryError(
            f"{cls.__name__} may not derive from SafeTensor", where="SafeTensor", fix="write a backend: docs/guides/backends.md"
        )

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        from privtensors.core.dispatch import route  # here, because the two modules need each other

        return route(func, args, kwargs or {})

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        backend = self._state.backend
        return f"SafeTensor(backend={backend.name!r}, shape={tuple(self.shape)}, dtype={str(self.dtype)[6:]}, owner={self._state.owner!r})"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    @property
    def backend_name(self) -> str:
        """Name of the backend that holds the value."""
        return self._state.backend.name

    @property
    def owner(self) -> str:
        """Party that owned the value when it was protected; of a result, the first operand's."""
        return self._state.owner

    @property
    def data(self) -> Tensor:
        """The same value outside the autograd graph, still protected. May be set to a SafeTensor of the same geometry."""
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, SafeTensor) or value.shape != self.shape or value.dtype != self.dtype:
            raise InvalidInput(
                f"expected a SafeTensor of shape {tuple(self.shape)} and dtype {self.dtype}",
                where="SafeTensor.data",
                fix="call privtensors.protect first",
            )
        self._state = value._state

    __array__ = _closed("numpy.asarray")
    __bool__ = _closed("bool()")
    __complex__ = _closed("complex()")
    __contains__ = _closed("in")
    __copy__ = _closed("copy.copy")
    __deepcopy__ = _closed("copy.deepcopy")
    __dlpack__ = _closed("__dlpack__")
    __dlpack_device__ = _closed("__dlpack_device__")
    __float__ = _closed("float()")
    __getstate__ = _closed("__getstate__")
    __index__ = _closed("index()")
    __int__ = _closed("int()")
    __reduce__ = _closed("pickle")
    __reduce_ex__ = _closed("pickle")
    apply_ = _closed("apply_")
    as_subclass = _closed("as_subclass")
    data_ptr = _closed("data_ptr")
    is_shared = _closed("is_shared")
    item = _closed("item")
    map_ = _closed("map_")
    map2_ = _closed("map2_")
    numpy = _closed("numpy")
    share_memory_ = _closed("share_memory_")
    storage = _closed("storage")
    storage_type = _closed("storage_type")
    tolist = _closed("tolist")
    _typed_storage = _closed("storage")
    untyped_storage = _closed("untyped_storage")


def protect(x: Tensor, technique: TechniqueSpec | str, *, owner: str | None = None, session: Session | None = None) -> SafeTensor:
    """Take a plain tensor under protection.

    Args:
        x: Plain tensor, any shape; floating point, integer or bool as the backend allows.
        technique: A technique with a backend, e.g. ``MPC()``, or its registered name.
        owner: Party that holds ``x`` in plain; default ``"client"``.
        session: Session to use; default the current one.

    Returns:
        A SafeTensor with the shape and dtype of ``x``.

    Raises:
        InvalidInput: ``x`` is no plain dense CPU tensor, has NaN or infinities, or a dtype the backend refuses.
        OutOfRange: A value the backend cannot represent.
        UnknownTechnique: No such technique.
    """
    if isinstance(x, SafeTensor):
        raise InvalidInput("the tensor is protected already", where="protect", fix="use privtensors.convert to change its backend")
    x = check_plain(x, "protect", finite=False)
    backend = (session or current_session()).backend(technique)
    if not x.is_meta and not getattr(backend, "absorbs_non_finite", False):
        check_finite(x, "protect")
    owner = owner or "client"
    if x.is_meta and not hasattr(backend, "holds"):
        what = f"a tensor on the meta device has no content, and backend {backend.name!r} has no other party that holds it"
        raise InvalidInput(what, where="protect", fix="give the value")
    return SafeTensor(State(backend.protect(x.detach(), owner=owner), backend, owner))


def reveal(
    x: Tensor, *, to: str | None = None, release: object | None = None, label: str = "value", session: Session | None = None
) -> Tensor:
    """Hand the plain value to one party: the only way out. The reveal is recorded first; if that fails, nothing leaves.

    Args:
        x: A SafeTensor.
        to: Receiving party; default the owner.
        release: Release mechanism of a differentially private value; must be None for backends without one.
        label: What the value is, for the ledger.
        session: Session whose recorder is used; default the current one.

    Raises:
        InvalidInput: ``x`` is not a SafeTensor.
        ParameterError: ``release`` was given to a backend that has no release mechanisms, or is missing where it has.
        LedgerError, BudgetExceeded: The release cannot be charged; see the backend's ``release``.
    """
    if not isinstance(x, SafeTensor):
        raise InvalidInput(f"expected a SafeTensor, got {type(x).__name__}", where="reveal", fix="plain values need no reveal")
    state = x._state
    releasing = state.backend if isinstance(state.backend, Releasing) else None
    if release is not None and releasing is None:
        raise ParameterError(
            f"backend {x.backend_name!r} has no release mechanisms",
            where="reveal(release=…)",
            fix="drop release=, or protect with a DP technique",
        )
    if releasing is not None and release is None:
        raise _unnoised(x.backend_name)
    payload, receiver = state.current(), to or state.owner
    recorder = (session or current_session()).recorder
    disclosure = Disclosure(
        backend=state.backend.name,
        shape=tuple(x.shape),
        dtype=str(x.dtype).removeprefix("torch."),
        receiver=receiver,
        label=label,
        simulated=state.backend.simulated,
        guarantee=state.backend.guarantee,
    )
    if releasing is not None:  # it records when the release has been charged, before anything leaves
        return releasing.release(payload, release, disclosure=disclosure, recorder=recorder)
    recorder.record(disclosure)
    return state.backend.reveal(payload, to=receiver)


def _unnoised(backend: str) -> ParameterError:
    return ParameterError(
        f"a value of backend {backend!r} leaves through a release mechanism only",
        where="reveal",
        fix="name it: reveal(x, release=pt.Gaussian(epsilon=0.5)) or release=pt.Laplace(epsilon=0.5)",
    )


def reveal_outputs(outputs: Mapping[str, Tensor], *, to: str, session: Session | None = None) -> dict[str, Tensor]:
    """Hand several outputs of one run to one party, as *one* recorded disclosure; if recording fails, nothing leaves.

    Args:
        outputs: SafeTensors of one backend by name, e.g. ``logits``.
        to: Receiving party.
        session: Session whose recorder is used; default the current one.

    Returns:
        The plain values under the same names.

    Raises:
        InvalidInput: There is no output, or one is not a SafeTensor.
        MixedBackends: They belong to two backends.
        RangeExceeded: What led to them left its range. All messages were exchanged then, so that no other party can tell.
    """
    states: dict[str, State] = {}
    for name, x in outputs.items():
        if not isinstance(x, SafeTensor):
            raise InvalidInput(
                f"{name} is not a SafeTensor but {type(x).__name__}", where="reveal_outputs", fix="plain values need no reveal"
            )
        states[name] = x._state
    if not states:
        raise InvalidInput("there is nothing to reveal", where="reveal_outputs", fix="give at least one output")
    backend = next(iter(states.values())).backend
    if any(state.backend is not backend for state in states.values()):
        raise MixedBackends("the outputs belong to two backends", where="reveal_outputs", fix="reveal them one by one")
    if isinstance(backend, Releasing):
        raise _unnoised(backend.name)
    payloads = {name: state.current() for name, state in states.items()}
    kinds = {name: (tuple(p.shape), str(p.dtype).removeprefix("torch.")) for name, p in payloads.items()}
    shape, dtype = next(iter(kinds.values()))
    details = tuple((name, f"{dtype}[{', '.join(map(str, shape))}]") for name, (shape, dtype) in kinds.items())
    (session or current_session()).recorder.record(
        Disclosure(backend.name, shape, dtype, to, ", ".join(kinds), backend.simulated, backend.guarantee, details)
    )
    plain: dict[str, Tensor] = {}
    told: RangeExceeded | None = None
    for name, payload in payloads.items():
        try:
            plain[name] = backend.reveal(payload, to=to)
        except RangeExceeded as error:
            told = told or error
    if told is not None:
        raise told
    return plain


def convert(x: Tensor, technique: TechniqueSpec | str, *, session: Session | None = None) -> SafeTensor:
    """Move a SafeTensor to another backend through a registered bridge.

    Raises:
        InvalidInput: ``x`` is not a SafeTensor.
        MixedBackends: No bridge joins the two backends.
    """
    if not isinstance(x, SafeTensor):
        raise InvalidInput(f"expected a SafeTensor, got {type(x).__name__}", where="convert", fix="call privtensors.protect first")
    target = (session or current_session()).backend(technique)
    source = x._state.backend
    if source is target:
        return x
    bridge = bridges().get((source.name, target.name))
    if bridge is None:
        known = ", ".join(f"{a} → {b}" for a, b in bridges()) or "none"
        raise MixedBackends(f"no bridge from {source.name!r} to {target.name!r}", where="convert", fix=f"registered bridges: {known}")
    payload = bridge.convert(x._state.current(), source, target, owner=x.owner)
    return SafeTensor(State(payload, target, x.owner))
