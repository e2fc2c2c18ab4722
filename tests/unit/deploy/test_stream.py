"""Corrections on their way: every byte in order whatever the pieces, ahead of use within a window, typed errors from the thread."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from privtensors.deploy.stream import CorrectionStream, send_corrections
from privtensors.errors import CorrelationError, TransportError
from privtensors.transport.frames import Kind, op_id
from privtensors.transport.limits import Limits
from privtensors.transport.peer import Peer
from privtensors.transport.tls import Identity, make_test_certificates
from tests.unit.transport.loopback import pair, together

IDLE = 1.0


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Identity]:
    """Certificates of two parties."""
    return make_test_certificates(Path(tmp_path_factory.mktemp("keys")), ["client", "server"])


def pieces(data: bytes, sizes: random.Random) -> Iterator[memoryview]:
    at = 0
    while at < len(data):
        size = sizes.choice((1, 8, 1000, 70_000, 300_000))
        yield memoryview(bytearray(data[at : at + size]))
        at += size


@pytest.mark.parametrize("window", [1 << 16, 1 << 18, 1 << 22])
def test_every_byte_arrives_in_order(identities: dict[str, Identity], window: int) -> None:
    sizes = random.Random(window)
    data = sizes.randbytes(3_000_000)
    with pair(identities) as (dealer, server), together() as start:
        sending = start(lambda: send_corrections(dealer, pieces(data, sizes), window))
        stream = CorrectionStream(server, len(data), window, IDLE)
        got, at = bytearray(), 0
        while at < len(data):
            size = min(len(data) - at, sizes.choice((0, 1, 8, 5000, 200_000, 1_000_000)))
            got += stream.take(size)
            at += size
        stream.finish()
        assert sending.result(10) == len(data) and bytes(got) == data
        # The connection is the session's again.
        dealer.send(Kind.REPLY, [b"next"])
        assert bytes(server.recv(Kind.REPLY).payload) == b"next"


def test_the_dealer_runs_ahead_up_to_the_window_and_waits_longer_than_its_patience(identities: dict[str, Identity]) -> None:
    window = 1 << 16
    with pair(identities, limits=Limits(idle_s=1.5)) as (dealer, server), together() as start:
        sending = start(lambda: send_corrections(dealer, iter([memoryview(bytearray(4 * window))]), window))
        stream = CorrectionStream(server, 4 * window, window, IDLE)
        time.sleep(2.5)  # nothing is taken for longer than idle_s
        assert not sending.done() and stream._received <= window
        assert len(stream.take(4 * window)) == 4 * window
        stream.finish()
        assert sending.result(10) == 4 * window


def test_too_much_and_too_little(identities: dict[str, Identity]) -> None:
    with pair(identities) as (dealer, server):
        dealer.send(Kind.CORRELATION, [bytes(100)], op=op_id("privtensors corrections"))
        stream = CorrectionStream(server, 100, 1 << 16, IDLE)
        stream.take(40)
        with pytest.raises(CorrelationError, match="60 bytes of corrections are left over"):
            stream.finish()
        with pytest.raises(CorrelationError, match="less than this forward needs"):
            stream.take(61)
        stream.close()


@pytest.mark.parametrize("how", ["killed", "killed after a part", "silent", "other"])
def test_a_dealer_that_fails_surfaces_where_corrections_are_taken(identities: dict[str, Identity], how: str) -> None:
    with pair(identities) as (dealer, server):
        stream = CorrectionStream(server, 100, 1 << 16, IDLE)
        start = time.monotonic()
        if how == "killed after a part":  # that part alone is not handed out
            dealer.send(Kind.CORRELATION, [bytes(9)], op=op_id("privtensors corrections"))
        if how.startswith("killed"):
            dealer._sock.close()
        elif how == "other":
            dealer.send(Kind.REPLY, [bytes(100)])
        with pytest.raises(TransportError):
            stream.take(10)
        assert time.monotonic() - start < 5
        stream.close()


def test_a_stream_can_be_given_up_at_once(identities: dict[str, Identity]) -> None:
    with pair(identities) as (_dealer, server):
        stream = CorrectionStream(server, 100, 1 << 16, 30.0)
        start = time.monotonic()
        stream.close()
        assert time.monotonic() - start < 5 and not stream._thread.is_alive()
        with pytest.raises(TransportError):
            peer: Peer = server
            peer.send(Kind.REPLY)


def test_an_empty_stream_needs_no_thread(identities: dict[str, Identity]) -> None:
    with pair(identities) as (_dealer, server):
        stream = CorrectionStream(server, 0, 1 << 16, IDLE)
        assert len(stream.take(0)) == 0
        stream.finish()
