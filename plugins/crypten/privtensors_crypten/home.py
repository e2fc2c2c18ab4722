"""Where CrypTen's own virtual environment lies, and how it is made: ``privtensors backends install crypten``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from platformdirs import user_data_path

from privtensors.errors import AssetUnavailable, MissingExtra

VARIABLE: Final = "PRIVTENSORS_CRYPTEN_PYTHON"
VERSION: Final = "0.4.1"
PARTY: Final = Path(__file__).parent / "worker" / "party.py"
REQUIREMENTS: Final = Path(__file__).with_name("requirements.txt")
_READY: Final = "privtensors-ready.json"

Stage = Callable[[str], AbstractContextManager[object]]


def folder() -> Path:
    """Folder of the environment; it need not exist."""
    return user_data_path("privtensors") / "plugins" / f"crypten-{VERSION}-py{sys.version_info[0]}{sys.version_info[1]}"


def python() -> Path:
    """The Python that runs the parties: ``PRIVTENSORS_CRYPTEN_PYTHON`` if set, else that of the installed environment.

    Raises:
        MissingExtra: Neither exists.
    """
    named = os.environ.get(VARIABLE)
    found = Path(named) if named else folder() / "bin" / "python"
    if not found.exists() or (not named and not (folder() / _READY).exists()):
        what = f"{VARIABLE} names {found}, which does not exist" if named else "CrypTen's environment is not installed"
        raise MissingExtra(what, where="backend 'crypten'", fix="run: privtensors backends install crypten")
    return found


def install(stage: Stage, again: bool = False) -> Mapping[str, str]:
    """Make the environment, unless it is there: a virtual environment with the pinned packages of ``requirements.txt``.

    CrypTen itself is installed without its dependencies, because its metadata asks for the dead package ``sklearn`` and for
    torchvision. pip takes its index, proxy and certificates from its own settings (``PIP_INDEX_URL``, ``PIP_EXTRA_INDEX_URL``).

    Args:
        stage: Called with a title around each step, e.g. to show progress.
        again: Remove what is there first.

    Returns:
        ``python`` (the interpreter) and the versions found of ``crypten`` and ``torch``.

    Raises:
        AssetUnavailable: A step failed; the message holds the last line that pip wrote. Nothing half-made is used.
    """
    home = folder()
    ready = home / _READY
    if ready.exists() and not again:
        return {**json.loads(ready.read_text(encoding="utf-8")), "python": str(home / "bin" / "python")}
    interpreter = str(home / "bin" / "python")
    pip = [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    with stage(f"virtual environment in {home}"):
        shutil.rmtree(home, ignore_errors=True)
        home.parent.mkdir(parents=True, exist_ok=True)
        _run([sys.executable, "-m", "venv", str(home)], "make a virtual environment")
    with stage("torch and what CrypTen imports"):
        _run([*pip, "-r", str(REQUIREMENTS)], "install the pinned requirements")
    with stage(f"CrypTen {VERSION}"):
        _run([*pip, "--no-deps", f"crypten=={VERSION}"], f"install CrypTen {VERSION}")
    with stage("trying it"):
        found: dict[str, str] = json.loads(_run([interpreter, str(PARTY), "check"], "import CrypTen"))
    ready.write_text(json.dumps(found), encoding="utf-8")
    return {**found, "python": interpreter}


def _run(command: Sequence[str], what: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean)
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise AssetUnavailable(
            f"cannot {what}: {said[-1] if said else f'exit code {done.returncode}'}",
            where="privtensors backends install crypten",
            fix="check the network and pip's settings (pip config list), then run it again",
        )
    return done.stdout
