"""Python processes forked from one that has imported torch and transformers: such an import is five seconds of CPU time, a fork is none.

A process of its own in everything else: arguments, environment, folder, signals, exit code, pipes. What a start from nothing does
differently (imports themselves, the interpreter's end) is left to the tests that use :mod:`subprocess`.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import types
import warnings
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as ready
from pathlib import Path
from typing import IO, Self

_CONTEXT = multiprocessing.get_context("forkserver")
# Nothing of privtensors: a test's process imports it as any other does.
_CONTEXT.set_forkserver_preload(
    ["torch", "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto", "transformers.modeling_layers"]
)


class Process:
    """``python ARGUMENTS``, where the arguments are ``[-W error] -m MODULE …``, ``-c CODE …`` or ``SCRIPT …``.

    Attributes:
        stdin: Lines to the process.
        stdout: Lines of the process; None where they go to a file.

    Args:
        arguments: Behind ``python``.
        stderr: Where errors are written.
        stdout: Where output is written; a pipe by default.
        cwd: Its folder; this process's by default.
    """

    def __init__(self, arguments: Sequence[str], *, stderr: Path, stdout: Path | None = None, cwd: Path | None = None) -> None:
        theirs_in, ours_in = _CONTEXT.Pipe(duplex=False)
        ours_out, theirs_out = _CONTEXT.Pipe(duplex=False)
        given = (list(arguments), theirs_in, theirs_out if stdout is None else stdout, stderr, cwd or Path.cwd(), dict(os.environ))
        self._process = _CONTEXT.Process(target=_run, args=given, daemon=True)
        self._process.start()
        self._lock = threading.Lock()  # the exit code is read from a pipe, once
        self.stdin: IO[str] = os.fdopen(os.dup(ours_in.fileno()), "w", buffering=1)
        self.stdout: IO[str] | None = None if stdout else os.fdopen(os.dup(ours_out.fileno()), "r")
        for end in (theirs_in, ours_in, ours_out, theirs_out):
            end.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Its id."""
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code, the negative signal's number where one ended it; None while it runs."""
        with self._lock:
            return self._process.exitcode

    def wait(self, seconds: float) -> int:
        """The exit code.

        Raises:
            subprocess.TimeoutExpired: It goes on.
        """
        ready([self._process.sentinel], seconds)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", seconds)
        return code

    def signal(self, number: int) -> None:
        """Send a signal, where it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def close(self) -> None:
        """Kill it, stopped or not, and close the pipes."""
        self.signal(signal.SIGKILL)
        self.wait(10)
        for pipe in (self.stdin, self.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def run(*arguments: str, cwd: Path | None = None, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run ``python ARGUMENTS`` to its end; what :func:`subprocess.run` returns."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = Process(arguments, stdout=out, stderr=err, cwd=cwd)
        try:
            process.stdin.close()
            code = process.wait(timeout)
        finally:
            process.close()
        return subprocess.CompletedProcess(arguments, code, out.read_text(), err.read_text())


def _run(arguments: list[str], stdin: Connection, stdout: Connection | Path, stderr: Path, cwd: Path, environment: dict[str, str]) -> None:
    """In the new process."""
    gc.freeze()  # what was imported before the fork is no work for this one's collections
    with stderr.open("w") as errors:
        os.dup2(errors.fileno(), 2)
    os.dup2(stdin.fileno(), 0)
    if isinstance(stdout, Path):
        with stdout.open("w") as output:
            os.dup2(output.fileno(), 1)
    else:
        os.dup2(stdout.fileno(), 1)
        stdout.close()
    stdin.close()
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    if arguments[:2] == ["-W", "error"]:
        warnings.simplefilter("error")
        del arguments[:2]
    try:
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            sys.path.insert(0, str(cwd))
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        elif arguments[0] == "-c":
            sys.argv = ["-c", *arguments[2:]]
            sys.path.insert(0, str(cwd))
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(arguments[1], "<string>", "exec"), vars(main))
        else:
            sys.argv = arguments
            sys.path.insert(0, str(Path(arguments[0]).parent))
            runpy.run_path(arguments[0], run_name="__main__")
    finally:
        sys.stdout.flush()
