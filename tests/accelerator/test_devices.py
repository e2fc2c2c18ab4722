"""The mpc suite on other devices than the CPU: an emulated one everywhere, and CUDA where there is one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.accelerator import emulated

_SUITE = Path(__file__).with_name("device_suite.py")
_DEVICES = [emulated.NAME, *(["cuda"] if torch.cuda.is_available() else [])]


def _python(*arguments: str, device: str) -> subprocess.CompletedProcess[str]:
    # In a process of its own: torch cannot forget a device again.
    env = {**os.environ, "PRIVTENSORS_TEST_DEVICE": device}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=env, timeout=800)


@pytest.mark.parametrize("device", _DEVICES)
def test_suite_passes_on(device: str) -> None:
    done = _python("-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", str(_SUITE), device=device)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None and int(passed[1]) > 600 and "skipped" not in done.stdout


_REFUSED = """
import torch
from tests.accelerator import emulated
kept = emulated.register()
x, refused = torch.ones(2, 2, dtype=torch.int64).to("emulated"), []
for call in (lambda: x @ x, lambda: x + torch.ones(2, 2, dtype=torch.int64), lambda: x.numpy(), lambda: torch.bmm(x[None], x[None])):
    try:
        call()
    except (RuntimeError, TypeError) as error:
        refused.append(type(error).__name__)
assert (x + 1).cpu().tolist() == [[2, 2], [2, 2]]
print(refused)
"""


def test_the_emulated_device_refuses_what_cuda_refuses() -> None:
    done = _python("-c", _REFUSED, device=emulated.NAME)
    assert done.stdout.split() == ["['RuntimeError',", "'RuntimeError',", "'TypeError',", "'RuntimeError']"], done.stderr


def test_a_session_on_a_device_that_is_not_there() -> None:
    from privtensors.core.session import Session
    from privtensors.errors import InvalidInput, ParameterError

    for device in ("meta", "xpu:7", "nonsense"):
        with pytest.raises(ParameterError, match="device"):
            Session(device=device)
    assert Session(device="cpu").device is None
    session = Session()
    session.device = torch.device("cuda")
    with pytest.raises(InvalidInput, match="computes on the CPU"):
        session.backend("clear")
