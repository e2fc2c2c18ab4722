"""Worker of the plain model and of us: ``python -m tests.bench.peers.own_worker {plain,mpc,client,server,dealer}``.

``mpc`` is both parties and the dealer in one process; the last three are the parties of a deployment.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from privtensors.core.allocator import keep_freed_memory
from tests.bench.peers.frames import Arrays, Handler, Header, serve


def load_model(header: Header) -> Any:
    from transformers import AutoModel

    from privtensors.testing.assets import minilm_path

    torch.set_num_threads(header["threads"])
    torch.set_grad_enabled(False)
    return AutoModel.from_pretrained(minilm_path(), add_pooling_layer=False).eval()


def timed(model: Any, ids: np.ndarray) -> tuple[torch.Tensor, dict[str, float]]:
    batch = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.ones(ids.shape, dtype=torch.int64)}
    wall, cpu = time.perf_counter(), time.process_time()
    output = model(**batch).last_hidden_state
    return output, {"total_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def plain() -> Handler:
    model: Any = None

    def handle(header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
        nonlocal model
        if header["do"] == "load":
            model = load_model(header)
            return {"torch": torch.__version__}, {}
        output, spent = timed(model, arrays["ids"])
        return spent, {"output": output.numpy()}

    return handle


def mpc() -> Handler:
    import privtensors as pt
    from privtensors.core.recorder import MemoryRecorder
    from privtensors.transport.shaped import Link, ShapedChannel

    session = pt.Session(recorder=MemoryRecorder())
    private: Any = None
    memory: Any = None

    def handle(header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
        nonlocal session, private, memory
        if header["do"] == "load":
            session = pt.Session(recorder=MemoryRecorder(), device=header["device"])
        runtime = runtime_of(session, pt.MPC())
        if header["do"] == "load":
            model, memory = load_model(header), runtime.channel
            wall, sent = time.perf_counter(), session.meter.bytes_sent
            private = pt.wrap(model, pt.Policy(infer=[pt.MPC()]), session=session)
            return {"weights_s": time.perf_counter() - wall, "weights_bytes": session.meter.bytes_sent - sent}, {}
        link = header["link"]
        runtime.channel = memory if link is None else ShapedChannel(memory, Link(**link))
        with session.meter.scope() as scope:
            output, spent = timed(private, arrays["ids"])
        used = scope.spent
        costs = {"offline_s": used.offline_seconds, "rounds": used.rounds, "bytes_sent": used.bytes_sent, "dealer_bytes": used.dealer_bytes}
        return {**spent, **costs}, {"output": output.numpy()}

    return handle


def client() -> Handler:
    import privtensors as pt
    from privtensors.core.recorder import MemoryRecorder
    from privtensors.deploy import RemoteModel, connect
    from privtensors.transport.shaped import Link, ShapedChannel

    session = pt.Session(recorder=MemoryRecorder())
    remote: RemoteModel | None = None
    channel: Any = None
    ahead = False

    def handle(header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
        nonlocal remote, channel, ahead
        if header["do"] == "load":
            torch.set_num_threads(header["threads"])
            torch.set_grad_enabled(False)
            ahead = header["ahead"]
            remote = connect(header["policy"], session=session, timeout=120)
            channel = runtime_of(session, remote.technique).channel
            assert remote.setup is not None
            return {"weights_s": remote.setup.seconds, "weights_bytes": remote.setup.bytes_sent}, {}
        assert remote is not None
        link = header["link"]
        # Delaying the client's side of an exchange delays both: neither goes on without the other's words.
        runtime_of(session, remote.technique).channel = channel if link is None else ShapedChannel(channel, Link(**link))
        cpu = time.process_time()
        prepare_s = remote.prepare(arrays["ids"].shape[1]).seconds if ahead else 0.0
        cpu = time.process_time() - cpu
        output, spent = timed(remote, arrays["ids"])
        cost = remote.last
        assert cost is not None and cost.prepared == ahead
        spent = {"total_s": spent["total_s"] + prepare_s, "cpu_s": spent["cpu_s"] + cpu}
        costs = {
            "offline_s": prepare_s + cost.offline_seconds,
            "rounds": cost.rounds,
            "bytes_sent": cost.bytes_sent,
            "dealer_bytes": cost.dealer_bytes,
        }
        return {**spent, **costs}, {"output": output.numpy()}

    return handle


def runtime_of(session: Any, technique: Any) -> Any:
    """The protocols' runtime, whose channel is what a simulated network slows down."""
    return session.backend(technique).runtime


def service(role: str) -> Handler:
    """A server or a dealer: it is told once, and serves in a thread until the benchmark ends."""

    def handle(header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
        from privtensors.deploy import Deployment
        from privtensors.deploy.dealer import DealerServer
        from privtensors.deploy.server import Server

        torch.set_num_threads(header["threads"])
        deployment = Deployment.load(header["policy"])
        running = Server(deployment) if role == "server" else DealerServer(deployment)
        threading.Thread(target=running.run, daemon=True).start()
        return {}, {}

    return handle


if __name__ == "__main__":
    keep_freed_memory()  # as the command line does, for plain and private alike
    workers: dict[str, Callable[[], Handler]] = {
        "plain": plain,
        "mpc": mpc,
        "client": client,
        "server": lambda: service("server"),
        "dealer": lambda: service("dealer"),
    }
    serve(workers[sys.argv[1]]())
