"""Two parties on loopback, and a third that holds a valid certificate and breaks the rules."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from privtensors.transport.frames import HEADER_SIZE, NO_SESSION, VERSION, Header, Hello, Kind, parse_header, session_id
from privtensors.transport.tcp import Limits, Listener, Peer, connect
from privtensors.transport.tls import Identity, client_context

T = TypeVar("T")
WAIT = 10.0  # no call of these tests may take longer
QUICK = Limits(idle_s=0.5)


@contextmanager
def together() -> Iterator[Callable[[Callable[[], T]], Future[T]]]:
    """Run calls in threads of their own; leave when all have ended."""
    with ThreadPoolExecutor(8) as pool:
        yield pool.submit


@contextmanager
def pair(identities: Mapping[str, Identity], *, limits: Limits | None = None) -> Iterator[tuple[Peer, Peer]]:
    """The server's and the client's end of one connection."""
    limits = limits or Limits()
    with Listener(identities["server"], ["client"], limits=limits) as listener, together() as start:
        calling = start(lambda: connect(listener.address, identities["client"], "server", limits=limits, timeout=WAIT))
        server = listener.accept(WAIT)
        client = calling.result(WAIT)
    try:
        yield server, client
    finally:
        server.close()
        client.close()


class Rogue:
    """Speaks to a listener over proper TLS, frame by frame and byte by byte as the test wants it."""

    def __init__(self, identity: Identity, address: tuple[str, int], party: str = "server") -> None:
        raw = socket.create_connection(address, WAIT)
        self.name, self.party = identity.name, party
        self.sock = client_context(identity).wrap_socket(raw, suppress_ragged_eofs=False)
        self.session, self.sequence = NO_SESSION, 0

    def read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            data += self.sock.recv(count - len(data)) or self._gone()
        return data

    @staticmethod
    def _gone() -> bytes:
        raise ConnectionError("closed")

    def read_frame(self) -> tuple[Header, bytes]:
        header = parse_header(self.read(HEADER_SIZE))
        return header, self.read(header.length)

    def frame(
        self, kind: Kind, payload: bytes = b"", *, op: int = 0, version: int = VERSION, session: bytes | None = None, step: int = 0
    ) -> bytes:
        """The next frame; ``step`` shifts its number."""
        header = Header(kind, self.session if session is None else session, self.sequence + step, op, len(payload))
        self.sequence += 1
        return header.encode(version) + payload

    def greet(self, terms: Mapping[str, str] | None = None, version: int = VERSION) -> None:
        theirs = Hello.decode(self.read_frame()[1])
        mine = Hello(self.name, self.party, terms or {})
        self.sock.sendall(self.frame(Kind.HELLO, mine.encode(), version=version))
        self.session = session_id(theirs.nonce, mine.nonce)

    def reset(self) -> None:
        """Vanish as a killed process does: no goodbye, a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        self.sock.close()


class Relay:
    """Passes bytes between a caller and ``target``, counts them, and can cut, hold or spoil them from a given byte on."""

    def __init__(
        self, target: tuple[str, int], *, cut_at: int | None = None, hold_at: int | None = None, spoil_at: int | None = None
    ) -> None:
        self.up = self.down = 0
        self._target, self._cut, self._hold, self._spoil = target, cut_at, hold_at, spoil_at
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._server.getsockname()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(WAIT)
        self._server.close()
        assert not self._thread.is_alive()

    def _run(self) -> None:
        self._server.settimeout(WAIT)
        caller, _ = self._server.accept()
        with caller, socket.create_connection(self._target, WAIT) as target:
            caller.setblocking(False)
            target.setblocking(False)
            while not self._stop.is_set():
                if not (self._pass(caller, target, up=True) and self._pass(target, caller, up=False)):
                    return
                time.sleep(0.0005)

    def _pass(self, source: socket.socket, sink: socket.socket, *, up: bool) -> bool:
        try:
            data = source.recv(1 << 16)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            return False
        if up:
            before, self.up = self.up, self.up + len(data)
            if self._hold is not None and self.up > self._hold:
                return True  # swallowed: both ends see silence
            if self._spoil is not None and before <= self._spoil < self.up:
                at = self._spoil - before
                data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
            if self._cut is not None and self.up > self._cut:
                data = data[: self._cut - before]
        else:
            self.down += len(data)
        sink.settimeout(WAIT)
        try:
            sink.sendall(data)
        except OSError:
            return False
        finally:
            sink.setblocking(False)
        return not (up and self._cut is not None and self.up > self._cut)


def elapsed(start: float) -> float:
    return time.monotonic() - start


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def words(count: int, seed: int = 0, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.randint(-(1 << 62), 1 << 62, (2, count), generator=torch.Generator().manual_seed(seed)).to(dtype)
