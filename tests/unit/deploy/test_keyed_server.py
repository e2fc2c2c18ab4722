"""The keyed server's HTTP: what it takes, what it refuses and how, and that it goes on afterwards."""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from privtensors.deploy.keyed_requests import PIXELS_TYPE, KeyedLimits
from privtensors.deploy.keyed_server import KeyedServer
from privtensors.errors import FileFormatError, InvalidInput, ParameterError, TransportError, UnpairedFolders, UsageError
from tests.unit.deploy.keyed_places import Pair, ask, pair, serving

LIMITS = KeyedLimits(batch=4, tokens=200, new_tokens=8, body_kib=16)
CLASSIFY = "/v1/classify"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def server(bert: Pair) -> Iterator[KeyedServer]:
    with serving(bert.server, limits=LIMITS) as found:
        yield found


def works(server: KeyedServer) -> None:
    status, answer = ask(server, "POST", CLASSIFY, {"input_ids": [[1, 2]]})
    assert status == 200 and len(answer["logits"][0]) == 3


def test_it_says_what_it_serves(bert: Pair, server: KeyedServer) -> None:
    status, answer = ask(server, "GET", "/v1/model")
    manifest = json.loads((bert.server / "privtensors.json").read_text())
    assert status == 200 and (answer["key_id"], answer["weights"]) == (manifest["key_id"], manifest["weights"])
    assert (answer["task"], answer["model_type"], answer["labels"], answer["pixels"]) == ("text-classification", "bert", 3, None)
    assert answer["vocabulary"] == bert.model.config.vocab_size and answer["positions"] == 64 and answer["limits"]["batch"] == 4
    assert answer["protection"].startswith("heuristic")


def test_logits_are_those_of_the_stock_model(bert: Pair, server: KeyedServer) -> None:
    from transformers import AutoModelForSequenceClassification

    stock = AutoModelForSequenceClassification.from_pretrained(bert.server).eval()
    ids, mask, types = [[5, 6, 7], [8, 9, 3]], [[1, 1, 1], [1, 1, 0]], [[0, 0, 1], [0, 1, 1]]
    request = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    _, answer = ask(server, "POST", CLASSIFY, request)
    with torch.no_grad():
        logits = stock(**{name: torch.tensor(rows) for name, rows in request.items()}).logits
    assert torch.equal(torch.tensor(answer["logits"]), logits)  # JSON keeps every bit of a float32
    _, answer = ask(server, "POST", CLASSIFY, request | {"outputs": "labels"})
    assert answer["labels"] == logits.argmax(-1).tolist() and "logits" not in answer


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (b"", 400, "malformed_json"),
        (b"{", 400, "malformed_json"),
        (b"\xff\xfe", 400, "malformed_json"),
        (b"[" * 10_000, 400, "malformed_json"),
        (b'{"input_ids": [[NaN]]}', 400, "malformed_json"),
        (b'{"input_ids": [[-Infinity]]}', 400, "malformed_json"),
        (b'{"input_ids": [[' + b"7" * 5000 + b"]]}", 400, "malformed_json"),
        (b'{"input_ids": [[1]], "input_ids": [[2]]}', 400, "malformed_json"),
        (b"[[1]]", 400, "malformed_json"),
        ({}, 400, "missing_field"),
        ({"input_ids": [[1]], "labels": [1]}, 400, "unknown_field"),
        ({"input_ids": [[1]], "max_new_tokens": 3}, 400, "unknown_field"),
        ({"input_ids": [1, 2]}, 400, "invalid_shape"),
        ({"input_ids": []}, 400, "invalid_shape"),
        ({"input_ids": [[]]}, 400, "invalid_shape"),
        ({"input_ids": [[1, 2], [3]]}, 400, "invalid_shape"),
        ({"input_ids": "1"}, 400, "invalid_shape"),
        ({"input_ids": [[1.0]]}, 400, "invalid_value"),
        ({"input_ids": [[True]]}, 400, "invalid_value"),
        ({"input_ids": [[None]]}, 400, "invalid_value"),
        ({"input_ids": [["1"]]}, 400, "invalid_value"),
        ({"input_ids": [[-1]]}, 400, "id_out_of_range"),
        ({"input_ids": [[10**6]]}, 400, "id_out_of_range"),
        ({"input_ids": [[2**70]]}, 400, "id_out_of_range"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1]]}, 400, "invalid_shape"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1, 2]]}, 400, "invalid_value"),
        ({"input_ids": [[1, 2]], "attention_mask": [[0, 0]]}, 400, "invalid_value"),
        ({"input_ids": [[1, 2]], "token_type_ids": [[0, 2]]}, 400, "invalid_value"),
        ({"input_ids": [[1]], "outputs": "probabilities"}, 400, "invalid_value"),
        ({"input_ids": [[1]] * 5}, 413, "too_large"),
        ({"input_ids": [[1] * 51] * 4}, 413, "too_large"),
        ({"input_ids": [[1] * 65]}, 413, "too_long"),
        ({"input_ids": [[1]], "key_id": "0" * 16}, 409, "wrong_key"),
        (b" " * (16 * 1024 + 1), 413, "too_large"),
    ],
)
def test_a_bad_request_is_a_typed_answer_and_the_server_goes_on(server: KeyedServer, body: Any, status: int, kind: str) -> None:
    got, answer = ask(server, "POST", CLASSIFY, body)
    assert (got, answer["error"]["type"]) == (status, kind)
    assert set(answer) == {"error"} and set(answer["error"]) == {"type", "message"}
    works(server)


