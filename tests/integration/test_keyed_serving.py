"""A keyed model as two processes: the plain model's answers, what crossed the wire, and clean refusals and ends."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from privtensors.cli.app import app
from privtensors.deploy.keyed_client import KeyedClient
from privtensors.errors import AssetRefused, AssetUnavailable, PeerLost, UnpairedFolders, WrongPeer
from privtensors.obfuscation.convert import convert, load_client
from privtensors.testing.assets import SKIP_REASON, minilm_path, stories15m
from privtensors.testing.assets_tokenizers import stories15m_tokenizer
from privtensors.transport.tls import make_test_certificates
from tests import warm
from tests.security.wire import KeyedService, Wire, keyed_service

NAMES = {0: "thoroughly-delighted", 1: "somewhat-bewildered", 2: "utterly-disappointed"}
TEXTS = [
    "The orchestra played wonderfully, and nobody wanted to leave.",
    "ok then",
    "I would rather watch paint dry than sit through this again.",
    "An honest, quiet film about a lighthouse keeper & his daughter: 5/5!",
]
PROMPTS = ["Once upon a time, there was a little dog", "The sun was warm and"]


@dataclass(frozen=True)
class Made:
    model: Any
    tokenizer: Any
    client: Path
    server: Path


def asset(load: Callable[[], Any]) -> Any:
    try:
        return load()
    except AssetRefused:
        raise
    except AssetUnavailable as error:
        pytest.skip(f"{SKIP_REASON}: {error}")


def run(*arguments: str) -> Result:
    """A command within this process: a process of its own would take seconds to import torch."""
    return CliRunner().invoke(app, arguments)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Made:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    path, folder = asset(minilm_path), tmp_path_factory.mktemp("minilm")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(path, id2label=NAMES).eval()
    with torch.no_grad():
        model.classifier.weight.mul_(20)
    tokenizer = AutoTokenizer.from_pretrained(path)
    convert(model, tokenizer, client=folder / "client", server=folder / "server")
    return Made(model, tokenizer, folder / "client", folder / "server")


@pytest.fixture(scope="module")
def service(classifier: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyedService]:
    with keyed_service(classifier.server, tmp_path_factory.mktemp("log") / "server.log") as found:
        yield found


def plain_scores(made: Made, text: str) -> dict[str, float]:
    with torch.no_grad():
        shares = made.model(**made.tokenizer(text, return_tensors="pt")).logits[0].double().softmax(-1)
    return {NAMES[n]: float(share) for n, share in enumerate(shares)}


def test_two_processes_classify_as_the_plain_model_does(classifier: Made, service: KeyedService) -> None:
    wire = Wire(service.address)
    answers = KeyedClient(classifier.client, f"http://127.0.0.1:{wire.port}").classify(TEXTS)
    for text, answer in zip(TEXTS, answers, strict=True):
        plain = plain_scores(classifier, text)
        assert answer.label == max(plain, key=lambda name: plain[name]) and dict(answer.scores) == pytest.approx(plain, abs=1e-4)
    assert len({answer.label for answer in answers}) > 1  # or the test could not tell
    # What crossed are keyed[plain], and nothing plain.
    (body,) = wire.bodies()
    vocabulary = load_client(classifier.client).vocabulary
    assert vocabulary is not None
    plain_ids = classifier.tokenizer(TEXTS, padding=True, return_tensors="pt")["input_ids"]
    assert body["input_ids"] == vocabulary.encode(plain_ids).tolist() != plain_ids.tolist()
    wire.close()


def test_the_command_line_does_too(classifier: Made, service: KeyedService) -> None:
    command = ("infer", "--keyed", str(classifier.client), "--server", service.url, "--json", *TEXTS)
    done = warm.run("-m", "privtensors", *command)
    assert done.returncode == 0, done.stderr
    for answer in json.loads(done.stdout)["answers"]:
        assert answer["scores"] == pytest.approx(plain_scores(classifier, answer["input"]), abs=1e-4)


def test_two_processes_tell_the_plain_models_story(tmp_path: Path) -> None:
    model, tokenizer = asset(stories15m), asset(stories15m_tokenizer)
    convert(model, tokenizer, client=tmp_path / "client", server=tmp_path / "server")
    with keyed_service(tmp_path / "server", tmp_path / "server.log") as service:
        wire = Wire(service.address)
        client = KeyedClient(tmp_path / "client", f"http://127.0.0.1:{wire.port}")
        told = client.generate(PROMPTS, max_new_tokens=32)
        sampled = [client.generate(PROMPTS[:1], max_new_tokens=16, do_sample=True, temperature=1.2, top_p=0.9, seed=s) for s in (1, 1, 2)]
        done = run("infer", "--keyed", str(tmp_path / "client"), "--server", service.url, "--new-tokens", "32", PROMPTS[0])
        assert service.end(signal.SIGINT) == 0  # SIGTERM is what every other test here ends with
        with pytest.raises(PeerLost, match="nothing listens"):
            KeyedClient(tmp_path / "client", service.url).generate(PROMPTS)
    assert "/v1/generate 200 1 x 11 + 32 " in service.log.read_text()
    for prompt, answer in zip(PROMPTS, told, strict=True):
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        plain = model.generate(**inputs, max_new_tokens=32, do_sample=False)[0]
        assert list(answer.ids) == plain.tolist() and answer.text == tokenizer.decode(plain, skip_special_tokens=True)
        for ids in (plain[:12].tolist(), plain[-12:].tolist()):  # neither prompt nor answer crossed as plain ids
            assert json.dumps(ids, separators=(",", ":"))[1:-1].encode() not in wire.everything
    assert sampled[0] == sampled[1] != sampled[2]
    assert done.exit_code == 0 and " ".join(done.stdout.split()) == " ".join(told[0].text.split())
    assert b"little" not in wire.everything and b"Once" not in wire.everything
    wire.close()


def test_another_key_is_refused_before_any_id_is_sent(classifier: Made, service: KeyedService, tmp_path: Path) -> None:
    convert(classifier.model, classifier.tokenizer, client=tmp_path / "client", server=tmp_path / "server")
    wire = Wire(service.address)
    with pytest.raises(UnpairedFolders, match="nothing was sent"):
        KeyedClient(tmp_path / "client", f"http://127.0.0.1:{wire.port}").classify(TEXTS)
    assert bytes(wire.up).startswith(b"GET /v1/model ") and b"POST" not in wire.up and b"input_ids" not in wire.up
    wire.close()
    done = run("infer", "--keyed", str(tmp_path / "client"), "--server", service.url, TEXTS[0])
    assert done.exit_code == 1 and "another key" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_folder_that_is_none_does_not_start(classifier: Made) -> None:
    for folder, told in ((classifier.client, "is a client folder"), (classifier.client.parent, "no manifest")):
        done = run("serve", "--keyed", str(folder), "--listen", "127.0.0.1:0")
        assert done.exit_code == 1 and told in done.stderr and len(done.stderr.splitlines()) == 1
    done = run("serve", "--keyed", str(classifier.server), "--listen", "0.0.0.0:0")
    assert done.exit_code == 2 and "--insecure-http" in done.stderr


def test_tls(classifier: Made, tmp_path: Path) -> None:
    ours, theirs = make_test_certificates(tmp_path / "ours", ["server", "client"]), make_test_certificates(tmp_path / "theirs", ["client"])
    server, client, stranger = ours["server"], ours["client"], theirs["client"]
    given = ("--cert", str(server.certificate), "--key-file", str(server.key), "--client-ca", str(server.authority))
    with keyed_service(classifier.server, tmp_path / "server.log", *given) as service:
        assert service.url.startswith("https://")
        wire = Wire(service.address)
        url = f"https://127.0.0.1:{wire.port}"
        shown = {"certificate": client.certificate, "certificate_key": client.key}
        right = KeyedClient(classifier.client, url, authority=client.authority, tls_name="server.privtensors", **shown)
        assert right.classify(TEXTS[:1])[0].label in NAMES.values()
        assert b"input_ids" not in wire.everything and b"HTTP" not in wire.everything  # TLS, not its look
        for options in (
            {"authority": stranger.authority, "tls_name": "server.privtensors", **shown},  # the server is of another authority
            {"tls_name": "server.privtensors", **shown},  # none of the system's authorities issued it
            {"authority": client.authority, **shown},  # it is right, but of another name
            {"authority": client.authority, "tls_name": "server.privtensors"},  # the client shows nothing
            {
                "authority": client.authority, "tls_name": "server.privtensors",
                "certificate": stranger.certificate, "certificate_key": stranger.key,
            },
        ):  # fmt: skip
            with pytest.raises(WrongPeer):
                KeyedClient(classifier.client, url, **options).classify(TEXTS[:1])  # type: ignore[arg-type]
        with pytest.raises(PeerLost):  # plain HTTP to an HTTPS port
            KeyedClient(classifier.client, f"http://127.0.0.1:{wire.port}").classify(TEXTS[:1])
        files = ("--ca", str(client.authority), "--cert", str(client.certificate), "--key-file", str(client.key))
        command = ("infer", "--keyed", str(classifier.client), "--server", service.url, *files, "--tls-name", "server.privtensors")
        assert run(*command, TEXTS[0]).exit_code == 0
        wire.close()
        assert "input_ids" not in (tmp_path / "server.log").read_text()
