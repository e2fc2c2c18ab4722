"""Faults of a deployment of real processes: every party that is left ends the request in time, with a typed error, and serves the next."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from privtensors.transport.tls import make_test_certificates
from tests import warm
from tests.security.faults import Fault, Trial, all_faults, in_time
from tests.security.processes import START_S, Parties, Role, parties

IDLE_S = 3.0
CHOSEN = {
    "client: kill in the first layer",
    "client: stop before the seeds",
    "server: kill in the second layer",
    "server: kill at the reveal",
    "server: stop in the set-up",
    "dealer: kill within corrections",
    "dealer: stop before corrections",
    "client-server: flip at the reveal",
    "client-server: replay in the first layer",
    "client-dealer: cut before the seeds",
    "server-dealer: swap within corrections",
    "server-dealer: cut within corrections",
    "client-server: pull in the second layer",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parties]:
    with parties(tmp_path_factory.mktemp("place"), limits=f"idle_s = {IDLE_S}\nclients = 4\ntokens = 64") as found:
        yield found


@pytest.fixture(scope="module")
def trial(place: Parties) -> Trial:
    return Trial(place, IDLE_S)


def check(trial: Trial, fault: Fault, idle_s: float) -> None:
    outcome = trial.run(fault)
    assert outcome.recovered, outcome
    assert in_time(outcome, idle_s), outcome
    # A row stands for an answer, or for the one last message with which the answer would have come. A client that is killed may not have
    # got as far as the server, whose last message it is.
    most = int(fault.stage == "ask" and (outcome.answered or fault.point == "at the reveal"))
    least = int(outcome.answered) if fault.victim == "client" else most
    assert least <= outcome.rows <= most, outcome
    assert not trial.parties.leaks()


@pytest.mark.parametrize("fault", [f for f in all_faults() if str(f) in CHOSEN], ids=str)
def test_a_fault_is_an_error_in_time_and_the_next_request_is_served(trial: Trial, fault: Fault) -> None:
    check(trial, fault, IDLE_S)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_every_fault_at_every_point_under_the_limits_that_ship(tmp_path: Path) -> None:
    with parties(tmp_path) as place:
        trial = Trial(place, 8.0)
        for fault in all_faults():
            check(trial, fault, 8.0)


def infer(place: Parties, *more: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """The command line's client; it must end with one line."""
    start = time.monotonic()
    done = warm.run("-m", "privtensors", "infer", str(place.client_policy), "--text", "word20 word21", *more, timeout=START_S)
    return done, time.monotonic() - start


@pytest.fixture(scope="module")
def words(place: Parties) -> None:
    from transformers import BertTokenizer

    vocabulary = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{n}" for n in range(95)))
    BertTokenizer(vocab={word: n for n, word in enumerate(vocabulary)}).save_pretrained(place.folder / "client-model")