@pytest.mark.parametrize(
    ("method", "path", "media_type", "status"),
    [
        ("GET", "/", None, 404),
        ("GET", "/v1/model?x", None, 404),
        ("GET", "/v1/../etc/passwd", None, 404),
        ("GET", CLASSIFY, None, 405),
        ("POST", "/v1/model", "application/json", 405),
        ("POST", "/v2/classify", "application/json", 404),
        ("POST", "/v1/generate", "application/json", 404),
        ("POST", "/v1/embed", "application/json", 404),
        ("PUT", CLASSIFY, "application/json", 405),
        ("DELETE", "/v1/model", None, 405),
        ("POST", CLASSIFY, "text/plain", 415),
        ("POST", CLASSIFY, "application/x-www-form-urlencoded", 415),
        ("POST", CLASSIFY, None, 415),
        ("POST", CLASSIFY, PIXELS_TYPE, 415),
        ("POST", CLASSIFY, "application/json; charset=utf-8", 200),
    ],
)
def test_other_paths_methods_and_types(server: KeyedServer, method: str, path: str, media_type: str | None, status: int) -> None:
    got, answer = ask(server, method, path, {"input_ids": [[1]]} if method != "GET" else None, media_type)
    assert got == status and ("error" in answer) == (status != 200)
    works(server)


def raw(server: KeyedServer, request: bytes) -> bytes:
    with socket.create_connection(server.address, timeout=20) as sock:
        sock.sendall(request)
        sock.shutdown(socket.SHUT_WR)
        found = b""
        while chunk := sock.recv(65536):
            found += chunk
        return found


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"POST /v1/classify HTTP/1.1\r\nContent-Type: application/json\r\n\r\n", b"411"),
        (b"POST /v1/classify HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n\r\n", b"411"),
        (b"POST /v1/classify HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", b"411"),
        (b"POST /v1/classify HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: -2\r\n\r\n{}", b"400"),
        (b"POST /v1/classify HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 1e3\r\n\r\n{}", b"400"),
        (b"POST /v1/classify HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 999999999999\r\n\r\n{}", b"413"),
        (b"GET /v1/model HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", b"400"),
        (b"<secret> is not a request\r\n\r\n", b"400"),
        (b"GET /v1/model HTTP/9.9\r\n\r\n", b"505"),
        (b"GET /v1/" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"GET /v1/model HTTP/1.1\r\n" + b"".join(b"a%d: b\r\n" % n for n in range(200)) + b"\r\n", b"431"),
    ],
)
def test_malformed_http_is_answered_without_an_echo(server: KeyedServer, request_head: bytes, status: bytes) -> None:
    answer = raw(server, request_head)
    assert answer.split(b"\r\n", 1)[0].split()[1] == status, answer[:200]
    assert b"Connection: close" in answer and b'{"error":' in answer and b"secret" not in answer and b"xxx" not in answer
    works(server)


def test_a_caller_who_leaves_in_the_middle(server: KeyedServer) -> None:
    head = b"POST /v1/classify HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 400\r\n\r\n{"
    assert raw(server, head) == b""
    works(server)


def test_slow_senders_are_ended(bert: Pair) -> None:
    with serving(bert.server, limits=KeyedLimits(request_s=1)) as server, socket.create_connection(server.address, timeout=20) as sock:
        begun = time.monotonic()
        sock.sendall(b"POST /v1/cl")
        with pytest.raises(OSError):
            while time.monotonic() - begun < 20:
                time.sleep(0.2)
                sock.sendall(b"a")  # a byte now and then keeps a plain timeout from ever passing
                sock.settimeout(0.01)
                try:
                    if sock.recv(1) == b"":
                        raise ConnectionResetError
                except TimeoutError:
                    pass
        assert time.monotonic() - begun < 10
        works(server)


def test_connections_are_limited(bert: Pair) -> None:
    with serving(bert.server, limits=KeyedLimits(connections=2)) as server:
        held = [socket.create_connection(server.address, timeout=20) for _ in range(2)]
        deadline = time.monotonic() + 20
        while server.figures().sessions < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        with socket.create_connection(server.address, timeout=20) as third:
            assert third.recv(1) == b""
        for sock in held:
            sock.close()
        while server.figures().sessions and time.monotonic() < deadline:
            time.sleep(0.02)
        works(server)


