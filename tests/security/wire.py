"""A plain TCP forwarder that keeps every byte, and a keyed server in a process of its own behind it."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.security.processes import START_S, Process


@dataclass
class Wire:
    """Forwards callers of its own port to ``target``.

    Attributes:
        up: What callers sent.
        down: What they were sent.
    """

    target: tuple[str, int]
    up: bytearray = field(default_factory=bytearray)
    down: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def everything(self) -> bytes:
        return bytes(self.up + self.down)

    def bodies(self) -> list[dict[str, Any]]:
        """The JSON bodies that callers posted, in order of arrival (callers come one after the other)."""
        found, raw = [], bytes(self.up)
        for head in re.finditer(rb"POST [^\r]+\r\n(?:[^\r]+\r\n)*?Content-Length: (\d+)\r\n(?:[^\r]+\r\n)*?\r\n", raw):
            found.append(json.loads(raw[head.end() : head.end() + int(head[1])]))
        return found

    def close(self) -> None:
        """End, with all that was under way."""
        for sock in [self._listener, *self._sockets]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join(10)
        for sock in [self._listener, *self._sockets]:
            sock.close()

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(caller)
            try:
                called = socket.create_connection(self.target, 5)
            except OSError:
                caller.close()
                continue
            self._sockets.append(called)
            called.settimeout(None)
            for source, sink, kept in ((caller, called, self.up), (called, caller, self.down)):
                self._start(self._pump, source, sink, kept)

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket, kept: bytearray) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(1 << 16):
                kept += chunk
                sink.sendall(chunk)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


class KeyedService(Process):
    """``privtensors serve --keyed``."""

    def __init__(self, folder: Path, log: Path, *more: str) -> None:
        super().__init__(["-m", "privtensors", "serve", "--keyed", str(folder), "--listen", "127.0.0.1:0", *more], log)
        self.greeting, self.ended = "", False

    @property
    def url(self) -> str:
        """Where it listens; waits until it does."""
        if not self.greeting:
            self.greeting = self.line(START_S)
        return self.greeting.split()[-1]

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.partition("//")[2].rpartition(":")
        return host, int(port)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Tell it to end; its exit code. It says goodbye, and no traceback."""
        self.ended = True
        self.signal(number)
        code = self.wait(60)
        assert self.line(10) == "server ended\n" and "Traceback" not in self.log.read_text()
        return code


@contextmanager
def keyed_service(folder: Path, log: Path, *more: str) -> Iterator[KeyedService]:
    """A process until the block ends; where the test has not ended it, it must end with 0."""
    service = KeyedService(folder, log, *more)
    try:
        assert service.url
        yield service
        if not service.ended:
            assert service.end() == 0
    finally:
        service.kill()
