"""The keyed client: plain answers from every task, and what it refuses before and after it asks."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from privtensors.cli.app import app
from privtensors.deploy.keyed_client import KeyedClient
from privtensors.deploy.keyed_http import Endpoint, KeyedConnection
from privtensors.deploy.keyed_requests import KeyedLimits
from privtensors.errors import (
    FileFormatError,
    FrameError,
    InvalidInput,
    ParameterError,
    PeerLost,
    PeerTimeout,
    PrivTensorsError,
    RequestRefused,
    UnpairedFolders,
    UsageError,
    VersionMismatch,
    WrongKey,
)
from privtensors.obfuscation.convert import convert
from tests.unit.deploy.keyed_places import Pair, pair, serving
from tests.unit.obfuscation.models import NAMES, TEXTS


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair(tmp_path_factory.mktemp("bert"))


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "gpt2", "llama"])
def test_classification(family: str, tmp_path: Path) -> None:
    found = pair(tmp_path, family)
    with torch.no_grad():
        logits = torch.cat([found.model(**found.processor(text, return_tensors="pt")).logits for text in TEXTS]).double()
    with serving(found.server) as server:
        answers = KeyedClient(found.client, server.url).classify(TEXTS)
        one_by_one = KeyedClient(found.client, server.url).classify(TEXTS, batch=1)
    for answer, single, row in zip(answers, one_by_one, logits, strict=True):
        plain = row.softmax(-1)
        assert answer.label == single.label == NAMES[int(row.argmax())]
        assert dict(answer.scores) == pytest.approx({NAMES[n]: float(p) for n, p in enumerate(plain)}, abs=1e-4)
        assert answer.score == max(share for _, share in answer.scores) == answer.scores[0][1]


def test_two_segments_are_two_segments(bert: Pair) -> None:
    """Token types reach the server only where they say something; here the template gives one text type 0 throughout."""
    with serving(bert.server) as server:
        client = KeyedClient(bert.client, server.url)
        with client._checked() as (connection, info):
            inputs = {"input_ids": [[5, 6]], "attention_mask": [[1, 1]], "token_type_ids": [[0, 1]]}
            assert client._request(info, inputs) == inputs
            assert "token_type_ids" not in client._request(info, inputs | {"token_type_ids": [[0, 0]]})
            typed = client._logits(connection, info, inputs, (1,))
            assert not torch.equal(typed, client._logits(connection, info, inputs | {"token_type_ids": [[0, 0]]}, (1,)))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_generation(family: str, tmp_path: Path) -> None:
    found = pair(tmp_path, family, "ForCausalLM" if family == "llama" else "LMHeadModel")
    with serving(found.server) as server:
        answers = KeyedClient(found.client, server.url).generate(TEXTS, max_new_tokens=9)
        sampled = KeyedClient(found.client, server.url).generate(TEXTS[:1], max_new_tokens=9, do_sample=True, temperature=5.0, seed=3)
    for text, answer in zip(TEXTS, answers, strict=True):
        inputs = found.processor(text, return_tensors="pt")
        plain = found.model.generate(**inputs, max_new_tokens=9, do_sample=False)[0].tolist()
        assert list(answer.ids) == plain and answer.new_tokens == len(plain) - inputs["input_ids"].shape[1]
        assert answer.text == found.processor.decode(plain, skip_special_tokens=True)
    assert sampled[0].ids != answers[0].ids


def test_token_classification(tmp_path: Path) -> None:
    found = pair(tmp_path, "bert", "ForTokenClassification")
    with serving(found.server) as server:
        rows = KeyedClient(found.client, server.url).tag(TEXTS)
    for text, row in zip(TEXTS, rows, strict=True):
        inputs = found.processor(text, return_tensors="pt", return_offsets_mapping=True, return_special_tokens_mask=True)
        places, special = inputs.pop("offset_mapping")[0].tolist(), inputs.pop("special_tokens_mask")[0].tolist()
        with torch.no_grad():
            best = found.model(**inputs).logits[0].argmax(-1).tolist()
        expected = [(start, end, NAMES[n]) for (start, end), n, skip in zip(places, best, special, strict=True) if not skip]
        assert [(t.start, t.end, t.label) for t in row] == expected and all(t.text == text[t.start : t.end] for t in row)


def test_pixels(tmp_path: Path) -> None:
    found = pair(tmp_path, "vit")
    pixels = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        logits = found.model(pixel_values=pixels).logits.double()
    with serving(found.server) as server:
        client = KeyedClient(found.client, server.url)
        answers = client.classify_pixels(pixels)
        with pytest.raises(InvalidInput):
            client.classify_pixels(pixels * float("nan"))
        with pytest.raises(RequestRefused, match="nothing was sent"):
            client.classify(["a text"])
    for answer, row in zip(answers, logits, strict=True):
        assert dict(answer.scores) == pytest.approx({NAMES[n]: float(p) for n, p in enumerate(row.softmax(-1))}, abs=1e-4)


def test_embeddings(tmp_path: Path) -> None:
    found = pair(tmp_path, "bert", "Model")
    with serving(found.server) as server:
        got = KeyedClient(found.client, server.url).embed(TEXTS)
    for text, row in zip(TEXTS, got, strict=True):
        with torch.no_grad():
            plain = found.model(**found.processor(text, return_tensors="pt")).last_hidden_state[0].double().mean(0)
        assert float((row - plain).abs().max()) < 1e-4


def test_bad_calls(bert: Pair) -> None:
    with serving(bert.server) as server:
        client = KeyedClient(bert.client, server.url)
        for texts in ([], [""], ["a", "  "], "a film", [3]):
            with pytest.raises(InvalidInput):
                client.classify(texts)  # type: ignore[arg-type]
        with pytest.raises(ParameterError):
            client.classify(["a"], batch=0)
        with pytest.raises(ParameterError, match="do_sample"):
            client.generate(["a"], top_p=0.5)
        with pytest.raises(RequestRefused, match="text-classification"):
            client.generate(["a"])
        long = client.classify(["film " * 500])  # cut to the model's 64 positions
        assert long[0].label in NAMES.values()
    with serving(bert.server, limits=KeyedLimits(batch=1)) as server, pytest.raises(RequestRefused, match="at most 1 rows"):
        KeyedClient(bert.client, server.url).classify(TEXTS)


def test_another_pair_is_refused(bert: Pair, tmp_path: Path) -> None:
    convert(bert.model, bert.processor, client=tmp_path / "client", server=tmp_path / "server")
    with serving(tmp_path / "server") as server:
        with pytest.raises(UnpairedFolders, match="nothing was sent"):
            KeyedClient(bert.client, server.url).classify(TEXTS)
        answers = KeyedClient(tmp_path / "client", server.url).classify(TEXTS)
        assert len(answers) == 2 and server.figures().refused == 0


def test_client_folders_that_cannot_be_used(bert: Pair, tmp_path: Path) -> None:
    with pytest.raises(UnpairedFolders):
        KeyedClient(bert.server, "http://127.0.0.1:1")
    with pytest.raises(FileFormatError):
        KeyedClient(tmp_path, "http://127.0.0.1:1")
    copy = tmp_path / "client"
    shutil.copytree(bert.client, copy)
    (copy / "key.json").unlink()
    with pytest.raises(WrongKey):
        KeyedClient(copy, "http://127.0.0.1:1")
    shutil.copy(bert.client / "key.json", copy / "key.json")
    bert.processor.save_pretrained(copy)  # the plain tokenizer over the keyed one would send plain ids
    with pytest.raises(FileFormatError, match=r"tokenizer\.json"):
        KeyedClient(copy, "http://127.0.0.1:1")


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:80", "ftp://127.0.0.1", "http://", "http://127.0.0.1/v1", "http://a:b@127.0.0.1", "http://127.0.0.1:99999", "http://[", ""],
)
def test_addresses_that_are_none(bert: Pair, url: str) -> None:
    with pytest.raises(UsageError, match="no URL"):
        KeyedClient(bert.client, url)


def test_plain_http_is_for_this_machine(bert: Pair) -> None:
    with pytest.raises(UsageError, match="plain HTTP beyond this machine"):
        KeyedClient(bert.client, "http://192.0.2.1:80")
    KeyedClient(bert.client, "http://192.0.2.1:80", insecure_http=True)
    KeyedClient(bert.client, "http://localhost:80"), KeyedClient(bert.client, "http://[::1]:80")


# Servers that lie or break


@contextmanager
def answering(*answers: Any, status: int = 200) -> Iterator[tuple[str, list[bytes]]]:
    """A server that gives these answers, the last for ever; and the bodies it was sent."""
    left, bodies = list(answers), []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            bodies.append(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
            found = left.pop(0) if len(left) > 1 else left[0]
            body = found if isinstance(found, bytes) else json.dumps(found).encode()
            self.send_response(200 if self.command == "GET" else status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", bodies
        finally:
            server.shutdown()
            thread.join()


def info(bert: Pair, **more: Any) -> dict[str, Any]:
    manifest = json.loads((bert.client / "privtensors.json").read_text())
    found = {"format": "privtensors keyed model", "version": 1, "key_id": manifest["key_id"], "weights": manifest["weights"]}
    return found | {"task": "text-classification", "labels": 3, "vocabulary": 40, "token_types": 2, "positions": 64} | more


@pytest.mark.parametrize(
    ("first", "error"),
    [
        (b"hello", FrameError),
        (b"[" * 100_000, FrameError),
        ([], FrameError),
        ({}, FrameError),
        ({"version": 2}, VersionMismatch),
        ({"key_id": "0" * 16}, UnpairedFolders),
        ({"weights": "0" * 64}, UnpairedFolders),
        ({"positions": None}, FrameError),
        ({"vocabulary": -1}, FrameError),
        ({"task": "\x1b[2J"}, RequestRefused),
    ],
)
def test_what_is_no_server_of_ours_gets_no_id(bert: Pair, first: Any, error: type[PrivTensorsError]) -> None:
    told = info(bert, **first) if isinstance(first, dict) and first else first
    with answering(told) as (url, bodies), pytest.raises(error) as caught:
        KeyedClient(bert.client, url).classify(TEXTS)
    assert bodies == [b""] and "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    "logits", [None, [], [[1.0, 2.0, 3.0]], [[1, 2], [3, 4]], [[1, 2, float("nan")]] * 2, [[1, 2, "3"]] * 2, [[1, 2, 3], [4, 5]], "x"]
)
def test_answers_that_are_none(bert: Pair, logits: Any) -> None:
    told = info(bert)
    with answering(told, {"key_id": told["key_id"], "logits": logits}) as (url, _), pytest.raises(FrameError, match="logits"):
        KeyedClient(bert.client, url).classify(TEXTS)


def test_an_answer_of_another_key(bert: Pair) -> None:
    with answering(info(bert), {"key_id": "0" * 16, "logits": []}) as (url, _), pytest.raises(UnpairedFolders):
        KeyedClient(bert.client, url).classify(TEXTS)


def test_a_refusal_is_one_printable_line(bert: Pair) -> None:
    refusal = {"error": {"message": "no\x1b[2J\n" + "x" * 5000}}
    with answering(info(bert), refusal, status=400) as (url, _), pytest.raises(RequestRefused) as caught:
        KeyedClient(bert.client, url).classify(TEXTS)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


@pytest.mark.parametrize("ids", [None, [], [[1], [2]], [[-1]], [[10**6]], [[1.5]], [["1"]], [[1] * 21]])
def test_generated_ids_that_are_none(ids: Any, tmp_path: Path) -> None:
    found = pair(tmp_path, "llama", "ForCausalLM")
    told = info(found, task="text-generation", vocabulary=10**7)
    with answering(told, {"key_id": told["key_id"], "output_ids": ids}) as (url, _), pytest.raises(FrameError, match="ids"):
        KeyedClient(found.client, url).generate(["a"])


def test_nobody_there_and_nobody_answering(bert: Pair) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(PeerTimeout):
            KeyedClient(bert.client, f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.3).model()
        port = silent.getsockname()[1]
    with pytest.raises(PeerLost, match="nothing listens"):
        KeyedClient(bert.client, f"http://127.0.0.1:{port}").classify(TEXTS)
    with pytest.raises(PeerLost, match="resolved"):
        KeyedClient(bert.client, "http://no-such-host.invalid", insecure_http=True).model()


def test_nothing_is_posted_before_the_check() -> None:
    with KeyedConnection(Endpoint("127.0.0.1", 1)) as connection, pytest.raises(UsageError, match="not checked"):
        connection.post("/v1/classify", b"{}")


# The command line


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("infer", "--keyed", "c"), "no server"),
        (("infer", "--keyed", "c", "--server", "http://127.0.0.1:1", "--prepare", "a"), "--prepare does not go with --keyed"),
        (("infer", "policy.toml", "--server", "http://127.0.0.1:1"), "--server goes with --keyed"),
        (("infer", "--text", "a"), "one policy file"),
        (("infer", "a.toml", "b.toml", "--text", "a"), "one policy file"),
        (("serve",), "no policy file"),
        (("serve", "policy.toml"), "no role"),
        (("serve", "policy.toml", "--as", "server", "--cert", "x"), "--cert goes with --keyed"),
        (("serve", "--keyed", "s", "--as", "server"), "--as does not go with --keyed"),
        (("serve", "--keyed", "s", "--cert", "x"), "a certificate and its key"),
        (("serve", "--keyed", "s", "--client-ca", "x"), "a certificate and its key"),
    ],
)
def test_options_that_do_not_go_together(given: tuple[str, ...], told: str) -> None:
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 2 and told in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_command_line_asks(bert: Pair, tmp_path: Path) -> None:
    plain = {}
    for text in TEXTS:
        with torch.no_grad():
            plain[text] = NAMES[int(bert.model(**bert.processor(text, return_tensors="pt")).logits.argmax())]
    with serving(bert.server) as server:
        common = ["infer", "--keyed", str(bert.client), "--server", server.url]
        found = json.loads(CliRunner().invoke(app, [*common, "--json", TEXTS[0], "--text", TEXTS[1]]).stdout)
        assert {a["input"]: a["label"] for a in found["answers"]} == plain and found["protection"] == "heuristic"
        done = CliRunner().invoke(app, [*common, TEXTS[0]])
        assert done.exit_code == 0 and done.stdout.startswith(plain[TEXTS[0]]) and done.stdout.endswith(f": {TEXTS[0]}\n")
        for more, told in (
            (["--image", "x.png"], "takes texts"),
            ([], "takes texts"),
            ([TEXTS[0], "--seed", "1"], "only generation samples"),
        ):
            done = CliRunner().invoke(app, [*common, *more])
            assert done.exit_code == 2 and told in done.stderr


def test_a_wrapped_key_takes_its_passphrase(bert: Pair, tmp_path: Path) -> None:
    convert(bert.model, bert.processor, client=tmp_path / "client", server=tmp_path / "server", passphrase="open sesame")
    (tmp_path / "secret").write_text("open sesame\n")
    (tmp_path / "wrong").write_text("open\n")
    with serving(tmp_path / "server") as server:
        common = ["infer", "--keyed", str(tmp_path / "client"), "--server", server.url, TEXTS[0]]
        assert CliRunner().invoke(app, [*common, "--passphrase-file", str(tmp_path / "secret")]).exit_code == 0
        done = CliRunner().invoke(app, [*common, "--passphrase-file", str(tmp_path / "wrong")])
        assert done.exit_code == 1 and "passphrase is wrong" in done.stderr and "sesame" not in done.stderr
        assert "wrapped by a passphrase" in CliRunner().invoke(app, common).stderr
