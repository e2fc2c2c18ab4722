"""A contender in worker processes of its own, one or several, spoken to in frames."""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tests.bench.peers import frames
from tests.bench.peers.contender import Request, Sample, errors
from tests.bench.peers.environment import NotMeasured, Say

REPOSITORY = Path(__file__).parents[3]


@dataclass(frozen=True, slots=True)
class Launch:
    """How one worker process starts.

    Attributes:
        command: The program.
        environment: Added to this process's.
        load: What it is told to load.
        arrays: The same, arrays.
        answers: False: it is given no requests, because it gets them from another worker; its CPU seconds are read from outside.
    """

    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    load: frames.Header = field(default_factory=dict)
    arrays: frames.Arrays = field(default_factory=dict)
    answers: bool = True


class Worker:
    """One running process. Its stderr is kept for the reason of a failure."""

    def __init__(self, launch: Launch, limit_s: float) -> None:
        self.answers = launch.answers
        self._limit = limit_s
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
        try:
            self.process = subprocess.Popen(
                launch.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env={**inherited, **launch.environment},
                cwd=REPOSITORY,
            )
        except OSError as error:
            self._log.close()
            raise NotMeasured(f"its process did not start: {error}") from error
        assert self.process.stdin and self.process.stdout
        self._in, self._out = self.process.stdin, self.process.stdout
        self._deadline = 0.0

    def tell(self, header: frames.Header, arrays: frames.Arrays | None = None) -> None:
        """Send a command; its time limit starts."""
        self._deadline = time.monotonic() + self._limit
        try:
            frames.write(self._in, header, arrays or {})
        except OSError as error:
            raise NotMeasured(f"its process ended: {self._last_words()}") from error

    def hear(self) -> tuple[frames.Header, frames.Arrays]:
        """The reply to the last command.

        Raises:
            NotMeasured: An error reply, the end of the process, or the time limit.
        """
        try:
            reply, arrays = frames.read(self._take)
        except frames.WorkerEnded as error:
            raise NotMeasured(f"its process ended: {self._last_words()}") from error
        except ValueError as error:
            raise NotMeasured(f"its answer cannot be read: {error}") from error
        if "error" in reply:
            raise NotMeasured(str(reply["error"]).splitlines()[0][:300])
        return reply, arrays

    def peak_mib(self) -> float | None:
        """Largest resident memory so far (Linux), MiB."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024
        return None

    def cpu_s(self) -> float:
        """CPU seconds so far (Linux): the clock that clock_getcpuclockid(3) names."""
        try:
            return time.clock_gettime((~self.process.pid << 3) | 2)
        except OSError as error:
            raise NotMeasured(f"its CPU seconds cannot be read: {error}") from error

    def close(self) -> None:
        """Ask it to stop, then make it."""
        with contextlib.suppress(OSError, NotMeasured):
            if self.process.poll() is None:
                self.tell({"do": "stop"})
        with contextlib.suppress(OSError):
            self._in.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._out.close()
        self._log.close()

    def _take(self, count: int) -> bytes:
        with selectors.DefaultSelector() as selector:
            selector.register(self._out, selectors.EVENT_READ)
            if not selector.select(max(0.0, self._deadline - time.monotonic())):
                self.process.kill()
                raise NotMeasured(f"no answer within {self._limit:.0f} s")
        return os.read(self._out.fileno(), min(count, 1 << 20))

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=2)
        if self._log.closed:
            return "no message"
        self._log.seek(0)
        lines = [line for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip()[:300] if lines else f"no message, exit status {self.process.poll()}"


class RemoteContender:
    """A contender of one or several workers that all get every command.

    Args:
        name: In the table.
        role: See :class:`~tests.bench.peers.contender.Contender`.
        launches: Called at set-up: prepares what is needed and says how each worker starts.
        runs: Counted runs.
        shapes: Whether its workers understand ``"link"``.
        remark: For the reader.
        limit_s: Longest wait for one answer.

    The workers' replies are combined: the longest wall time, the sum of CPU seconds, the rest from the first that states it.
    """

    def __init__(
        self,
        name: str,
        role: str,
        launches: Callable[[Say], Sequence[Launch]],
        *,
        runs: int,
        shapes: bool = True,
        remark: str = "",
        limit_s: float = 900.0,
    ) -> None:
        self.name, self.role, self.runs, self.shapes, self.remark = name, role, runs, shapes, remark
        self._launches, self._limit = launches, limit_s
        self._workers: list[Worker] = []
        self.facts: dict[str, Any] = {}

    def set_up(self, say: Say) -> None:
        try:
            launches = self._launches(say)
            say(f"{self.name}: starting {len(launches)} process(es)")
            for launch in launches:
                self._workers.append(Worker(launch, self._limit))
                self._workers[-1].tell({"do": "load", **launch.load}, launch.arrays)
            for worker in self._workers:
                self.facts.update(worker.hear()[0])
        except NotMeasured:
            self.close()
            raise

    def run(self, request: Request) -> Sample:
        link = request.link
        header = {"do": "run", "link": None if link is None else {"bits_per_s": link.bits_per_s, "rtt_s": link.rtt_s}}
        asked, watched = [w for w in self._workers if w.answers], [w for w in self._workers if not w.answers]
        before = sum(worker.cpu_s() for worker in watched)
        for worker in asked:
            worker.tell(header, {"ids": request.ids, "hidden": request.hidden})
        answers = [worker.hear() for worker in asked]
        others = sum(worker.cpu_s() for worker in watched) - before
        output = next((arrays["output"] for _, arrays in answers if "output" in arrays), None)
        if output is None:
            raise NotMeasured("no worker gave an output")
        replies = [reply for reply, _ in answers]
        error_max, error_mean = errors(output, request.reference)
        peaks = [peak for worker in self._workers if (peak := worker.peak_mib()) is not None]
        total = max(reply["total_s"] for reply in replies)
        offline = _first(replies, "offline_s")
        return Sample(
            total,
            sum(reply["cpu_s"] for reply in replies) + others,
            error_max,
            error_mean,
            online_s=None if offline is None else total - offline,
            offline_s=offline,
            rounds=_first(replies, "rounds"),
            bytes_sent=_first(replies, "bytes_sent"),
            dealer_bytes=_first(replies, "dealer_bytes"),
            peak_mib=max(peaks) if peaks else None,
        )

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
        self._workers = []


def _first(replies: Sequence[frames.Header], key: str) -> Any:
    return next((reply[key] for reply in replies if reply.get(key) is not None), None)
