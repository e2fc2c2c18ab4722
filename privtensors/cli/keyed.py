"""What ``serve --keyed`` and ``infer --keyed`` do."""

from __future__ import annotations

import json as json_module
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from privtensors.cli.passphrases import passphrase_of
from privtensors.cli.text import printable
from privtensors.errors import UsageError

if TYPE_CHECKING:
    from privtensors.deploy.keyed_client import KeyedClient, Prediction
    from privtensors.deploy.keyed_server import KeyedServer

_SHOWN = 80  # characters of a text


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a server draws; all None for greedy."""

    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None

    @property
    def asked(self) -> bool:
        """Whether anything was given."""
        return (self.temperature, self.top_p, self.seed) != (None, None, None)


def serve_keyed(
    folder: Path,
    address: str | None,
    certificate: Path | None,
    key_file: Path | None,
    client_authority: Path | None,
    insecure_http: bool,
    limits: list[str] | None,
    device: str | None,
) -> KeyedServer:
    """The server, listening. Raises UsageError for options that do not go together, and as :class:`KeyedServer`."""
    from privtensors.deploy.config import parse_address
    from privtensors.deploy.keyed_requests import KeyedLimits
    from privtensors.deploy.keyed_server import KeyedServer
    from privtensors.deploy.keyed_tls import https_server_context

    where = "privtensors serve --keyed"
    if (certificate is None) != (key_file is None) or (client_authority is not None and certificate is None):
        raise UsageError("HTTPS takes a certificate and its key", where=where, fix="Give --cert FILE and --key-file FILE")
    if insecure_http and certificate is not None:
        raise UsageError("--insecure-http with a certificate", where=where, fix="Leave one out")
    pairs = [entry.partition("=") for entry in limits or ()]
    found = KeyedLimits.parse({name.strip(): value.strip() for name, _, value in pairs})
    context = None
    if certificate is not None and key_file is not None:
        context = https_server_context(certificate, key_file, authority=client_authority)
    listen = parse_address(address) if address else ("127.0.0.1", 8480)
    return KeyedServer(folder, listen, context=context, insecure_http=insecure_http, limits=found, device=device)


def open_client(
    folder: Path,
    server: str,
    passphrase_file: Path | None,
    files: Mapping[str, Path | None],
    tls_name: str | None,
    insecure_http: bool,
    timeout: float,
) -> KeyedClient:
    """A client over a client folder, its key opened. Raises as :class:`KeyedClient`."""
    from privtensors.deploy.keyed_client import KeyedClient

    return KeyedClient(
        folder,
        server,
        passphrase=_passphrase(folder, passphrase_file),
        authority=files["authority"],
        certificate=files["certificate"],
        certificate_key=files["certificate_key"],
        tls_name=tls_name,
        insecure_http=insecure_http,
        timeout=timeout,
    )


def infer_keyed(
    client: KeyedClient,
    folder: Path,
    texts: Sequence[str],
    images: Sequence[Path],
    max_tokens: int,
    new_tokens: int,
    sampling: Sampling,
    *,
    json: bool,
) -> None:
    """Ask, and print plain answers. Raises UsageError where the model does not take what was given."""
    task = str(client.model()["task"])
    where = "privtensors infer --keyed"
    if task == "image-classification":
        if texts or not images:
            raise UsageError("this model classifies images", where=where, fix="Give --image FILE")
    elif images or not texts:
        raise UsageError("this model takes texts", where=where, fix='Give "TEXT"')
    if sampling.asked and task != "text-generation":
        raise UsageError("only generation samples", where=where, fix="Leave out --temperature, --top-p and --seed")
    names = [image.name for image in images] if images else list(texts)
    begun = time.perf_counter()
    answers = _answers(client, folder, task, texts, images, max_tokens, new_tokens, sampling)
    seconds = time.perf_counter() - begun
    if json:
        found = {"ok": True, "task": task, "key_id": client.manifest.key_id, "seconds": seconds, "protection": "heuristic"}
        rows = [{"input": name, **answer} for name, answer in zip(names, answers, strict=True)]
        typer.echo(json_module.dumps(found | {"answers": rows}, indent=2, ensure_ascii=False))
        return
    for name, answer in zip(names, answers, strict=True):
        _show(name, answer)


def _answers(
    client: KeyedClient,
    folder: Path,
    task: str,
    texts: Sequence[str],
    images: Sequence[Path],
    max_tokens: int,
    new_tokens: int,
    sampling: Sampling,
) -> list[dict[str, Any]]:
    """Per input, as JSON values."""
    if task == "text-generation":
        continued = client.generate(
            texts,
            max_new_tokens=new_tokens,
            max_length=max_tokens,
            do_sample=sampling.asked,
            temperature=1.0 if sampling.temperature is None else sampling.temperature,
            top_p=1.0 if sampling.top_p is None else sampling.top_p,
            seed=sampling.seed,
        )
        return [{"text": c.text, "new_tokens": c.new_tokens} for c in continued]
    if task == "token-classification":
        return [{"tokens": [asdict(token) for token in row]} for row in client.tag(texts, max_length=max_tokens)]
    if task == "image-classification":
        from privtensors.cli.infer import pixels_of

        return [_as_dict(client.classify_pixels(pixels_of(folder, image))[0]) for image in images]
    if task == "feature-extraction":
        return [{"embedding": row} for row in client.embed(texts, max_length=max_tokens).tolist()]
    return [_as_dict(found) for found in client.classify(texts, max_length=max_tokens)]


def _as_dict(found: Prediction) -> dict[str, Any]:
    return {"label": found.label, "confidence": found.score, "scores": dict(found.scores)}


def _show(name: str, answer: Mapping[str, Any]) -> None:
    if "text" in answer:
        typer.echo(printable(answer["text"]))
    elif "tokens" in answer:
        typer.echo(" ".join(printable(f"{token['text']}/{token['label']}") for token in answer["tokens"]))
    elif "embedding" in answer:
        typer.echo(" ".join(f"{value:.6g}" for value in answer["embedding"]))
    else:
        shown = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…"
        typer.echo(printable(f"{answer['label']} {answer['confidence']:.4f}: {shown}"))


def _passphrase(folder: Path, file: Path | None) -> str | None:
    """What opens the key file, where it is wrapped: the first line of ``file``, else typed on a terminal."""
    if file is not None:
        return passphrase_of(file)
    if sys.stdin.isatty() and _wrapped(folder):
        return str(typer.prompt("Passphrase", hide_input=True, err=True))
    return None


def _wrapped(folder: Path) -> bool:
    try:
        found = json_module.loads((folder / "key.json").read_bytes()[:16384])
    except (OSError, ValueError):
        return False  # reading the key says what is wrong
    return isinstance(found, dict) and "wrap" in found
