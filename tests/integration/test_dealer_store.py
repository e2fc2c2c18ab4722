"""A dealer process with a store, killed again and again while it serves: what it sent once is never sent again."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from privtensors.deploy import Deployment, connect
from privtensors.deploy.server import Server, ServerSession
from privtensors.errors import TransportError
from tests.integration.test_deployment import START_S, command, free_ports
from tests.unit.deploy.places import memory_session, write_deployment
from tests.unit.hf.tiny import build

IDS = torch.arange(5, 11).reshape(1, 6)
KILLS = 4


@pytest.mark.slow
def test_a_dealer_killed_while_it_serves_sends_no_seed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, store = write_deployment(tmp_path, "bert", ports=free_ports()), tmp_path / "store"
    made = subprocess.run(
        command("deal", str(policy), "--for", "3", "--tokens", "6", "--bundles", str(2 * KILLS + 2), "--out", str(store), "--json"),
        capture_output=True,
        text=True,
        timeout=START_S,
    )
    assert made.returncode == 0 and json.loads(made.stdout)["ok"], made.stderr
    seeds: list[bytes] = []
    real = ServerSession._dealt

    def dealt(self: ServerSession, request: bytes, view: bytes) -> Any:
        found = real(self, request, view)
        seeds.append(found[0])
        return found

    monkeypatch.setattr(ServerSession, "_dealt", dealt)
    with torch.no_grad():
        expected = build("bert")(input_ids=IDS).logits
    with Server(Deployment.load(policy)) as server, (tmp_path / "dealer.log").open("a") as log:
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        answered = 0
        for life in range(KILLS + 1):
            dealer = subprocess.Popen(
                command("serve", str(policy), "--as", "dealer", "--store", str(store), "--stored-only"), stdout=subprocess.PIPE, stderr=log
            )
            try:
                assert dealer.stdout is not None and dealer.stdout.readline().startswith(b"dealer listens")
                last = life == KILLS
                timer = threading.Timer(0.15 + 0.11 * life, dealer.kill)
                if not last:
                    timer.start()
                try:
                    while True:
                        with connect(policy, session=memory_session(), timeout=START_S if last else 5) as remote:
                            for _ in range(3):
                                assert float((remote(input_ids=IDS).logits - expected).abs().max()) < 0.05
                                answered += 1
                        if last:
                            break
                except TransportError:
                    assert not last
                timer.cancel()
            finally:
                dealer.kill()
                dealer.communicate()
        server.stop()
        thread.join(20)
    assert answered >= 3 and len(seeds) > answered and len(set(seeds)) == len(seeds)
    assert "Traceback" not in (tmp_path / "dealer.log").read_text()
