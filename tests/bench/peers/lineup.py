"""Who takes part: the plain model, us, and the peers by the names that ``--vs`` takes."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir, mkdtemp

import torch

from tests.bench.peers import environment
from tests.bench.peers.contender import Contender
from tests.bench.peers.environment import Environment, Say
from tests.bench.peers.model import PlainModel
from tests.bench.peers.remote import Launch, RemoteContender

HERE = Path(__file__).parent

SPU = Environment("spu", ("spu==0.9.5", "jax==0.4.34", "jaxlib==0.4.34", "numpy<2"), python="3.11")


def plugin_requirements() -> tuple[str, ...]:
    """What the plugin pins for CrypTen, with the torch that measures us in the place of the plugin's."""
    file = HERE.parents[2] / "plugins" / "crypten" / "privtensors_crypten" / "requirements.txt"
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    others = (line for line in lines if line and not line.startswith(("#", "torch==")))
    return (f"torch=={torch.__version__.split('+')[0]}", *others)


CRYPTEN = Environment("crypten", plugin_requirements(), bare=("crypten==0.4.1",))  # its metadata asks for a package that no longer exists


@dataclass(frozen=True, slots=True)
class Setting:
    """What all contenders share.

    Attributes:
        model: The plain model.
        threads: Cores, and compute threads, of one contender in all.
        runs: Counted runs of everybody else.
        peer_runs: Counted runs by ``--vs`` name.
        device: A further row of us in one process computes there; None for none.
    """

    model: PlainModel
    threads: int
    runs: int
    peer_runs: dict[str, int]
    device: str | None = None


def own(setting: Setting, kind: str, name: str, role: str, remark: str = "", device: str | None = None) -> Contender:
    """The plain model, or ``mpc`` with both parties and the dealer in one process."""
    load = {"threads": setting.threads, "device": device}
    launch = Launch([sys.executable, "-m", "tests.bench.peers.own_worker", kind], load=load)
    return RemoteContender(name, role, lambda _say: [launch], runs=setting.runs, remark=remark)


def spu(setting: Setting) -> list[Contender]:
    """SPU's two protocols, parties as threads of one process; with the model's GELU, and with a cheaper one."""

    def contender(protocol: str, gelu: str) -> Contender:
        def launches(say: Say) -> Sequence[Launch]:
            python = environment.make(SPU, say=say)
            load = {"protocol": protocol, "gelu": gelu, "shape": setting.model.shape()}
            return [Launch([str(python), str(HERE / "spu_worker.py")], load=load, arrays=setting.model.weights())]

        return RemoteContender(
            f"SPU 0.9.5 {protocol} {gelu}",
            "spu",
            launches,
            runs=setting.peer_runs["spu"],
            shapes=False,
            remark=f"its own simulation: parties are threads linked by memory; GELU by {gelu}; rounds are party 0's send actions",
        )

    return [contender(protocol, gelu) for gelu in ("erf", "tanh") for protocol in ("SEMI2K", "ABY3")]


def crypten(setting: Setting) -> list[Contender]:
    """CrypTen with its stock operations, and with a GELU that stays in range."""

    def contender(variant: str, remark: str) -> Contender:
        def launches(say: Say) -> Sequence[Launch]:
            python = environment.make(CRYPTEN, say=say)
            meeting = Path(gettempdir()) / f"privtensors-bench-{os.urandom(8).hex()}"
            return [_crypten_party(setting, str(python), variant, rank, meeting) for rank in (0, 1)]

        return RemoteContender(f"CrypTen 0.4.1 {variant}", "crypten", launches, runs=setting.peer_runs["crypten"], remark=remark)

    return [
        contender("stock", "2 processes over loopback TCP; erf, softmax and inv_sqrt as the library has them"),
        contender("in range", "the same with GELU as a clipped quartic on its comparisons and products, because its erf leaves its domain"),
    ]


def _crypten_party(setting: Setting, python: str, variant: str, rank: int, meeting: Path) -> Launch:
    threads = max(1, setting.threads // 2)
    variables = {
        "WORLD_SIZE": "2",
        "RANK": str(rank),
        "RENDEZVOUS": f"file://{meeting}",
        "DISTRIBUTED_BACKEND": "gloo",
        "OMP_NUM_THREADS": str(threads),
    }
    load = {"threads": threads, "variant": variant, "shape": setting.model.shape()}
    return Launch([python, str(HERE / "crypten_worker.py")], variables, load, setting.model.weights())


PEERS: dict[str, Callable[[Setting], list[Contender]]] = {"crypten": crypten, "spu": spu}


POLICY = """version = 1
receiver = "client"

[[infer]]
technique = "mpc"

[deployment]
task = "feature-extraction"
keys = "keys"

[deployment.client]
model = {model}

[deployment.server]
address = "127.0.0.1:{server}"
model = {model}

[deployment.dealer]
address = "127.0.0.1:{dealer}"
model = {model}

[deployment.limits]
threads = 1
session_s = 86400.0
prepared_mib = 4096
"""
THREE = "us, three processes"
AHEAD = f"{THREE}, dealt ahead"


def deployed(setting: Setting, *, ahead: bool = False) -> Contender:
    """Client, server and dealer as processes of their own, over TLS on loopback; dealing before each request, or while it runs."""

    def launches(say: Say) -> Sequence[Launch]:
        from privtensors.testing.assets import minilm_path
        from privtensors.transport.tls import make_test_certificates

        folder = Path(mkdtemp(prefix="privtensors-bench-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        make_test_certificates(folder / "keys", ["client", "server", "dealer"])
        server, dealer = free_ports(2)
        policy = folder / "policy.toml"
        policy.write_text(POLICY.format(model=json.dumps(str(minilm_path())), server=server, dealer=dealer), encoding="utf-8")
        load = {"threads": 1, "policy": str(policy), "ahead": ahead}
        return [
            Launch(
                [sys.executable, "-m", "tests.bench.peers.own_worker", role],
                {"OMP_NUM_THREADS": "1"},
                load,
                answers=role == "client",
            )
            for role in ("dealer", "server", "client")
        ]

    remark = (
        "the same with each request prepared before it is made: offline is that, and what the client spends on expanding its seed"
        if ahead
        else "client, server and dealer over TLS on loopback, dealing inline, one thread each; computes the pooler as well; offline is"
        " what the client itself spends on it or waits for the dealer, which works at the same time; the target for online is judged"
        " on the row dealt ahead"
    )
    return RemoteContender(AHEAD if ahead else THREE, "us", launches, runs=setting.runs, remark=remark)


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def ours(setting: Setting) -> list[Contender]:
    """Us, in every way we can be run here."""
    together = "both parties and the dealer in one process, linked by memory: SIMULATED"
    found = [own(setting, "mpc", "us, one process", "us", together), deployed(setting, ahead=True), deployed(setting)]
    if setting.device is not None:
        found.append(own(setting, "mpc", f"us, one process, {setting.device}", "us", together, setting.device))
    return found
