"""One run: its backends, its meter and its recorder."""

from __future__ import annotations

import contextvars
import dataclasses
import logging
import secrets
from typing import Any, Final

import torch

from privtensors.core.backend import Backend, TechniqueSpec
from privtensors.core.checks import checked_device
from privtensors.core.meter import Meter
from privtensors.core.recorder import Recorder
from privtensors.core.registry import RECORDERS, backend_class, registry, technique_class
from privtensors.errors import InvalidInput, RegistryError

_LOG: Final = logging.getLogger("privtensors")


class Session:
    """Holds what one run needs; use as a context manager to make it the current one.

    Args:
        recorder: Where reveals are recorded. Default: the ledger registered under ``privtensors.recorders``, opened at
            its default path on the first reveal.
        device: Where the backends hold and compute on what they protect, e.g. ``"cuda"``. It changes the speed, nothing
            else: SafeTensors, and what goes in and comes out, are on the CPU whatever the device.

    Attributes:
        id: Random identifier of the run, written into ledger rows.
        meter: Counters of this run.
        device: None for the CPU.

    Raises:
        ParameterError: There is no such device.
    """

    def __init__(self, *, recorder: Recorder | None = None, device: str | torch.device | None = None) -> None:
        self.device = checked_device(device)
        self.id = secrets.token_hex(8)
        self.meter = Meter()
        self._recorder = recorder
        self._backends: dict[Any, Backend] = {}
        self._tokens: list[contextvars.Token[Session | None]] = []

    @property
    def recorder(self) -> Recorder:
        """The recorder, made on first use.

        Raises:
            RegistryError: No recorder is registered, so nothing may be revealed.
        """
        if self._recorder is None:
            names = registry().names(RECORDERS)
            if not names:
                raise RegistryError(
                    "no recorder is registered, so reveals cannot be recorded", where="Session", fix="reinstall privtensors"
                )
            self._recorder = registry().load(RECORDERS, names[0])(session=self.id)
        assert self._recorder is not None
        return self._recorder

    def backend(self, technique: TechniqueSpec | str) -> Backend:
        """The backend serving ``technique`` in this session; made on first use.

        Raises:
            UnknownTechnique: A name that no installed package provides.
            InvalidInput: The technique has no backend, is not a technique, or needs parameters that a name does not give.
        """
        spec = _by_name(technique) if isinstance(technique, str) else technique
        if not isinstance(spec, TechniqueSpec):
            raise InvalidInput(
                f"expected a technique such as MPC() or its name, got {type(technique).__name__}",
                where="protect",
                fix="pass pt.MPC() or 'mpc'",
            )
        if spec.backend is None:
            raise InvalidInput(
                f"technique {spec.name!r} has no backend: it transforms a model or a training loop",
                where="protect",
                fix="use it in a Policy with pt.wrap",
            )
        if spec not in self._backends:
            backend = self._backends[spec] = self._made(spec.backend, spec)
            if backend.simulated and backend.guarantee != "none":
                _LOG.warning("SIMULATED: one process holds every party's view (backend %s)", spec.backend)
        return self._backends[spec]

    def _made(self, name: str, spec: TechniqueSpec) -> Backend:
        made: Any = backend_class(name)
        backend: Backend
        if self.device is None:
            backend = made(spec, self.meter)
            return backend
        if not getattr(made, "accelerated", False):
            fix = "use a session without device= for it"
            raise InvalidInput(f"backend {name!r} computes on the CPU, not on {self.device}", where="Session(device=…)", fix=fix)
        backend = made(spec, self.meter, device=self.device)
        return backend

    def use(self, technique: TechniqueSpec, backend: Backend) -> None:
        """Let ``backend`` serve ``technique`` in this session, in place of one made on first use: one party's, in a deployment."""
        self._backends[technique] = backend

    def __enter__(self) -> Session:
        self._tokens.append(_CURRENT.set(self))
        return self

    def __exit__(self, *_exc: object) -> None:
        _CURRENT.reset(self._tokens.pop())


def _by_name(name: str) -> Any:
    """The technique of that name with its defaults."""
    cls = technique_class(name)
    unset = dataclasses.MISSING
    fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    needed = [f.name for f in fields if f.init and f.default is unset and f.default_factory is unset]
    if needed:
        what = f"technique {name!r} has no default for {', '.join(needed)}"
        raise InvalidInput(what, where="protect", fix=f"pass {cls.__name__}({needed[0]}=…)")
    return cls()


# The one allowed piece of module state: which session is current in this context.
_CURRENT: Final[contextvars.ContextVar[Session | None]] = contextvars.ContextVar("privtensors_session", default=None)


def current_session() -> Session:
    """The current session; a default one is made for the context on first use."""
    session = _CURRENT.get()
    if session is None:
        session = Session()
        _CURRENT.set(session)
    return session
