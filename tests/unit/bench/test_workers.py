"""Frames, worker processes and the maker of environments, with a small worker in a peer's place."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from privtensors.deploy import Deployment
from tests.bench.peers import environment, frames
from tests.bench.peers.environment import READY, Environment, NotMeasured, make
from tests.bench.peers.lineup import CRYPTEN, POLICY, free_ports
from tests.bench.peers.remote import Launch, RemoteContender
from tests.unit.bench.fakes import request

WORKER = """
import sys, time
from tests.bench.peers.frames import serve

def handle(header, arrays):
    if header["do"] == "load":
        return {"weights_s": 0.5}, {}
    print("noise on stdout")
    mode = sys.argv[1]
    if mode == "raises":
        raise ValueError("erf left its domain")
    if mode == "dies":
        sys.exit("out of memory")
    if mode == "sleeps":
        time.sleep(60)
    reply = {"total_s": float(sys.argv[2]), "cpu_s": 1.5, "offline_s": 0.25, "rounds": 7}
    return reply, {} if mode == "silent" else {"output": arrays["hidden"] + 1}

serve(handle)
"""


def launch(script: Path, mode: str, seconds: int = 1) -> Launch:
    path = {"PYTHONPATH": str(Path(frames.__file__).parents[3])}
    return Launch([sys.executable, str(script), mode, str(seconds)], path)


def contender(tmp_path: Path, *modes: str, limit_s: float = 30.0) -> RemoteContender:
    script = tmp_path / "worker.py"
    script.write_text(WORKER, encoding="utf-8")
    launches = [launch(script, mode, i + 1) for i, mode in enumerate(modes)]
    return RemoteContender("fake", "spu", lambda _say: launches, runs=1, limit_s=limit_s)


def test_frames_carry_a_header_and_arrays() -> None:
    arrays: frames.Arrays = {
        "a": np.arange(6, dtype=np.int64).reshape(2, 3),
        "b": np.zeros((0, 4), dtype=np.float32),
        "c": np.full((), 1.5, dtype=np.float32),
    }
    stream = io.BytesIO()
    frames.write(stream, {"do": "run", "link": None}, arrays)
    stream.seek(0)
    header, got = frames.read(lambda n: stream.read(min(n, 3)))  # a pipe gives what it has
    assert header == {"do": "run", "link": None}
    for name, array in arrays.items():
        assert got[name].dtype == array.dtype and np.array_equal(got[name], array)


def test_a_cut_or_foreign_frame_is_refused() -> None:
    stream = io.BytesIO()
    frames.write(stream, {}, {"a": np.ones(100)})
    cut = io.BytesIO(stream.getvalue()[:-1])
    with pytest.raises(frames.WorkerEnded):
        frames.read(cut.read)
    with pytest.raises(ValueError, match="no frame"):
        frames.read(io.BytesIO(b"Traceback (most recent call last)").read)


def test_no_pickle_comes_through() -> None:
    with pytest.raises(ValueError, match="Object arrays"):
        frames.write(io.BytesIO(), {}, {"a": np.array([{}], dtype=object)})


def test_replies_of_several_workers_are_combined(tmp_path: Path) -> None:
    fake = contender(tmp_path, "silent", "answers")
    try:
        fake.set_up(lambda _line: None)
        sample = fake.run(request())
    finally:
        fake.close()
    assert (sample.total_s, sample.cpu_s, sample.offline_s, sample.online_s, sample.rounds) == (2.0, 3.0, 0.25, 1.75, 7)
    assert (sample.error_max, sample.dealer_bytes) == (0.0, None)
    assert sample.peak_mib is None or sample.peak_mib > 1
    assert fake.facts == {"weights_s": 0.5}


@pytest.mark.parametrize(
    ("mode", "reason"),
    [("raises", "ValueError: erf left its domain"), ("dies", "its process ended: out of memory"), ("silent", "no worker gave an output")],
)
def test_a_failure_becomes_the_reason(tmp_path: Path, mode: str, reason: str) -> None:
    fake = contender(tmp_path, mode)
    try:
        fake.set_up(lambda _line: None)
        with pytest.raises(NotMeasured, match=reason):
            fake.run(request())
    finally:
        fake.close()


def test_a_worker_that_does_not_answer_is_ended(tmp_path: Path) -> None:
    fake = contender(tmp_path, "sleeps", limit_s=5.0)
    fake.set_up(lambda _line: None)
    (process,) = [worker.process for worker in fake._workers]
    with pytest.raises(NotMeasured, match="no answer within 5 s"):
        fake.run(request())
    fake.close()
    assert process.poll() is not None


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    fake = RemoteContender("fake", "spu", lambda _say: [Launch([str(tmp_path / "none")])], runs=1)
    with pytest.raises(NotMeasured, match="did not start"):
        fake.set_up(lambda _line: None)


def test_a_worker_that_gets_no_requests_is_watched(tmp_path: Path) -> None:
    script = tmp_path / "busy.py"
    busy = "import threading\ndef spin():\n    while True: pass\nthreading.Thread(target=spin, daemon=True).start()\n"
    script.write_text(busy + WORKER, encoding="utf-8")
    watched = replace(launch(script, "answers"), answers=False)
    fake = RemoteContender("fake", "us", lambda _say: [watched, launch(script, "answers")], runs=1)
    try:
        fake.set_up(lambda _line: None)
        # The kernel counts in ticks of 10 ms, and one run takes less.
        samples = [fake.run(request()) for _ in range(100)]
    finally:
        fake.close()
    assert all(sample.total_s == 1.0 for sample in samples)
    assert max(sample.cpu_s for sample in samples) > 1.5, "its own 1.5 and what the watched one used meanwhile"


def test_the_deployment_that_is_benchmarked_is_a_valid_one(tmp_path: Path) -> None:
    server, dealer = free_ports(2)
    assert server != dealer
    file = tmp_path / "policy.toml"
    file.write_text(POLICY.format(model=json.dumps("/models/a b"), server=server, dealer=dealer), encoding="utf-8")
    deployment = Deployment.load(file)
    assert deployment.server == ("127.0.0.1", server) and deployment.dealer == ("127.0.0.1", dealer)
    assert deployment.models["client"] == Path("/models/a b") and deployment.limits.threads == 1


PEER = Environment("peer", ("library==1.0",), bare=("peer==2.0",))


class Commands:
    """Stands in for venv and pip."""

    def __init__(self, fails: str = "") -> None:
        self.seen: list[Sequence[str]] = []
        self.fails = fails

    def __call__(self, command: Sequence[str]) -> None:
        self.seen.append(command)
        if "venv" in command:
            Path(command[-1]).mkdir()
        if self.fails and self.fails in command:
            raise NotMeasured(f"no {self.fails}")


def test_an_environment_is_made_once(tmp_path: Path) -> None:
    commands = Commands()
    said: list[str] = []
    python = make(PEER, folder=tmp_path, run=commands, say=said.append)
    assert python == tmp_path / PEER.key / "bin" / "python"
    venv, install, bare = commands.seen
    assert list(venv[1:3]) == ["-m", "venv"]
    assert install[-1] == "library==1.0" and "--no-deps" not in install
    assert bare[-1] == "peer==2.0" and "--no-deps" in bare
    assert len(said) == 3
    assert make(PEER, folder=tmp_path, run=commands, say=said.append) == python
    assert len(commands.seen) == 3 and len(said) == 3


def test_an_unfinished_environment_is_made_again(tmp_path: Path) -> None:
    with pytest.raises(NotMeasured, match=r"no peer==2.0"):
        make(PEER, folder=tmp_path, run=Commands("peer==2.0"), say=lambda _line: None)
    left = tmp_path / PEER.key
    assert left.is_dir() and not (left / READY).exists()
    (left / "half").touch()
    make(PEER, folder=tmp_path, run=Commands(), say=lambda _line: None)
    assert (left / READY).exists() and not (left / "half").exists()


def test_other_requirements_are_another_environment() -> None:
    assert PEER.key != Environment("peer", ("library==1.1",), bare=("peer==2.0",)).key
    assert PEER.key != Environment("peer", ("library==1.0", "peer==2.0")).key


def test_crypten_is_installed_and_imported_as_the_plugin_does(tmp_path: Path) -> None:
    pins = (frames_folder().parents[2] / "plugins/crypten/privtensors_crypten/requirements.txt").read_text(encoding="utf-8").split()
    stated = set(CRYPTEN.requirements)
    assert {pin for pin in pins if "==" in pin and not pin.startswith("torch==")} < stated and len(stated) > 5
    assert f"torch=={torch.__version__.split('+')[0]}" in stated, "the one that measures us"
    (tmp_path / "crypten.py").write_text("import torch.onnx.symbolic_registry\nimport torchvision.models\n", encoding="utf-8")
    code = "import crypten_worker, sys\nprint(crypten_worker.import_crypten().__name__, 'torchvision' in sys.modules)"
    path = os.pathsep.join([str(tmp_path), str(frames_folder())])
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["crypten", "False"], done.stderr


def frames_folder() -> Path:
    """Where the workers lie, which import each other by plain names."""
    return Path(frames.__file__).parent


def test_the_cache_folder_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIVTENSORS_BENCH_CACHE", str(tmp_path))
    assert environment.cache_folder() == tmp_path


def test_reasons_of_a_failed_set_up() -> None:
    with pytest.raises(NotMeasured, match="needs Python 9"):
        environment.interpreter("9.9")
    script = "import sys; print('ERROR: no such package', file=sys.stderr); print('hint', file=sys.stderr); sys.exit(1)"
    with pytest.raises(NotMeasured, match="ERROR: no such package"):
        environment.run_quietly([sys.executable, "-c", script])
