"""A virtual environment of a peer's own, made once, in a cache folder outside the repository."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

READY = "benchmark-ready"
Run = Callable[[Sequence[str]], None]
Say = Callable[[str], None]


class NotMeasured(Exception):
    """A contender that cannot be set up or run; the message is the reason that stands in the table."""


@dataclass(frozen=True, slots=True)
class Environment:
    """What a peer needs.

    Attributes:
        name: Of the folder.
        requirements: pip requirements, resolved together.
        bare: pip requirements installed after them without their dependencies.
        python: The version it needs, e.g. ``"3.11"``; empty: the one that runs the benchmark.
    """

    name: str
    requirements: tuple[str, ...]
    bare: tuple[str, ...] = ()
    python: str = ""

    @property
    def key(self) -> str:
        """Changes with anything that would make the environment another one."""
        stated = "\n".join([self.name, *self.requirements, "--", *self.bare, interpreter(self.python)])
        return f"{self.name}-{hashlib.sha256(stated.encode()).hexdigest()[:12]}"


def cache_folder() -> Path:
    """Where the environments live: ``PRIVTENSORS_BENCH_CACHE``, or the user's cache directory."""
    chosen = os.environ.get("PRIVTENSORS_BENCH_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("privtensors")) / "bench"


def interpreter(version: str) -> str:
    """The interpreter for ``version``; this one where it fits or none is asked for.

    Raises:
        NotMeasured: There is no such interpreter.
    """
    if not version or f"{sys.version_info.major}.{sys.version_info.minor}" == version:
        return sys.executable
    found = shutil.which(f"python{version}")
    if (
        found and subprocess.run([found, "--version"], capture_output=True, check=False).returncode == 0
    ):  # not a version manager's empty name
        return found
    raise NotMeasured(f"needs Python {version}, which is not installed")


def run_quietly(command: Sequence[str]) -> None:
    """Run one command.

    Raises:
        NotMeasured: It failed, or took over half an hour; with its last line.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotMeasured(f"setting it up failed: {error}") from error
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
        raise NotMeasured(f"setting it up failed: {' '.join(errors[-1:]) or f'exit status {done.returncode}'}")


def make(environment: Environment, *, folder: Path | None = None, run: Run = run_quietly, say: Say = print) -> Path:
    """The environment's python, after making the environment where it is not there yet.

    One that was left unfinished is made again. Two benchmarks at once: the second waits for the first.

    Raises:
        NotMeasured: It cannot be made.
    """
    place = (folder or cache_folder()) / environment.key
    python = place / "bin" / "python"
    place.parent.mkdir(parents=True, exist_ok=True)
    with _locked(place.with_name(place.name + ".lock")):
        if (place / READY).exists():
            return python
        shutil.rmtree(place, ignore_errors=True)
        say(f"{environment.name}: making {place} (once)")
        run([interpreter(environment.python), "-m", "venv", str(place)])
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
        for packages, options in ((environment.requirements, []), (environment.bare, ["--no-deps"])):
            if packages:
                say(f"{environment.name}: installing {' '.join(packages)}")
                run([*pip, *options, *packages])
        (place / READY).touch()
    return python


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
