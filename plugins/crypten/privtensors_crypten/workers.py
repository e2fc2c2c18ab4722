"""The session's end of the parties: starts them, sends each the same request, bounds every wait, ends them."""

from __future__ import annotations

import itertools
import os
import select
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from privtensors.errors import FrameError, PeerLost, PeerTimeout, TransportError
from privtensors_crypten import home
from privtensors_crypten.worker.frames import FrameFault, pack, receive, send

START_SECONDS: Final = 120.0
REQUEST_SECONDS: Final = 600.0
STEP_SECONDS: Final = 10.0  # for the other party, once one has failed
_FIX: Final = "protect the inputs again in a new session"


@dataclass(frozen=True, slots=True)
class Reply:
    """What both parties answered.

    Attributes:
        headers: Per party the JSON header.
        tensors: Per party the tensors.
        rounds: Exchanges between the parties.
        bytes: Bytes sent by one computing party to the other.
        dealer_bytes: Bytes exchanged with the trusted third party.
    """

    headers: tuple[dict[str, Any], ...]
    tensors: tuple[dict[str, Tensor], ...]
    rounds: int
    bytes: int
    dealer_bytes: int


class Workers:
    """Two party processes on this host, and a third with provider ``"TTP"``. Started by the first request.

    Args:
        provider: CrypTen's source of multiplication triples, ``"TFP"`` or ``"TTP"``.
        python: The interpreter of CrypTen's environment. Default: :func:`privtensors_crypten.home.python`, asked at the start.
        party: The script that a party runs.
        start_seconds: Limit for the start.
        request_seconds: Limit for one request.
    """

    def __init__(
        self,
        provider: str,
        *,
        python: Path | None = None,
        party: Path = home.PARTY,
        start_seconds: float = START_SECONDS,
        request_seconds: float = REQUEST_SECONDS,
    ) -> None:
        self._provider, self._python, self._party = provider, python, party
        self._start_seconds, self._request_seconds = start_seconds, request_seconds
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._links: tuple[socket.socket, ...] = ()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._stop: weakref.finalize[Any, Any] | None = None
        self._broken = ""
        self.forgotten: deque[int] = deque()

    def number(self) -> int:
        """A name for a value that no other value has or had."""
        return next(self._numbers)

    def request(self, header: Mapping[str, Any], tensors: Sequence[Mapping[str, Tensor]] = ({}, {})) -> Reply:
        """Send ``header`` to both parties, with ``tensors[i]`` for party i, and wait for both answers.

        Raises:
            MissingExtra: CrypTen's environment is not installed.
            PeerLost: A party ended, or one did earlier: the session's values are gone.
            PeerTimeout: A party did not answer in time; both are ended.
            FrameError: A party sent something else than a reply.
            TransportError: A party reported a failure; both are ended, because they may be out of step.
        """
        with self._lock:
            if self._broken:
                raise PeerLost(f"the parties were ended earlier: {self._broken}", where="backend 'crypten'", fix=_FIX)
            if not self._links:
                self._start()
            drop = [self.forgotten.popleft() for _ in range(len(self.forgotten))]
            return self._exchange([pack({**header, "drop": drop}, dict(part)) for part in tensors], self._request_seconds)

    def close(self) -> None:
        """End the parties; what they hold is gone. Safe to call twice."""
        with self._lock:
            self._broken = self._broken or "closed"
            if self._stop is not None:
                self._stop()

    def _start(self) -> None:
        python = self._python or home.python()
        folder = tempfile.mkdtemp(prefix="privtensors-crypten-")
        processes: list[subprocess.Popen[bytes]] = self._processes
        ends: list[socket.socket] = []
        self._stop = weakref.finalize(self, _end, processes, ends, folder)
        kept = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "SYSTEMROOT")
        environment = {name: os.environ[name] for name in kept if name in os.environ}
        for rank in range(3 if self._provider == "TTP" else 2):
            ours, theirs = socket.socketpair()
            command = [str(python), "-I", "-X", "utf8", str(self._party), str(rank), folder, self._provider, str(theirs.fileno())]
            # -I leaves the folder of the script off the path; the party adds it itself.
            with theirs:
                processes.append(
                    subprocess.Popen(
                        command,
                        pass_fds=(theirs.fileno(),),
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                        env=environment,
                        start_new_session=True,  # Ctrl-C reaches the session alone, which ends the parties
                    )
                )
            ends.append(ours)
        self._links = tuple(ends[:2])
        self._exchange([], self._start_seconds)

    def _exchange(self, frames: Sequence[bytes], seconds: float) -> Reply:
        deadline = time.monotonic() + seconds
        headers: dict[int, dict[str, Any]] = {}
        tensors: dict[int, dict[str, Tensor]] = {}
        party, waiting = 0, dict(enumerate(self._links))
        try:
            for party, frame in enumerate(frames):
                send(self._links[party], frame, max(0.001, deadline - time.monotonic()))
            while waiting:
                party = min(waiting)
                ready, _, _ = select.select(list(waiting.values()), [], [], max(0.0, deadline - time.monotonic()))
                if not ready:
                    raise TimeoutError
                party = next(i for i, link in waiting.items() if link is ready[0])
                headers[party], tensors[party] = receive(waiting.pop(party), max(0.001, deadline - time.monotonic()))
                if not headers[party].get("ok"):  # the other may wait for it until it is ended
                    deadline = min(deadline, time.monotonic() + STEP_SECONDS)
        except TimeoutError:
            raise self._fail(headers, PeerTimeout, f"party {party} did not answer within {seconds:.0f} s") from None
        except FrameFault as fault:
            raise self._fail(headers, FrameError, f"party {party} sent something else than a reply: {fault}") from None
        except OSError:  # Closed is one
            raise self._fail(headers, PeerLost, f"party {party} ended{self._exit(party)}") from None
        except KeyboardInterrupt:  # the answers to this request would be taken for those to the next
            self._fail(headers, TransportError, "interrupted")
            raise
        if not all(h.get("ok") for h in headers.values()):
            raise self._fail(headers, TransportError, "the parties stopped")
        counted = [(int(headers[i].get("rounds", 0)), int(headers[i].get("bytes", 0))) for i in (0, 1)]
        rounds, sent = counted[1]  # party 0 alone talks to the trusted third party
        return Reply((headers[0], headers[1]), (tensors[0], tensors[1]), rounds, sent, max(0, counted[0][1] - sent))

    def _exit(self, party: int) -> str:
        try:
            return f" with exit code {self._processes[party].wait(3)}"
        except subprocess.TimeoutExpired:
            return ""

    def _fail(self, headers: Mapping[int, Mapping[str, Any]], kind: type[TransportError], what: str) -> TransportError:
        """End the parties and make the error; a party's own report is told first, since the other only lost its peer."""
        reports = [f"party {i} reports {h.get('error', 'a failure')}" for i, h in sorted(headers.items()) if not h.get("ok")]
        self._broken = "; ".join([*reports, what])
        if self._stop is not None:
            self._stop()
        return kind(self._broken, where="backend 'crypten'", fix=_FIX)


def _end(processes: Sequence[subprocess.Popen[bytes]], ends: Sequence[socket.socket], folder: str) -> None:
    for end in ends:
        end.close()
    for process in processes:
        process.kill()  # a party in the middle of an exchange waits for the other one, not for us
    for process in processes:
        process.wait()
    shutil.rmtree(folder, ignore_errors=True)
