"""A deployment of real processes, every link through a man in the middle, with spare processes that take a dead one's place."""

from __future__ import annotations

import json
import re
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from tests import warm
from tests.security.proxy import Link
from tests.unit.deploy.places import write_deployment

START_S = 120  # a busy machine takes long to import torch
Role = Literal["server", "dealer"]
ENDED = re.compile(r"session of \w+ (ended|closed)|turned away")
# Long numbers, keys and tensors: nothing of the kind may stand in a log.
SECRET = re.compile(r"tensor\(|[0-9a-f]{24,}|-?\d+\.\d{4,}|\[[-\d., ]{12,}\]|Traceback")


class Process:
    """One party's process: what it prints is read, what it logs goes to a file."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self.log = log
        self._process = warm.Process(arguments, stderr=log)

    @property
    def pid(self) -> int:
        """Its id."""
        return self._process.pid

    def line(self, seconds: float) -> str:
        """The next line it prints.

        Raises:
            TimeoutError: None came.
            EOFError: It ended.
        """
        stdout = self._process.stdout
        assert stdout is not None
        if not select.select([stdout], [], [], seconds)[0]:
            raise TimeoutError(f"nothing within {seconds:g} s from {self.log.name}")
        text = stdout.readline()
        if not text:
            raise EOFError(f"{self.log.name}: {self.log.read_text()[-500:]}")
        return text

    def say(self, text: str) -> None:
        """Write it a line."""
        self._process.stdin.write(text + "\n")

    def wait(self, seconds: float) -> int:
        """Its exit code."""
        return self._process.wait(seconds)

    def signal(self, number: int) -> None:
        """Send a signal, where it still runs."""
        self._process.signal(number)

    def kill(self) -> None:
        """Kill it, stopped or not."""
        self._process.close()


class Client(Process):
    """A client that is told what to do, see ``client_worker``."""

    def __init__(self, policy: Path, party: str, log: Path) -> None:
        super().__init__(["-m", "tests.security.client_worker", str(policy), party], log)
        self.warm = False

    def tell(self, **what: Any) -> None:
        """Start a command."""
        if not self.warm:
            assert json.loads(self.line(START_S)) == {"ready": True}
            self.warm = True
        self.say(json.dumps(what))

    def reply(self, seconds: float = 60) -> dict[str, Any]:
        """How it ended."""
        found: dict[str, Any] = json.loads(self.line(seconds))
        return found

    def do(self, **what: Any) -> dict[str, Any]:
        """Both."""
        self.tell(**what)
        return self.reply()


class Service(Process):
    """A ``privtensors serve``; ``address`` waits until it listens."""

    def __init__(self, policy: Path, role: Role, log: Path) -> None:
        self.role = role
        super().__init__(["-m", "privtensors", "serve", str(policy), "--as", role, "--address", "127.0.0.1:0"], log)
        self._address: tuple[str, int] | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        if self._address is None:
            text = self.line(START_S)
            assert text.startswith(f"{self.role} listens at "), text
            host, _, port = text.split()[-1].rpartition(":")
            self._address = (host, int(port))
        return self._address


class Parties:
    """Server, dealer and their links; clients are made on demand.

    Nothing runs until :meth:`start`.

    Attributes:
        links: ``"client-server"``, ``"client-dealer"``, ``"server-dealer"``.
        services: The ones that serve now.
    """

    def __init__(self, folder: Path, *, limits: str = "idle_s = 8", spares: bool = True, keep: bool = False) -> None:
        self.folder, self._count, self._spares = folder, 0, spares
        policy = write_deployment(folder, "bert", limits=limits)
        nowhere = ("127.0.0.1", 9)
        self.links = {name: Link(nowhere, keep) for name in ("client-server", "client-dealer", "server-dealer")}
        self._policies: dict[str, Path] = {}
        for role, server, dealer in (
            ("client", "client-server", "client-dealer"),
            ("server", "client-server", "server-dealer"),
            ("dealer", "client-server", "server-dealer"),
        ):
            text = policy.read_text()
            for name, link in (("server", server), ("dealer", dealer)):
                table = f'[deployment.{name}]\naddress = "127.0.0.1:'
                text = text.replace(f'{table}0"', f'{table}{self.links[link].address[1]}"')
            self._policies[role] = folder / f"{role}.toml"
            self._policies[role].write_text(text)
        self._spare: dict[Role, Service] = {}
        self.dead: list[Process] = []
        self.clients: list[Client] = []
        self.services: dict[Role, Service] = {}

    def start(self) -> None:
        """Start the services and wait until they listen."""
        roles: tuple[Role, ...] = ("dealer", "server")
        for role in roles:
            self.services[role] = self._start(role)
        for role in roles:
            self._point(role)
            if self._spares:
                self._spare[role] = self._start(role)

    def client(self, party: str = "client") -> Client:
        """Another client process."""
        self._count += 1
        found = Client(self._policies["client"], party, self.folder / f"client-{self._count}.log")
        self.clients.append(found)
        return found

    @property
    def client_policy(self) -> Path:
        """The file a client uses."""
        return self._policies["client"]

    def replace(self, role: Role) -> None:
        """The service's process is gone or goes now; another takes its place."""
        old = self.services[role]
        old.kill()
        self.dead.append(old)
        self.services[role] = self._spare.pop(role, None) or self._start(role)
        self._point(role)
        if self._spares:
            self._spare[role] = self._start(role)

    def logs(self) -> Iterator[Path]:
        """Every log written."""
        return self.folder.glob("*.log")

    def leaks(self) -> list[str]:
        """Lines of logs that hold what looks like a secret."""
        return [line for path in self.logs() for line in path.read_text().splitlines() if SECRET.search(line)]

    def close(self) -> None:
        """End everything."""
        everyone: list[Process] = [*self.clients, *self.services.values(), *self._spare.values()]
        for process in everyone:
            process.kill()
        for link in self.links.values():
            link.close()

    def _start(self, role: Role) -> Service:
        self._count += 1
        return Service(self._policies[role], role, self.folder / f"{role}-{self._count}.log")

    def _point(self, role: Role) -> None:
        where = self.services[role].address
        for name, link in self.links.items():
            if name.endswith(role):
                link.target = where


@contextmanager
def parties(folder: Path, *, limits: str = "idle_s = 8", spares: bool = True, keep: bool = False) -> Iterator[Parties]:
    """Real processes until the block ends."""
    found = Parties(folder, limits=limits, spares=spares, keep=keep)
    try:
        found.start()
        yield found
    finally:
        found.close()


def ended(log: Path, start: int, seconds: float) -> tuple[str, float] | None:
    """The first line behind offset ``start`` that says a session ended, and when it did (``time.time``); None where none came."""
    deadline = time.monotonic() + seconds
    while True:
        for line in log.read_text()[start:].splitlines():
            if ENDED.search(line):
                when, fraction = line[:19], int(line[20:23]) / 1000
                return line, datetime.strptime(when, "%Y-%m-%d %H:%M:%S").timestamp() + fraction
        if time.monotonic() > deadline:
            return None
        time.sleep(0.02)
