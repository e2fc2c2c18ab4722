"""Tiny keyed models, and servers of them in a thread of this process."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privtensors.deploy.keyed_server import KeyedServer
from privtensors.obfuscation.convert import convert
from tests.unit.obfuscation.models import build, build_vit


@dataclass(frozen=True)
class Pair:
    """A plain model with its tokenizer or image processor, and the two folders made of it."""

    model: Any
    processor: Any
    client: Path
    server: Path


def pair(folder: Path, family: str = "bert", task: str = "ForSequenceClassification") -> Pair:
    model, processor = build_vit() if family == "vit" else build(family, task)
    convert(model, processor, client=folder / "client", server=folder / "server")
    return Pair(model, processor, folder / "client", folder / "server")


@contextmanager
def serving(folder: Path, **options: Any) -> Iterator[KeyedServer]:
    with KeyedServer(folder, **options) as server:
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.stop()
            thread.join(30)
    assert not thread.is_alive()


def ask(
    server: KeyedServer, method: str, path: str, body: Any = None, media_type: str | None = "application/json"
) -> tuple[int, dict[str, Any]]:
    """Status and JSON answer of one request over a connection of its own."""
    connection = http.client.HTTPConnection(*server.address, timeout=30)
    raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    try:
        connection.request(method, path, raw, {"Content-Type": media_type} if media_type else {})
        response = connection.getresponse()
        assert response.getheader("Content-Type") == "application/json" and response.getheader("Server") is None
        return response.status, json.loads(response.read())
    finally:
        connection.close()
