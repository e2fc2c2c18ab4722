"""What server and dealer have in common: an accept loop, a thread per connection, figures for reports, and a clean end."""

from __future__ import annotations

import gc
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from privtensors.deploy.config import ServiceLimits
from privtensors.deploy.links import interrupt
from privtensors.deploy.rooms import LOG, transport_limits
from privtensors.deploy.terms import mended
from privtensors.errors import PeerTimeout, PrivTensorsError, TransportError, VersionMismatch
from privtensors.transport.frames import Reason
from privtensors.transport.peer import Peer
from privtensors.transport.tcp import Listener
from privtensors.transport.tls import Identity

_GLANCE_S = 0.25
_GRACE_S = 10.0


@dataclass(slots=True)
class Figures:
    """What a service did since it started.

    Attributes:
        sessions: Open now.
        served: Requests answered, set-ups of sessions not counted.
        failed: Requests or sessions that ended in an error.
        refused: Callers turned away, and requests refused.
        running: Requests that run now.
        waiting: Requests that wait for their turn.
        rounds: Exchanges of the parties.
        bytes_sent: Sent by this process: to the other party, or corrections.
        last_s: Seconds that the last request took.
    """

    sessions: int = 0
    served: int = 0
    failed: int = 0
    refused: int = 0
    running: int = 0
    waiting: int = 0
    rounds: int = 0
    bytes_sent: int = 0
    last_s: float = 0.0


class Service:
    """Listens, and runs ``handle`` in a thread for each caller. ``handle`` owns the connection and closes it.

    Args:
        identity: Who this is.
        callers: Who may connect.
        address: Where to listen; port 0 takes a free one.
        terms: What callers must agree on.
        limits: See :class:`ServiceLimits`.
        connections: Connections open at a time; a further caller is refused as busy.
        handle: Serves one connection to its end.
    """

    def __init__(
        self,
        identity: Identity,
        callers: Sequence[str],
        address: tuple[str, int],
        terms: Mapping[str, str],
        limits: ServiceLimits,
        connections: int,
        handle: Callable[[Peer], None],
    ) -> None:
        self.figures = Figures()
        self._limits, self._connections, self._handle = limits, connections, handle
        self._listener = Listener(identity, callers, *address, terms=terms, limits=transport_limits(limits), on_refused=self._turned_away)
        self._lock = threading.Lock()
        self._open: dict[threading.Thread, Peer] = {}
        self._busy: set[threading.Thread] = set()
        self._threads: list[threading.Thread] = []
        self._ending = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._finish()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that callers use."""
        return self._listener.address

    @property
    def ending(self) -> bool:
        """Whether :meth:`stop` was called."""
        return self._ending.is_set()

    def stop(self) -> None:
        """Take no more callers and requests; safe in a signal handler."""
        self._ending.set()

    def run(self) -> None:
        """Serve until :meth:`stop`; then requests that run are given ten seconds to end."""
        while not self._ending.is_set():
            try:
                peer = self._listener.accept(_GLANCE_S)
            except PeerTimeout:
                continue
            except TransportError as error:
                if "cannot accept" in error.what:
                    LOG.warning("%s", error)
                    time.sleep(_GLANCE_S)
                continue
            self._start(peer)
        self._finish()

    def busy(self, now: bool) -> None:
        """Note whether the calling thread is within a request: at the end such threads get time to finish."""
        with self._lock:
            (self._busy.add if now else self._busy.discard)(threading.current_thread())

    def count(self, *, sessions: int = 0, served: int = 0, failed: int = 0, refused: int = 0, rounds: int = 0, bytes_sent: int = 0) -> None:
        """Add to the figures."""
        with self._lock:
            f = self.figures
            f.sessions += sessions
            f.served, f.failed, f.refused = f.served + served, f.failed + failed, f.refused + refused
            f.rounds, f.bytes_sent = f.rounds + rounds, f.bytes_sent + bytes_sent

    def _turned_away(self, error: TransportError) -> None:
        LOG.warning("turned away a caller: %s", mended(error) if isinstance(error, VersionMismatch) else error)
        self.count(refused=1)

    def _start(self, peer: Peer) -> None:
        with self._lock:
            room = len(self._open) < self._connections
        if not room:
            LOG.warning("turned away %s: %d connections are open", peer.name, self._connections)
            self.count(refused=1)
            threading.Thread(target=peer.abort, args=(Reason.BUSY,), daemon=True).start()
            return
        thread = threading.Thread(target=self._serve, args=(peer,), name=f"{peer.name} {peer.session.hex()[:8]}", daemon=True)
        with self._lock:
            self._open[thread] = peer
            self._threads = [t for t in self._threads if t.is_alive()] + [thread]
            thread.start()

    def _serve(self, peer: Peer) -> None:
        try:
            self._handle(peer)
        except PrivTensorsError as error:
            if not self.ending:
                LOG.warning("session of %s ended: %s: %s", peer.name, type(error).__name__, error)
            self.count(failed=1)
            peer.abort()
            traceback.clear_frames(error.__traceback__)  # the connection keeps the error, whose frames hold the session
        except Exception as error:
            # The text of a foreign exception may quote a value: its type is enough for a log.
            LOG.error("session of %s ended: %s", peer.name, type(error).__name__, exc_info=LOG.isEnabledFor(10))
            self.count(failed=1)
            peer.abort()
            traceback.clear_frames(error.__traceback__)  # the connection keeps the error, whose frames hold the session
        finally:
            gc.collect()  # a session's model is full of cycles: its shares must not wait for some later collection
            with self._lock:
                self._open.pop(threading.current_thread(), None)
                self._busy.discard(threading.current_thread())

    def _finish(self) -> None:
        self._listener.close()
        deadline = time.monotonic() + _GRACE_S
        while True:
            with self._lock:
                left = dict(self._open)
                over = time.monotonic() >= deadline
                idle = [peer for thread, peer in left.items() if over or thread not in self._busy]
            for peer in idle:
                interrupt(peer)
            if not left or time.monotonic() >= deadline + 2:
                break
            time.sleep(0.05)
        for thread in self._threads:  # one within torch when the interpreter is taken down would abort the process
            thread.join(1)