def test_too_many_waiting_requests_are_refused_as_busy(bert: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(bert.server, limits=KeyedLimits(waiting=0)) as server:
        running, go = threading.Event(), threading.Event()
        classify = server.model.classify

        def slowly(request: Any) -> Any:
            running.set()
            assert go.wait(30)
            return classify(request)

        monkeypatch.setattr(server.model, "classify", slowly)
        found: list[tuple[int, Any]] = []
        first = threading.Thread(target=lambda: found.append(ask(server, "POST", CLASSIFY, {"input_ids": [[1]]})))
        first.start()
        assert running.wait(30)
        status, answer = ask(server, "POST", CLASSIFY, {"input_ids": [[1]]})
        go.set()
        first.join(30)
        assert (status, answer["error"]["type"]) == (503, "busy") and found[0][0] == 200


def test_an_answer_under_way_is_given_when_the_server_ends(bert: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[int, Any]] = []
    with serving(bert.server) as server:
        running, classify = threading.Event(), server.model.classify

        def slowly(request: Any) -> Any:
            running.set()
            time.sleep(1)
            return classify(request)

        monkeypatch.setattr(server.model, "classify", slowly)
        caller = threading.Thread(target=lambda: found.append(ask(server, "POST", CLASSIFY, {"input_ids": [[1]]})))
        caller.start()
        assert running.wait(30)
    caller.join(30)
    assert found[0][0] == 200


def test_a_failure_inside_says_nothing_of_it(
    server: KeyedServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: object) -> Any:
        raise RuntimeError("tensor([4242]) in /secret/place")

    with monkeypatch.context() as patch, caplog.at_level(logging.INFO, "privtensors"):
        patch.setattr(server.model, "classify", broken)
        status, answer = ask(server, "POST", CLASSIFY, {"input_ids": [[1]]})
    assert status == 500 and answer == {"error": {"type": "internal", "message": "the request failed"}}
    assert "RuntimeError" in caplog.text and "secret" not in caplog.text and "4242" not in caplog.text
    works(server)


def test_a_model_that_is_not_finite_is_an_error(bert: Pair, server: KeyedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    bias = server.model._model.classifier.bias
    before = bias.detach().clone()
    with torch.no_grad():
        bias.fill_(float("nan"))
        status, answer = ask(server, "POST", CLASSIFY, {"input_ids": [[1]]})
        bias.copy_(before)
    assert (status, answer["error"]["type"]) == (500, "not_finite")


def test_no_id_is_logged(server: KeyedServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "privtensors"):
        ask(server, "POST", CLASSIFY, {"input_ids": [[5, 9, 7]]})
        ask(server, "POST", CLASSIFY, {"input_ids": [[5, 9, 7, 10**7]]})
        ask(server, "GET", "/v1/1719")
    lines = [re.sub(r" [0-9.]+ s$", "", record.getMessage()) for record in caplog.records]
    assert lines == ["/v1/classify 200 1 x 3", "/v1/classify 400 id_out_of_range", "another path 404 not_found"]


# Generation


def test_plain_http_is_for_this_machine(bert: Pair) -> None:
    with pytest.raises(UsageError, match="plain HTTP beyond this machine"):
        KeyedServer(bert.server, ("0.0.0.0", 0))
    with KeyedServer(bert.server, ("0.0.0.0", 0), insecure_http=True) as server:
        assert server.url.startswith("http://0.0.0.0:")


def test_what_is_no_server_folder_is_refused(bert: Pair, tmp_path: Path) -> None:
    import shutil

    with pytest.raises(UnpairedFolders):
        KeyedServer(bert.client)
    with pytest.raises(FileFormatError):
        KeyedServer(tmp_path / "absent")
    half = tmp_path / "half"
    shutil.copytree(bert.server, half)
    (half / "privtensors.json").unlink()
    with pytest.raises(FileFormatError, match="no manifest"):
        KeyedServer(half)
    changed = tmp_path / "changed"
    shutil.copytree(bert.server, changed)
    with (changed / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(FileFormatError, match="not those of the manifest"):
        KeyedServer(changed)
    other = tmp_path / "other"
    shutil.copytree(bert.server, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMaskedLM"]}))
    with pytest.raises(InvalidInput, match="cannot be served"):
        KeyedServer(other)
    (other / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(InvalidInput, match="weights are missing"):
        KeyedServer(other)


def test_a_taken_address_is_one_line(bert: Pair) -> None:
    with KeyedServer(bert.server) as server, pytest.raises(TransportError, match="cannot listen"):
        KeyedServer(bert.server, server.address)


def test_limits_are_checked() -> None:
    assert KeyedLimits.parse({"batch": "8"}) == KeyedLimits(batch=8)
    for given in ({"batch": "0"}, {"batch": "x"}, {"batches": "8"}, {"batch": "9" * 11}, {"tokens": ""}):
        with pytest.raises(ParameterError):
            KeyedLimits.parse(given)
