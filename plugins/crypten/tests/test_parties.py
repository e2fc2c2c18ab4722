"""Real parties: what each of them gets, that they end, and that a lost one is a typed error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from privtensors_crypten import bounds, home
from privtensors_crypten.backend import CrypTenBackend
from privtensors_crypten.technique import CrypTen

import privtensors as pt
from privtensors.core import Session
from privtensors.core.recorder import MemoryRecorder
from privtensors.errors import InvalidInput, OutOfRange, PeerLost, UnsupportedOp

pytestmark = pytest.mark.crypten
TECHNIQUE = CrypTen()
ROOT = Path(home.__file__).parents[1]


@pytest.fixture
def session() -> Iterator[Session]:
    with Session(recorder=MemoryRecorder()) as session:
        yield session
        backend_of(session).close()


def backend_of(session: Session) -> CrypTenBackend:
    backend = session.backend(TECHNIQUE)
    assert isinstance(backend, CrypTenBackend)
    return backend


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return done


def gone(process: subprocess.Popen[bytes]) -> bool:
    return process.poll() is not None


def test_a_model_of_linear_layers_and_relu(session: Session) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.Linear(36, 3)
    )
    image = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        want = model(image)
        got = pt.reveal(model(pt.protect(image, TECHNIQUE)))
    assert float((got - want).abs().max()) < 2e-3


def test_the_dealer_is_counted_apart(session: Session) -> None:
    x = pt.protect(torch.randn(3, 4), TECHNIQUE)
    with session.meter.scope() as scope:
        x * x.clone()
    assert (scope.spent.rounds, scope.spent.bytes_sent) == (1, 8 * 24) and scope.spent.dealer_bytes > 0


def test_a_killed_party_is_a_typed_error_and_ends_the_others(session: Session) -> None:
    x = pt.protect(torch.randn(3, 4), TECHNIQUE)
    processes = backend_of(session).workers._processes
    os.kill(processes[1].pid, signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(PeerLost, match="party"):
        pt.reveal(torch.relu(x))
    assert time.monotonic() - start < 10
    assert all(map(gone, processes)) and len(processes) == 3
    with pytest.raises(PeerLost, match="ended earlier"):
        pt.reveal(x)


def test_a_killed_dealer_is_a_typed_error(session: Session) -> None:
    x = pt.protect(torch.randn(3, 4), TECHNIQUE)
    os.kill(backend_of(session).workers._processes[2].pid, signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(pt.PrivTensorsError):
        pt.reveal(torch.relu(x))
    assert time.monotonic() - start < 15
    assert all(map(gone, backend_of(session).workers._processes))


def test_bad_requests_reach_no_party(session: Session) -> None:
    x = pt.protect(torch.randn(3, 4), TECHNIQUE)
    for call, error in (
        (lambda: x @ x, InvalidInput),
        (lambda: x + float("inf"), OutOfRange),
        (lambda: x * torch.full((4,), float("nan")), OutOfRange),
        (lambda: x / 0, InvalidInput),
        (lambda: x**5, UnsupportedOp),
        (lambda: pt.protect(torch.full((2,), 2.0**18), TECHNIQUE), OutOfRange),
        (lambda: pt.protect(torch.arange(3), TECHNIQUE), InvalidInput),
    ):
        with pytest.raises(error):
            call()
    assert torch.equal(pt.reveal(torch.relu(x)) > 0, pt.reveal(x) > 0), "the parties go on"


def test_forgotten_values_are_dropped_at_the_parties(session: Session) -> None:
    """The number of a value that is gone names nothing any more."""
    backend = backend_of(session)
    x = backend.protect(torch.ones(2), owner="client")
    number = x.number
    del x
    backend.protect(torch.ones(2), owner="client")
    with pytest.raises(pt.PrivTensorsError, match="KeyError"):
        backend.workers.request({"verb": "give", "held": number})


def test_the_parties_end_with_the_program() -> None:
    code = (
        "import torch, privtensors as pt\n"
        "from privtensors.core import Session\n"
        "from privtensors.core.recorder import MemoryRecorder\n"
        "from privtensors_crypten.technique import CrypTen\n"
        "session = Session(recorder=MemoryRecorder())\n"
        "session.__enter__()\n"
        "x = pt.protect(torch.ones(2), CrypTen())\n"
        "print(*[p.pid for p in session.backend(CrypTen()).workers._processes], flush=True)\n"
    )
    done = run("-c", code)
    pids = [int(word) for word in done.stdout.split()]
    assert len(pids) == 3
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_the_example_runs_as_it_stands() -> None:
    done = run("-W", "error", str(ROOT / "examples" / "convolution_on_crypten.py"))
    assert "SIMULATED" in done.stdout and float(done.stdout.split("largest error ")[1]) < 0.02


def test_measured_errors_are_within_the_declared_ones() -> None:
    done = run("-W", "error", str(ROOT / "examples" / "measure_errors.py"), "--points", "5000")
    found = [float(line.split("largest error ")[1]) for line in done.stdout.splitlines() if "largest error" in line]
    declared = ("EXP_BELOW_ZERO", "EXP", "RECIPROCAL", "RSQRT", "SQRT", "SIGMOID", "TANH", "SOFTMAX")
    for name, error in zip(declared, found, strict=True):
        assert 0 < error <= getattr(bounds, name), name
    assert "products 1000 x 1000" in done.stdout
