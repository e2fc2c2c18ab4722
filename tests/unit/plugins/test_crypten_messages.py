"""plugins/crypten without CrypTen: the frame format, and parties that die, stall or talk nonsense (stand-ins for real ones)."""

from __future__ import annotations

import gc
import socket
import sys
import time
from pathlib import Path

import pytest
import torch
from privtensors_crypten.worker import frames
from privtensors_crypten.workers import Workers

from privtensors.errors import FrameError, PeerLost, PeerTimeout, PrivTensorsError

WORKER = Path(frames.__file__).parent
PARTY = f"""
import os, sys, time
sys.path.insert(0, {str(WORKER)!r})
import socket
from frames import *
rank, link = int(sys.argv[1]), socket.socket(fileno=int(sys.argv[4]))
ok = pack({{"ok": True, "rounds": 2, "bytes": 16 + 8 * (rank == 0)}})
"""
READY = "send(link, ok, None)\n"
ECHO = READY + "while True: request, _ = receive(link, None); send(link, ok, None)\n"


def workers(folder: Path, code: str, seconds: float = 30.0) -> Workers:
    """Parties that run ``code`` in this test's own Python."""
    script = folder / "party.py"
    script.write_text(PARTY + code, encoding="utf-8")
    return Workers("TFP", python=Path(sys.executable), party=script, start_seconds=60.0, request_seconds=seconds)


def all_gone(found: Workers) -> bool:
    return all(process.poll() is not None for process in found._processes)


# --- frames ------------------------------------------------------------------------------------------------------------------


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair()


def test_a_frame_comes_through() -> None:
    sender, receiver = pair()
    with sender, receiver:
        frames.send(sender, frames.pack({"verb": "load", "out": [3]}, {"share": torch.arange(6).view(2, 3).t()}), 5)
        header, tensors = frames.receive(receiver, 5)
    assert header == {"verb": "load", "out": [3]} and torch.equal(tensors["share"], torch.arange(6).view(2, 3).t())


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        frames.LEAD.pack(b"PTC2", 2, 0) + b"{}",
        frames.LEAD.pack(frames.MAGIC, frames.HEADER_LIMIT + 1, 0),
        frames.LEAD.pack(frames.MAGIC, 2, frames.BODY_LIMIT + 1),
        frames.LEAD.pack(frames.MAGIC, 2, 0) + b"[]",
        frames.LEAD.pack(frames.MAGIC, 2, 0) + b"\xff\xfe",
        frames.LEAD.pack(frames.MAGIC, 2, 9) + b"{}" + b"\x80\x04cos\nsys.",  # a pickle is not read
    ],
)
def test_garbage_is_refused(sent: bytes) -> None:
    sender, receiver = pair()
    with sender, receiver:
        sender.sendall(sent)
        with pytest.raises(frames.FrameFault):
            frames.receive(receiver, 5)


def test_a_truncated_frame_and_a_silent_end() -> None:
    sender, receiver = pair()
    with receiver:
        sender.sendall(frames.pack({"verb": "run"})[:-3])
        with pytest.raises(TimeoutError):
            frames.receive(receiver, 0.05)
        sender.close()
        with pytest.raises(frames.Closed):
            frames.receive(receiver, 5)


def test_a_number_that_json_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        frames.pack({"value": float("inf")})


# --- parties -----------------------------------------------------------------------------------------------------------------


def test_requests_are_counted_as_party_one_counts(tmp_path: Path) -> None:
    found = workers(tmp_path, ECHO)
    reply = found.request({"verb": "run"})
    assert (reply.rounds, reply.bytes, reply.dealer_bytes) == (2, 16, 8)
    found.close()
    assert all_gone(found)
    with pytest.raises(PeerLost, match="closed"):
        found.request({"verb": "run"})


def test_a_party_that_dies_at_the_start(tmp_path: Path) -> None:
    found = workers(tmp_path, "os._exit(3)")
    with pytest.raises(PeerLost, match=r"party \d ended with exit code 3"):
        found.request({"verb": "run"})
    assert all_gone(found)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_party_that_dies_later_ends_the_other(tmp_path: Path, rank: int) -> None:
    found = workers(tmp_path, f"{READY}\nif rank != {rank}: time.sleep(60)\nreceive(link, None); os._exit(4)")
    start = time.monotonic()
    with pytest.raises(PeerLost, match=f"party {rank} ended with exit code 4"):
        found.request({"verb": "run"})
    assert all_gone(found) and time.monotonic() - start < 30
    with pytest.raises(PeerLost, match="ended earlier"):
        found.request({"verb": "run"})


def test_a_stalled_party(tmp_path: Path) -> None:
    found = workers(tmp_path, f"{READY}\ntime.sleep(60)", seconds=0.3)
    with pytest.raises(PeerTimeout, match="did not answer"):
        found.request({"verb": "run"})
    assert all_gone(found)


def test_a_party_that_does_not_read(tmp_path: Path) -> None:
    found = workers(tmp_path, f"{READY}\ntime.sleep(60)", seconds=0.5)
    large = {"share": torch.zeros(1 << 20, dtype=torch.int64)}
    with pytest.raises(PeerTimeout):
        found.request({"verb": "load"}, [large, large])
    assert all_gone(found)


def test_a_party_that_talks_nonsense(tmp_path: Path) -> None:
    found = workers(tmp_path, "link.sendall(b'hello, this is not a frame at all')\ntime.sleep(60)")
    with pytest.raises(FrameError, match="something else"):
        found.request({"verb": "run"})
    assert all_gone(found)


def test_a_reported_failure_is_told_although_the_other_waits(tmp_path: Path) -> None:
    report = 'send(link, pack({"ok": False, "error": "KeyError at rows.py:7"}), None)'
    found = workers(tmp_path, f"{READY}\nreceive(link, None)\nif rank: {report}\ntime.sleep(60)", seconds=0.5)
    with pytest.raises(PrivTensorsError, match=r"party 1 reports KeyError at rows.py:7; party 0 did not answer"):
        found.request({"verb": "run"})
    assert all_gone(found)


def test_parties_end_when_nobody_refers_to_them(tmp_path: Path) -> None:
    found = workers(tmp_path, ECHO)
    found.request({"verb": "run"})
    processes = list(found._processes)
    del found
    gc.collect()
    assert len(processes) == 2 and all(process.poll() is not None for process in processes)
