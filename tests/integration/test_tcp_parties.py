"""Two processes compute on shares over TLS: the same results, rounds and bytes as in one process; and one of them dies.

Run as a program, this file is one of the parties.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from privtensors.backends.mpc.dealer import Dealer
from privtensors.backends.mpc.runtime import Open, Protocol, Runtime, parallel
from privtensors.core.meter import Meter
from privtensors.errors import PeerLost, PeerTimeout, TransportError
from privtensors.transport.base import Channel
from privtensors.transport.frames import Kind
from privtensors.transport.memory import MemoryChannel
from privtensors.transport.tcp import Limits, Listener, Peer, TcpChannel, connect
from privtensors.transport.tls import Identity, make_test_certificates

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 20
LIMITS = Limits(idle_s=2.0)


def shares(seed: int, shape: tuple[int, ...], dtype: torch.dtype, parties: tuple[int, ...]) -> Tensor:
    """Test shares: both rows from one seed, then the rows of the parties held here."""
    words = torch.randint(-(1 << 62), 1 << 62, (2, *shape), generator=torch.Generator().manual_seed(seed)) * 2 + 1
    return words.to(dtype)[list(parties)]


def computation(rt: Runtime, seed: int, dtype: torch.dtype, bits: int, *, xor: bool) -> Protocol[list[Tensor]]:
    """Opens a value per round; each depends on the one before. What is opened is cut to the bits that travel."""
    opened: list[Tensor] = []
    last = torch.zeros(7, 11, dtype=dtype)
    width = 8 * torch.empty(0, dtype=dtype).element_size()
    for number in range(ROUNDS):
        words = shares(seed + number, (7, 11), dtype, rt.channel.parties)
        words = rt.flip_public(words, last) if xor else rt.add_public(words, last)
        (value,) = yield [Open(words, bits, xor)]
        last = value if bits == width else value & ((1 << bits) - 1)
        opened.append(last)
    return opened


def outcome(channel: Channel) -> dict[str, Any]:
    """Run four computations side by side; what both parties must agree on."""
    meter = Meter()
    rt = Runtime(channel, Dealer(meter), meter, 18)
    kinds = ((torch.int64, 64, False), (torch.int64, 52, False), (torch.int32, 20, False), (torch.int8, 1, True))
    runs = [computation(rt, 1000 * i, dtype, bits, xor=xor) for i, (dtype, bits, xor) in enumerate(kinds)]
    results = rt.run(parallel(*runs))
    data = b"".join(value.numpy().tobytes() for run in results for value in run)
    return {"digest": hashlib.sha256(data).hexdigest(), "rounds": meter.rounds, "bytes_sent": meter.bytes_sent}


def faulty(peer: Peer, how: str) -> None:
    """Take part for a while, then die or stop."""
    channel = TcpChannel(peer, 1)
    if how == "mid-payload":
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGKILL)).start()
        while True:
            peer.exchange(Kind.EXCHANGE, [bytes(100_000_000)])
    for _ in range(0 if how == "before the first round" else 5):
        channel.exchange([])
    os.kill(os.getpid(), signal.SIGSTOP if how == "stopped" else signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("folder", "name", "port", "how"):
        parser.add_argument(name)
    given = parser.parse_args()
    identity = Identity.load(given.folder, given.name)
    if given.name == "server":
        with Listener(identity, ["client"], port=int(given.port), limits=LIMITS) as listener:
            peer = listener.accept(60)
    else:
        peer = connect(("127.0.0.1", int(given.port)), identity, "server", limits=LIMITS, timeout=60)
    with peer:
        if given.how:
            faulty(peer, given.how)
        channel = TcpChannel(peer, 0 if given.name == "server" else 1)
        answer = outcome(channel)
        print(json.dumps(answer | {"channel": [channel.rounds, channel.bytes_sent], "session": peer.session.hex()}))


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Identity]:
    return make_test_certificates(tmp_path_factory.mktemp("certificates"), ["client", "server"])


@contextmanager
def party(identity: Identity, port: int, how: str = "") -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-W", "error", str(Path(__file__).resolve()), str(identity.key.parent), identity.name, str(port), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.kill()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.parametrize("first", ["server", "client"])
def test_two_processes_do_what_one_does(identities: Mapping[str, Identity], first: str) -> None:
    port = free_port()
    second = "client" if first == "server" else "server"
    with party(identities[first], port) as a, party(identities[second], port) as b:
        answers = []
        for process in (a, b):
            out, err = process.communicate(timeout=60)
            assert process.returncode == 0 and not err, err
            answers.append(json.loads(out))
    expected = outcome(MemoryChannel())
    assert expected["rounds"] == ROUNDS and expected["bytes_sent"] == ROUNDS * (77 * 8 + 77 * 7 + 77 * 3 + 10)
    for answer in answers:
        assert {key: answer[key] for key in expected} == expected
        assert answer["channel"] == [expected["rounds"], expected["bytes_sent"]]
    assert answers[0]["session"] == answers[1]["session"]


@pytest.mark.parametrize(
    ("how", "error"),
    [("before the first round", PeerLost), ("between rounds", PeerLost), ("mid-payload", PeerLost), ("stopped", PeerTimeout)],
)
def test_the_other_process_is_killed_or_stopped(identities: Mapping[str, Identity], how: str, error: type[TransportError]) -> None:
    with Listener(identities["server"], ["client"], limits=LIMITS) as listener:
        with party(identities["client"], listener.address[1], how), listener.accept(60) as peer:
            channel = TcpChannel(peer, 0)
            begin = time.monotonic()
            with pytest.raises(error) as found:
                while time.monotonic() < begin + 20:
                    if how == "mid-payload":
                        peer.exchange(Kind.EXCHANGE, [bytes(100_000_000)])
                    else:
                        channel.exchange([])
            assert type(found.value) is error and time.monotonic() - begin < 10
            assert channel.rounds == {"before the first round": 0, "mid-payload": 0}.get(how, 5)
            with pytest.raises(TransportError, match="cannot be used any more"):
                channel.exchange([])
        with party(identities["client"], listener.address[1], "between rounds"), listener.accept(60) as peer:
            assert TcpChannel(peer, 0).exchange([]) == []  # the next one is served


if __name__ == "__main__":
    main()