@pytest.mark.usefixtures("words")
@pytest.mark.parametrize("party", ["the client", "the server"])
def test_the_command_line_says_in_one_line_what_was_lost(place: Parties, party: str, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.sqlite"
    link = place.links["client-server" if party == "the client" else "server-dealer"]
    link.arm("down", 200_000, lambda event: [event.record[: event.at], b""])
    done, _ = infer(place, "--ledger", str(ledger), "--json")
    assert done.returncode == 1 and done.stdout == "" and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    served, _ = infer(place, "--ledger", str(ledger), "--json")
    assert served.returncode == 0 and json.loads(served.stdout)["ok"]
    # The row is the second request's alone.
    shown = warm.run("-m", "privtensors", "ledger", "verify", "--ledger", str(ledger))
    assert "1 row checked" in shown.stdout


def test_wrong_certificates_are_refused_before_anything_but_the_greeting(place: Parties, tmp_path: Path) -> None:
    from privtensors.core.recorder import MemoryRecorder
    from privtensors.core.session import Session
    from privtensors.deploy import connect
    from privtensors.errors import TransportError, WrongPeer

    other = make_test_certificates(tmp_path / "other", ["client", "server", "dealer"])
    make_test_certificates(tmp_path / "old", ["client"], days=1, start=datetime.now(UTC) - timedelta(days=3))
    mixed = tmp_path / "mixed"  # our authority, another party's certificate
    mixed.mkdir()
    for name, source in (("ca.pem", "ca.pem"), ("client.pem", "other.pem"), ("client.key", "other.key")):
        (mixed / name).write_bytes((place.folder / "keys" / source).read_bytes())
        (mixed / name).chmod(0o600)
    assert set(other) == {"client", "server", "dealer"}
    for folder, error in ((tmp_path / "other", WrongPeer), (tmp_path / "old", WrongPeer), (mixed, TransportError)):
        before = {name: dict(link.passed) for name, link in place.links.items()}
        start = time.monotonic()
        with pytest.raises(error):
            connect(place.client_policy, keys=folder, session=Session(recorder=MemoryRecorder()), timeout=5)
        assert time.monotonic() - start < 5
        sent = place.links["client-server"].passed["up"] - before["client-server"]["up"]
        assert sent < 4096 and place.links["client-dealer"].passed == before["client-dealer"]


@pytest.mark.parametrize("subject", ["policy", "model", "tables"])
def test_another_policy_model_or_checkpoint_is_refused_before_anything_but_the_greeting(
    place: Parties, tmp_path: Path, subject: str
) -> None:
    from privtensors.core.recorder import MemoryRecorder
    from privtensors.core.session import Session
    from privtensors.deploy import connect
    from privtensors.errors import VersionMismatch
    from tests.unit.deploy.places import write_deployment

    text = place.client_policy.read_text()
    folder = place.folder
    if subject == "policy":
        text = text.replace('technique = "mpc"', 'technique = "mpc"\nfractional_bits = 17')
    else:
        folder = tmp_path / "other"
        folder.mkdir()
        write_deployment(folder, "bert", seed_model=_random(96 if subject == "model" else 64))
    policy = folder / f"{subject}.toml"
    policy.write_text(text)
    before, dealer = dict(place.links["client-server"].passed), dict(place.links["client-dealer"].passed)
    with pytest.raises(VersionMismatch, match=subject):
        connect(policy, keys=place.folder / "keys", session=Session(recorder=MemoryRecorder()), timeout=5)
    after = place.links["client-server"].passed
    # A handshake with two certificates, and one greeting each way.
    assert after["up"] - before["up"] < 4096 and after["down"] - before["down"] < 4096
    assert place.links["client-dealer"].passed == dealer


def _random(intermediate_size: int) -> object:
    """Of the served model's structure where the size is 64, with other weights."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from tests.unit.hf.tiny import TEXT_SIZES

    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**(TEXT_SIZES | {"intermediate_size": intermediate_size}))).eval()


def test_garbage_and_silent_callers_do_not_keep_a_client_out(place: Parties) -> None:
    silent: list[socket.socket] = []
    for service in place.services.values():
        for payload in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(100), bytes(5000), b"\x00"):
            with socket.create_connection(service.address, 2) as sock:
                sock.sendall(payload)
        for _ in range(40):
            silent.append(socket.create_connection(service.address, 2))
        silent[-1].sendall(b"\x16\x03\x01\x02")  # the beginning of a greeting
    # Somebody without a certificate who does speak TLS.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    plain = socket.create_connection(place.services["server"].address, 2)
    with pytest.raises(OSError), context.wrap_socket(plain) as secure:
        secure.sendall(b"hello")
        if not secure.recv(1):
            raise OSError
    dripping = threading.Event()

    def drip() -> None:
        with socket.create_connection(place.services["server"].address, 2) as sock:
            for byte in b"\x16\x03\x01\x02\x00\x01" + bytes(100):
                if dripping.wait(0.2):
                    return
                try:
                    sock.sendall(bytes([byte]))
                except OSError:
                    return

    threads = [threading.Thread(target=drip) for _ in range(5)]
    for thread in threads:
        thread.start()
    client = place.client()
    client.tell(do="close")
    client.reply()
    reply = client.do(do="ask", seed=5)
    dripping.set()
    for thread in threads:
        thread.join()
    for one in silent:
        one.close()
    assert reply["error"] is None and reply["wrong"] < 0.05
    assert reply["end"] - reply["start"] < 20
    client.kill()
    assert not place.leaks()


def test_services_end_cleanly_when_told(place: Parties) -> None:
    roles: tuple[Role, ...] = ("server", "dealer")
    for role in roles:
        process = place.services[role]
        process.signal(signal.SIGTERM)
        assert process.wait(30) == 0
        place.replace(role)
