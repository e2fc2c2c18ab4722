"""The table ``[deployment]`` of a policy file: who runs where, with which files, within which limits.

Only addresses, folders and limits are read here; what each party may see is the policy's business. Every mistake names the
file, the key and what is allowed.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

from privtensors.errors import PolicyFileError
from privtensors.policy import Policy

SERVER: Final = "server"
DEALER: Final = "dealer"
ServiceRole = Literal["server", "dealer"]

# Task -> the transformers class that has its head.
TASKS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "feature-extraction": "AutoModel",
        "fill-mask": "AutoModelForMaskedLM",
        "image-classification": "AutoModelForImageClassification",
        "question-answering": "AutoModelForQuestionAnswering",
        "text-classification": "AutoModelForSequenceClassification",
        "text-generation": "AutoModelForCausalLM",
        "token-classification": "AutoModelForTokenClassification",
    }
)


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """What a server and a dealer tolerate. The parties' limits may differ; the stricter one decides.

    Attributes:
        clients: Sessions open at a time; a further client is refused as busy.
        running: Requests computed at a time; further ones wait, first come, first served.
        waiting: Requests that may wait; a further one is refused as busy.
        tokens: Largest batch times tokens (for images: times patches of 16 x 16) of one request, what is cached included.
        caches: Key-value caches kept per session; the oldest is dropped for a further one.
        payload_mib: Largest frame, MiB.
        buffer_mib: Correlated randomness that a server buffers ahead of use, MiB per session.
        prepared_mib: Correlated randomness that a server keeps for requests prepared ahead, MiB per session; 0 for none.
        idle_s: Seconds without a sign of life after which a peer counts as stalled during a request.
        session_s: Seconds that a session may stay open without a request.
        connect_s: Seconds to reach a peer.
        threads: Threads of torch in a server or dealer; 0 leaves torch's default.
    """

    clients: int = 8
    running: int = 1
    waiting: int = 32
    tokens: int = 1 << 15
    caches: int = 4
    payload_mib: int = 1024
    buffer_mib: int = 256
    prepared_mib: int = 1024
    idle_s: float = 8.0
    session_s: float = 900.0
    connect_s: float = 30.0
    threads: int = 0


_LARGEST: Final[Mapping[str, float]] = MappingProxyType(
    {
        "clients": 1024,
        "running": 64,
        "waiting": 4096,
        "tokens": 1 << 24,
        "caches": 256,
        "payload_mib": 1 << 14,
        "buffer_mib": 1 << 16,
        "prepared_mib": 1 << 20,
        "idle_s": 3600.0,
        "session_s": 7 * 86400.0,
        "connect_s": 3600.0,
        "threads": 256,
    }
)


@dataclass(frozen=True, slots=True)
class Deployment:
    """A policy with its parties' places.

    Attributes:
        policy: What is computed under which technique, and who receives it.
        source: The file.
        task: Names the Auto class, see :data:`TASKS`.
        keys: Folder with ``ca.pem`` and this party's ``NAME.pem`` and ``NAME.key``.
        server: Address of the server.
        dealer: Address of the dealer.
        models: Model folder by role: ``"client"``, ``"server"``, ``"dealer"``.
        clients: Party names whose certificates may use the service; the first is the default client.
        limits: What server and dealer tolerate.
    """

    policy: Policy
    source: Path
    task: str
    keys: Path = field(repr=False)
    server: tuple[str, int]
    dealer: tuple[str, int]
    models: Mapping[str, Path]
    clients: tuple[str, ...]
    limits: ServiceLimits

    @classmethod
    def load(cls, source: str | Path) -> Deployment:
        """Read a policy file with a table ``[deployment]``. Paths in it are relative to the file.

        Raises:
            PolicyFileError: The file cannot be read or is malformed; the message names file, key and what is allowed.
            CompositionError: The policy's techniques cannot be composed.
        """
        path = Path(source)
        policy = Policy.from_toml(path)  # checks size, syntax and every other key
        data = tomllib.loads(path.read_text(encoding="utf-8")).get("deployment")
        if data is None:
            raise PolicyFileError("table [deployment] is missing", where=str(path), fix="add it: see docs/guides/deployment.md")
        return _Reader(path).deployment(policy, data)

    def address(self, role: ServiceRole) -> tuple[str, int]:
        """Host and port of ``role``."""
        return self.server if role == SERVER else self.dealer


class _Reader:
    """Strict reading of the table; knows the file for its messages."""

    def __init__(self, path: Path) -> None:
        self._path, self._base = path, path.absolute().parent

    def deployment(self, policy: Policy, data: object) -> Deployment:
        if policy.receiver != "client":
            fix = 'Allowed: receiver = "client"'
            raise PolicyFileError("a deployed server hands results to the client only", where=f"{self._path}: receiver", fix=fix)
        top = self._table("deployment", data, ("task", "keys", "client", "server", "dealer", "limits"))
        task = self._text("deployment.task", top.get("task"))
        if task not in TASKS:
            raise PolicyFileError(f"unknown task {task!r}", where=f"{self._path}: deployment.task", fix=f"Allowed: {', '.join(TASKS)}")
        client = self._table("deployment.client", top.get("client"), ("model",))
        server = self._table("deployment.server", top.get("server"), ("address", "model", "clients"))
        dealer = self._table("deployment.dealer", top.get("dealer"), ("address", "model"))
        tables = {"client": client, SERVER: server, DEALER: dealer}
        models = {role: self._base / self._text(f"deployment.{role}.model", table.get("model")) for role, table in tables.items()}
        return Deployment(
            policy,
            self._path,
            task,
            self._base / self._text("deployment.keys", top.get("keys", "keys")),
            self.endpoint("deployment.server.address", server.get("address")),
            self.endpoint("deployment.dealer.address", dealer.get("address")),
            MappingProxyType(models),
            self._names("deployment.server.clients", server.get("clients", ["client"])),
            self._limits(top.get("limits", {})),
        )

    def _table(self, key: str, value: object, allowed: tuple[str, ...]) -> dict[str, Any]:
        if not isinstance(value, dict):
            problem = "is missing" if value is None else "must be a table"
            raise PolicyFileError(problem, where=f"{self._path}: [{key}]", fix=f"Write [{key}] with {', '.join(allowed)}")
        for name in value:
            if name not in allowed:
                raise PolicyFileError(f"unknown key {name!r}", where=f"{self._path}: [{key}]", fix=f"Allowed: {', '.join(allowed)}")
        return value

    def _text(self, key: str, value: object) -> str:
        if not isinstance(value, str) or not value.strip():
            problem = "is missing" if value is None else "must be a string that is not empty"
            raise PolicyFileError(problem, where=f"{self._path}: {key}", fix='Write it as "…"')
        return value

    def endpoint(self, key: str, value: object) -> tuple[str, int]:
        text = self._text(key, value)
        host, _, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise PolicyFileError(f"{text!r} is no address", where=f"{self._path}: {key}", fix='Write "HOST:PORT", e.g. "127.0.0.1:7001"')
        return host, int(port)

    def _names(self, key: str, value: object) -> tuple[str, ...]:
        good = isinstance(value, list) and value and all(isinstance(name, str) and name for name in value)
        if not good or len(set(value)) != len(value) or {SERVER, DEALER} & set(value):  # type: ignore[arg-type,call-overload]
            fix = 'Write ["client"]: different names of certificates, neither server nor dealer'
            raise PolicyFileError("must be a list of party names", where=f"{self._path}: {key}", fix=fix)
        return tuple(value)  # type: ignore[arg-type]

    def _limits(self, value: object) -> ServiceLimits:
        fields = {f.name: f for f in dataclasses.fields(ServiceLimits)}
        table = self._table("deployment.limits", value, tuple(fields))
        for name, number in table.items():
            whole = fields[name].type == "int"
            least = 0 if name in ("waiting", "threads", "prepared_mib") else 1 if whole else 0.1
            right = type(number) is int or (type(number) is float and not whole)
            if not right or not least <= number <= _LARGEST[name]:
                kind = "a whole number" if whole else "a number"
                fix = f"Allowed: {kind} from {least} to {_LARGEST[name]:g}"
                raise PolicyFileError("wrong type or value", where=f"{self._path}: deployment.limits.{name}", fix=fix)
        return dataclasses.replace(ServiceLimits(), **table)


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of ``"HOST:PORT"``; an IPv6 host in brackets.

    Raises:
        PolicyFileError: It is no address.
    """
    return _Reader(Path("--address")).endpoint("address", text)
