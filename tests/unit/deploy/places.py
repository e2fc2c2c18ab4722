"""A deployment of a tiny random model in a folder, its server and dealer in threads of this process."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from privtensors.core.recorder import MemoryRecorder
from privtensors.core.session import Session
from privtensors.deploy.config import Deployment
from privtensors.deploy.dealer import DealerServer
from privtensors.deploy.server import Server
from privtensors.hf.wrap import wrap
from privtensors.policy import Policy
from privtensors.transport.tls import make_test_certificates
from tests.unit.hf.tiny import build

TASKS = {
    "bert": "text-classification",
    "bert-base": "feature-extraction",
    "bert-qa": "question-answering",
    "bert-mlm": "fill-mask",
    "distilbert": "text-classification",
    "roberta": "text-classification",
    "gpt2": "text-generation",
    "gpt2-classifier": "text-classification",
    "llama": "text-generation",
    "llama-tied": "text-generation",
    "vit": "image-classification",
    "mobilenet_v2": "image-classification",
    "resnet": "image-classification",
}

POLICY = """version = 1
{policy}
[[infer]]
technique = "mpc"

[deployment]
task = "{task}"
keys = "keys"

[deployment.client]
model = "client-model"

[deployment.server]
address = "127.0.0.1:{server}"
model = "model"
clients = ["client", "other"]

[deployment.dealer]
address = "127.0.0.1:{dealer}"
model = "client-model"

[deployment.limits]
threads = 1
{limits}
"""


def write_deployment(
    folder: Path, name: str, *, limits: str = "", policy: str = "", ports: tuple[int, int] = (0, 0), seed_model: Any = None
) -> Path:
    """Model, client's part, certificates and policy file of the tiny model ``name``; the policy file's path."""
    model = build(name) if seed_model is None else seed_model
    model.save_pretrained(folder / "model")
    wrap(model, Policy(infer=["clear"]), session=Session(recorder=MemoryRecorder())).save_pretrained(folder / "client-model")
    make_test_certificates(folder / "keys", ["client", "other", "server", "dealer"])
    text = POLICY.format(task=TASKS[name], limits=limits, policy=policy, server=ports[0], dealer=ports[1])
    (folder / "policy.toml").write_text(text, encoding="utf-8")
    return folder / "policy.toml"


@dataclass
class Running:
    """A deployment with its services in threads.

    Attributes:
        deployment: With the addresses that the services took.
    """

    deployment: Deployment
    server: Server
    dealer: DealerServer
    threads: list[threading.Thread] = field(default_factory=list)


@contextmanager
def running(path: Path) -> Iterator[Running]:
    """Serve the deployment of a policy file on free ports until the block ends."""
    deployment = Deployment.load(path)
    dealer = DealerServer(deployment)
    deployment = dataclasses.replace(deployment, dealer=dealer.address)
    server = Server(deployment)
    deployment = dataclasses.replace(deployment, server=server.address)
    threads = [threading.Thread(target=service.run, daemon=True) for service in (server, dealer)]
    for thread in threads:
        thread.start()
    try:
        yield Running(deployment, server, dealer, threads)
    finally:
        for service in (server, dealer):
            service.stop()
        for thread in threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in threads)


def memory_session() -> Session:
    """A session whose recorder is a list."""
    return Session(recorder=MemoryRecorder())
