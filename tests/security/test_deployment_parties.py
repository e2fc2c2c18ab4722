"""Parties with a valid certificate that break the protocol: the others end the session with a typed error and serve the next."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from privtensors.core.recorder import MemoryRecorder
from privtensors.core.session import Session
from privtensors.deploy import connect
from privtensors.deploy.client import RemoteModel
from privtensors.deploy.config import Deployment
from privtensors.deploy.dealer import DealerServer
from privtensors.deploy.links import SEED_SIZE, Label, answer, ask, number, say
from privtensors.deploy.rooms import SETUP
from privtensors.deploy.server import Server
from privtensors.errors import PartyBusy, PrivTensorsError, RequestRefused, TransportError, VersionMismatch, WrongPeer
from privtensors.transport.frames import Kind, op_id
from privtensors.transport.tcp import connect as dial
from privtensors.transport.tls import Identity, make_test_certificates
from tests.security.rogue import CHANGES, SLOW, Change, Rogue
from tests.security.rogue_requests import IMPOSSIBLE, MALFORMED, body
from tests.unit.deploy.places import Running, memory_session, running, write_deployment
from tests.unit.hf.tiny import build, text_inputs

IDLE_S = 2.5
ROGUE = "session of other"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    limits = f"tokens = 4096\nidle_s = {IDLE_S}\nconnect_s = 2\nclients = 4\npayload_mib = 64"
    with running(write_deployment(tmp_path_factory.mktemp("place"), "bert", limits=limits)) as found:
        yield found


def honest(place: Running) -> None:
    """A request by somebody else is answered, and rightly."""
    with connect(place.deployment, session=memory_session()) as remote, torch.no_grad():
        logits = remote(**text_inputs("bert")).logits
        assert float((logits - build("bert")(**text_inputs("bert")).logits).abs().max()) < 0.05


@contextmanager
def typed(place: Running, caplog: pytest.LogCaptureFixture, seconds: float = IDLE_S + 2) -> Iterator[None]:
    """Afterwards no session is open at server and dealer, within ``seconds``; nobody met an error without a type."""
    with caplog.at_level(logging.INFO, "privtensors"):
        caplog.clear()
        yield
        start = time.monotonic()
        while place.server.figures().sessions or place.dealer.figures().sessions:
            assert time.monotonic() - start < seconds, "a session goes on"
            time.sleep(0.01)
        honest(place)
        wrong = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
        assert not wrong


def frames() -> list[tuple[str, Kind, bool, int, str]]:
    """Which frames of whom are changed: name, kind, whether the client sends it, number, step."""
    return [
        ("the client's shares", Kind.EXCHANGE, True, 30, ""),
        ("the server's shares", Kind.EXCHANGE, False, 30, ""),
        ("the server's last share of the answer", Kind.EXCHANGE, False, 74, ""),
        ("the announcement to the dealer", Kind.REQUEST, True, 1, Label.FORWARD),
        ("the dealer's seed", Kind.REPLY, False, 0, Label.SEED),
        ("the corrections", Kind.CORRELATION, False, 0, ""),
    ]


def combinations() -> list[Any]:
    """Every change of every frame; by default each change once, on one frame or another."""
    found = []
    for place, change in enumerate(CHANGES):
        for index, frame in enumerate(frames()):
            name = f"{frame[0]}, {change}".replace(" ", "-")
            marks = () if place % len(frames()) == index else (pytest.mark.slow,)
            found.append(pytest.param(frame, change, id=name, marks=marks))
    return found


@pytest.mark.parametrize(("frame", "change"), combinations())
def test_a_changed_frame_ends_the_session(
    place: Running, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, frame: tuple[str, Kind, bool, int, str], change: str
) -> None:
    what, kind, client, nth, step = frame
    recorder = MemoryRecorder()
    with typed(place, caplog):
        with connect(place.deployment, session=Session(recorder=recorder)) as remote:
            start = time.monotonic()
            with Change(change, kind, client, nth, step).applied(monkeypatch) as made:
                if change == "sent twice":
                    answered = asked_twice(remote)
                else:
                    with pytest.raises(PrivTensorsError) as raised:
                        remote(**text_inputs("bert"))
                    assert "\n" not in str(raised.value)
                    answered = 0
            assert made.done
        assert time.monotonic() - start < IDLE_S + 2 + (change in SLOW)
        # The row of a reveal is written before its last exchange; before that there is none. The corrections that a changed frame lacks may
        # be those of the last exchange.
        last = what in ("the server's last share of the answer", "the corrections")
        assert answered <= len(recorder.entries) <= answered + last


def asked_twice(remote: RemoteModel) -> int:
    """How many of two requests were answered, rightly: a copy behind a frame is found by the next frame read there.

    Where that is the first of a request, the session has ended and the client opens another for it.
    """
    expected = build("bert")(**text_inputs("bert")).logits.detach()
    answered = 0
    for _ in range(2):
        session = remote.setup
        try:
            logits = remote(**text_inputs("bert")).logits
        except PrivTensorsError as error:
            assert "\n" not in str(error)
            return answered
        assert float((logits - expected).abs().max()) < 0.05
        answered += 1
    assert remote.setup is not session, "a frame that was sent twice went unnoticed"
    return answered


def test_a_malformed_request_ends_the_rogues_session(place: Running, caplog: pytest.LogCaptureFixture) -> None:
    taken = []
    with typed(place, caplog):
        for name, data in MALFORMED.items():
            with Rogue(place) as rogue:
                rogue.greet().set_up()
                with pytest.raises(TransportError):
                    ask(rogue.server, Label.FORWARD, secrets.token_bytes(16), data)
                    answer(rogue.server, Label.GO)
                    taken.append(name)
    assert not taken


def test_a_request_that_the_model_cannot_compute_is_refused_and_the_session_goes_on(
    place: Running, caplog: pytest.LogCaptureFixture
) -> None:
    with typed(place, caplog), Rogue(place) as rogue:
        rogue.greet().set_up()
        for data in IMPOSSIBLE.values():
            with pytest.raises(RequestRefused):
                rogue.announce(data, request=secrets.token_bytes(16))


def no_dealer(rogue: Rogue) -> None:
    ask(rogue.server, Label.OPEN)


def no_server(rogue: Rogue) -> None:
    ask(rogue.dealer, Label.OPEN, rogue.server.session)


def twice_at_the_dealer(rogue: Rogue) -> None:
    ask(rogue.dealer, Label.OPEN, rogue.dealer.session)
    ask(rogue.server, Label.OPEN)


def no_session(rogue: Rogue) -> None:
    ask(rogue.dealer, Label.OPEN, b"short")
    ask(rogue.server, Label.OPEN)


def a_reply_instead(rogue: Rogue) -> None:
    say(rogue.server, Label.OPEN)
    say(rogue.dealer, Label.OPEN)


def the_servers_seed(rogue: Rogue) -> None:
    ask(rogue.dealer, Label.OPEN, rogue.server.session)
    ask(rogue.server, Label.OPEN)
    answer(rogue.server, Label.READY)
    theirs = rogue.server.recv(Kind.REQUEST)
    rogue.server.send(Kind.REQUEST, [bytes(theirs.payload)], op=op_id(Label.SEEDS))


def a_short_seed(rogue: Rogue) -> None:
    ask(rogue.dealer, Label.OPEN, rogue.server.session)
    ask(rogue.server, Label.OPEN)
    answer(rogue.server, Label.READY)
    rogue.server.send(Kind.REQUEST, [b"\x01" * (SEED_SIZE - 1)], op=op_id(Label.SEEDS))


def forward_first(rogue: Rogue) -> None:
    rogue.greet()
    ask(rogue.server, Label.FORWARD, secrets.token_bytes(16), body())


def a_short_id(rogue: Rogue) -> None:
    rogue.greet()
    ask(rogue.server, Label.FORWARD, b"short")


def forget_what(rogue: Rogue) -> None:
    rogue.greet().set_up()
    ask(rogue.server, Label.FORGET, number(77))
    ask(rogue.server, Label.FORGET, b"77")


def forget_what_at_the_dealer(rogue: Rogue) -> None:
    rogue.greet().set_up()
    ask(rogue.dealer, Label.FORGET, b"77")


def keep_waiting_for_ever(rogue: Rogue) -> None:
    rogue.greet().set_up()
    ask(rogue.server, Label.FORWARD, secrets.token_bytes(16), body())
    answer(rogue.server, Label.GO)
    for _ in range(8):
        time.sleep(IDLE_S / 4)
        say(rogue.dealer, Label.WAITING)


def never_tells_the_dealer(rogue: Rogue) -> None:
    rogue.greet().set_up()
    ask(rogue.server, Label.FORWARD, secrets.token_bytes(16), body())
    answer(rogue.server, Label.GO)


def never_computes(rogue: Rogue) -> None:
    rogue.greet().set_up()
    rogue.announce(body(), request=secrets.token_bytes(16))


def only_the_dealer(rogue: Rogue) -> None:
    rogue.greet().set_up()
    ask(rogue.dealer, Label.FORWARD, secrets.token_bytes(16), body())


def never_reads(rogue: Rogue) -> None:
    rogue.greet().set_up()
    large = body(shapes={"input_ids": [4, 128]})
    rogue.announce(large, request=secrets.token_bytes(16))


MISBEHAVE = (a_reply_instead, the_servers_seed, a_short_id, forget_what_at_the_dealer, never_tells_the_dealer)
MORE = (
    *(no_dealer, no_server, twice_at_the_dealer, no_session, a_short_seed, only_the_dealer),
    *(forward_first, forget_what, keep_waiting_for_ever, never_computes, never_reads),
)


@pytest.mark.parametrize("break_protocol", [*MISBEHAVE, *(pytest.param(f, marks=pytest.mark.slow) for f in MORE)])
def test_a_rogue_client_is_left_within_seconds(
    place: Running, caplog: pytest.LogCaptureFixture, break_protocol: Callable[[Rogue], None]
) -> None:
    with Rogue(place) as rogue, typed(place, caplog, IDLE_S + 4):
        with contextlib.suppress(TransportError):  # told at once
            break_protocol(rogue)
        start = time.monotonic()
        while (place.server.service._open or place.dealer.service._open) and time.monotonic() - start < 2 * IDLE_S + 3:
            time.sleep(0.02)
        assert not place.server.service._open and not place.dealer.service._open, "a thread goes on"


def test_an_id_used_by_another_session_is_refused(place: Running, caplog: pytest.LogCaptureFixture) -> None:
    request = secrets.token_bytes(16)
    with typed(place, caplog):
        with Rogue(place) as first:
            first.greet().announce(SETUP, request=request)
        with Rogue(place) as second, pytest.raises(RequestRefused, match="id was used before"):
            second.greet().announce(SETUP, request=request)


def test_a_request_that_server_and_dealer_see_differently_is_not_dealt_for(place: Running, caplog: pytest.LogCaptureFixture) -> None:
    with typed(place, caplog), Rogue(place) as rogue:
        rogue.greet().set_up()
        for view in (body(shapes={"input_ids": [1, 4]}), b"", SETUP, b"\x00" * 100):
            with pytest.raises((RequestRefused, TransportError)):
                rogue.announce(body(), view, request=secrets.token_bytes(16))


def test_a_client_may_not_take_part_in_anothers_session(place: Running, caplog: pytest.LogCaptureFixture) -> None:
    with typed(place, caplog), Rogue(place) as rogue, Rogue(place, "client") as victim:
        ask(victim.dealer, Label.OPEN, victim.server.session)
        ask(rogue.dealer, Label.OPEN, victim.server.session)
        with pytest.raises(TransportError):
            answer(rogue.dealer, Label.READY)


@pytest.mark.parametrize("within", [False, True], ids=["between requests", "within a request"])
def test_only_the_client_has_a_cache_forgotten_at_the_dealer(place: Running, caplog: pytest.LogCaptureFixture, within: bool) -> None:
    deployment, terms = place.deployment, place.server.dealer_terms
    session = secrets.token_bytes(16)
    with (
        typed(place, caplog),
        dial(deployment.dealer, Identity.load(deployment.keys, "server"), "dealer", terms=terms) as server,
        dial(deployment.dealer, Identity.load(deployment.keys, "other"), "dealer", terms=terms) as client,
    ):
        ask(server, Label.OPEN, session, b"other")
        ask(client, Label.OPEN, session)
        for peer in (server, client):
            answer(peer, Label.READY)
        if within:
            ask(client, Label.FORWARD, secrets.token_bytes(16), SETUP)
            time.sleep(0.2)
        ask(server, Label.FORGET, number(1))
        for peer in (server, client):
            with pytest.raises(TransportError):
                answer(peer, Label.SEED)


def test_more_sessions_than_allowed_are_busy_and_the_others_go_on(place: Running) -> None:
    with Rogue(place) as a, Rogue(place) as b, Rogue(place) as c, connect(place.deployment, session=memory_session()) as remote:
        for rogue in (a, b, c):
            rogue.greet()
        with Rogue(place) as further, pytest.raises(PartyBusy):
            further.greet()
        assert remote(**text_inputs("bert")).logits.shape == (2, 2)


@pytest.mark.parametrize("role", ["server", "dealer"])
def test_a_service_with_a_strange_certificate_gets_a_greeting_at_most(tmp_path: Path, role: str) -> None:
    path = write_deployment(tmp_path, "bert", limits=f"idle_s = {IDLE_S}")
    make_test_certificates(tmp_path / "strange", ["server", "dealer"])
    deployment = Deployment.load(path)
    dealer = DealerServer(deployment, keys=tmp_path / ("strange" if role == "dealer" else "keys"))
    deployment = dataclasses.replace(deployment, dealer=dealer.address)
    server = Server(deployment, keys=tmp_path / ("strange" if role == "server" else "keys"))
    deployment = dataclasses.replace(deployment, server=server.address)
    refused(deployment, [server, dealer], WrongPeer, "certificate")


@pytest.mark.parametrize("role", ["server", "dealer"])
def test_one_party_with_another_model_is_refused(tmp_path: Path, role: str) -> None:
    for name in ("ours", "bert-qa"):
        (tmp_path / name).mkdir()
    path = write_deployment(tmp_path / "ours", "bert", limits=f"idle_s = {IDLE_S}")
    theirs = Deployment.load(write_deployment(tmp_path / "bert-qa", "bert-qa"))
    ours = Deployment.load(path)
    theirs = dataclasses.replace(theirs, keys=ours.keys, limits=ours.limits)
    dealer = DealerServer(theirs if role == "dealer" else ours)
    server = Server(dataclasses.replace(theirs if role == "server" else ours, dealer=dealer.address))
    refused(dataclasses.replace(ours, server=server.address, dealer=dealer.address), [server, dealer], VersionMismatch, "model layout")


def refused(deployment: Deployment, services: list[Any], error: type[Exception], text: str) -> None:
    """A client is told so at once, and no session is opened."""
    threads = [threading.Thread(target=service.run, daemon=True) for service in services]
    for thread in threads:
        thread.start()
    try:
        start = time.monotonic()
        with pytest.raises(error, match=text):
            connect(deployment, session=memory_session(), timeout=5)
        assert time.monotonic() - start < 4
        assert all(service.figures().sessions == service.figures().served == 0 for service in services)
    finally:
        for service in services:
            service.stop()
        for thread in threads:
            thread.join(20)
