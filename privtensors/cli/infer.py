"""``privtensors infer``: the client of a deployment. It asks for one text or image and prints the answer."""

from __future__ import annotations

import json as json_module
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privtensors.cli.text import printable
from privtensors.errors import InvalidInput, MissingExtra, UsageError

if TYPE_CHECKING:
    from privtensors.deploy import Deployment, RemoteModel, RequestCost

_SHOWN = 80  # characters of a text
_TASKS = ("text-classification", "image-classification", "text-generation")


@dataclass(frozen=True)
class Answer:
    """What a request gave.

    Attributes:
        input: The text, or the image's file name.
        scores: Label and probability, largest first; empty for generation and where only the label was revealed.
        label: The best label; empty for generation.
        text: The generated text.
        costs: What each forward took.
    """

    input: str
    scores: tuple[tuple[str, float], ...] = ()
    label: str = ""
    text: str = ""
    costs: tuple[RequestCost, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        total = {
            "forwards": len(self.costs),
            "seconds": sum(c.seconds for c in self.costs),
            "offline_seconds": sum(c.offline_seconds for c in self.costs),
            "rounds": sum(c.rounds for c in self.costs),
            "bytes_sent": sum(c.bytes_sent for c in self.costs),
            "dealer_bytes": sum(c.dealer_bytes for c in self.costs),
            "prepared": all(c.prepared for c in self.costs),
        }
        answer = {"text": self.text} if self.text else {"label": self.label, "scores": dict(self.scores)}
        return {"input": self.input, **answer, **total}


def infer(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(help="A policy file with a table [deployment]; with --keyed, texts.", metavar="[POLICY.TOML | TEXT...]"),
    ] = None,
    text: Annotated[list[str] | None, typer.Option("--text", metavar="TEXT", help="A text to classify or continue: repeat it.")] = None,
    image: Annotated[list[Path] | None, typer.Option("--image", metavar="FILE", help="An image to classify: repeat it.")] = None,
    party: Annotated[str | None, typer.Option("--as", metavar="NAME", help="Name of this client's certificate.")] = None,
    keys: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Certificates; default: the file's.")] = None,
    model: Annotated[Path | None, typer.Option(metavar="FOLDER", help="The client's part of the model; default: the file's.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, max=1 << 16, metavar="N", help="Cut longer texts.")] = 128,
    new_tokens: Annotated[int, typer.Option(min=1, max=4096, metavar="N", help="Tokens to generate.")] = 20,
    prepare: Annotated[
        bool, typer.Option("--prepare", help="Have all dealt before the first is asked: the seconds of each are without it.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(min=0.1, max=3600, metavar="S", help="Seconds to reach the parties; keyed: to wait for an answer.")
    ] = 30.0,
    ledger: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The ledger file [PRIVTENSORS_LEDGER, else the user's data directory].")
    ] = None,
    keyed: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Ask a keyed server, with this client folder of convert.")] = None,
    server: Annotated[str | None, typer.Option(metavar="URL", help="Keyed: http(s)://HOST:PORT.")] = None,
    passphrase_file: Annotated[Path | None, typer.Option(metavar="FILE", help="Keyed: what opens the key; else asked for.")] = None,
    ca: Annotated[Path | None, typer.Option(metavar="FILE", help="Keyed: authority of the server's certificate.")] = None,
    cert: Annotated[Path | None, typer.Option(metavar="FILE", help="Keyed: this client's PEM certificate, where asked for.")] = None,
    key_file: Annotated[Path | None, typer.Option(metavar="FILE", help="Keyed: the certificate's private key.")] = None,
    tls_name: Annotated[str | None, typer.Option(metavar="NAME", help="Keyed: the name on the server's certificate, if not HOST.")] = None,
    insecure_http: Annotated[bool, typer.Option("--insecure-http", help="Keyed: plain HTTP beyond this machine.")] = False,
    temperature: Annotated[float | None, typer.Option(min=0.01, max=100, help="Keyed generation: sample; default greedy.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0.01, max=1, help="Keyed generation: sample from the likeliest.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Keyed generation: repeatable samples.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, and nothing else there.")] = False,
) -> None:
    """Ask a deployment or a keyed server, and print what only this client learns.

    Example: privtensors infer policy.toml --text "A film to remember."

    Example: privtensors infer policy.toml --prepare --text "A film to remember." --text "A film to forget."

    Example: privtensors infer --keyed CLIENT_FOLDER --server https://host:8443 "A film to remember."
    """
    if keyed is not None:
        others: dict[str, object] = {"--as": party, "--keys": keys, "--model": model, "--ledger": ledger, "--prepare": prepare or None}
        _alone(others, "does not go with --keyed", "Leave it out")
        from privtensors.cli.keyed import Sampling, infer_keyed, open_client

        if server is None:
            raise UsageError("no server", where="privtensors infer --keyed", fix="Give --server https://HOST:PORT")
        texts, sampling = [*(inputs or ()), *(text or ())], Sampling(temperature, top_p, seed)
        connection = {"authority": ca, "certificate": cert, "certificate_key": key_file}
        client = open_client(keyed, server, passphrase_file, connection, tls_name, insecure_http, timeout)
        with _quiet():
            infer_keyed(client, keyed, texts, image or [], max_tokens, new_tokens, sampling, json=json)
        return
    keyed_only: dict[str, object] = {
        "--server": server,
        "--passphrase-file": passphrase_file,
        "--ca": ca,
        "--cert": cert,
        "--key-file": key_file,
    }
    keyed_only |= {"--tls-name": tls_name, "--temperature": temperature, "--top-p": top_p, "--seed": seed}
    _alone(keyed_only | {"--insecure-http": insecure_http or None}, "goes with --keyed", "Give --keyed FOLDER, or leave it out")
    if len(inputs or ()) != 1:
        fix = "Give POLICY.TOML --text TEXT, or --keyed FOLDER --server URL TEXT"
        raise UsageError("one policy file is needed", where="privtensors infer", fix=fix)
    from privtensors.deploy.config import Deployment

    deployment = Deployment.load(Path((inputs or [])[0]))
    _check(deployment.task, text, image, prepare)
    from privtensors.accounting import Ledger
    from privtensors.core.session import Session
    from privtensors.deploy.client import connect
    from privtensors.deploy.line import Prepared

    folder = model or deployment.models["client"]
    items = [*(text or ()), *(image or ())]
    given = [_arguments(deployment, folder, item, max_tokens) for item in items]  # before anybody is called
    shapes = [_shape(arguments) for arguments in given] if prepare else []
    session = Session()
    if ledger is not None:
        session = Session(recorder=Ledger(ledger, session=session.id))
    with _quiet(), connect(deployment, party=party, keys=keys, model=model, session=session, timeout=timeout) as remote:
        ahead = [remote.prepare(tokens, masked=masked, image_size=side) for tokens, masked, side in shapes]
        answers = [_ask(remote, deployment, folder, item, arguments, new_tokens) for item, arguments in zip(items, given, strict=True)]
    spent = Prepared(len(ahead), sum(p.seconds for p in ahead), sum(p.dealer_bytes for p in ahead)) if prepare else None
    if json:
        dealt = None if spent is None else asdict(spent)
        found = {"ok": True, "task": deployment.task, "prepared": dealt, "answers": [a.to_dict() for a in answers]}
        typer.echo(json_module.dumps(found, indent=2, ensure_ascii=False))
        return
    if spent is not None:
        plural = "s" if spent.count > 1 else ""
        typer.echo(f"prepared {spent.count} request{plural}: {spent.seconds:.2f} s, {spent.dealer_bytes / 1e6:.1f} MB by the dealer")
    for answer in answers:
        _show(answer)


def _alone(given: dict[str, object], problem: str, fix: str) -> None:
    if names := [name for name, value in given.items() if value is not None]:
        raise UsageError(f"{', '.join(names)} {problem}", where="privtensors infer", fix=fix)


@contextmanager
def _quiet() -> Iterator[None]:
    """What there is to tell is printed, so only errors are logged."""
    logger = logging.getLogger("privtensors")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _check(task: str, text: list[str] | None, image: list[Path] | None, prepare: bool) -> None:
    where = "privtensors infer"
    if task not in _TASKS:
        raise UsageError(f"task {task} has no command", where=where, fix="use privtensors.deploy.connect in Python")
    if task == "image-classification":
        if text or not image:
            raise UsageError("this deployment classifies images", where=where, fix="Give --image FILE")
    elif image or not text:
        raise UsageError("this deployment takes texts", where=where, fix='Give --text "…"')
    if any(not t.strip() for t in text or ()):
        raise UsageError("an empty text", where="--text", fix="Give some words")
    if prepare and task == "text-generation":
        raise UsageError("each step of a generation is dealt for when it is made", where="--prepare", fix="Leave it out")


def _shape(arguments: dict[str, Any]) -> tuple[int | None, bool, int | None]:
    """What :meth:`RemoteModel.prepare` is told of a request: tokens, whether any is masked, side of the image."""
    if "pixel_values" in arguments:
        height, width = arguments["pixel_values"].shape[-2:]
        if height != width:
            what = f"images of {height} x {width} pixels cannot be prepared, only square ones"
            raise UsageError(what, where="--prepare", fix="Leave it out, or have the image processor crop them")
        return None, False, width
    mask = arguments.get("attention_mask")
    return arguments["input_ids"].shape[1], mask is not None and not bool(mask.all()), None


def _arguments(deployment: Deployment, folder: Path, item: str | Path, max_tokens: int) -> dict[str, Any]:
    """The model's arguments for one text or image."""
    if isinstance(item, Path):
        return {"pixel_values": pixels_of(folder, item)}
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        fix = "copy the tokenizer's files there: tokenizer.save_pretrained(folder)"
        raise InvalidInput(f"no tokenizer can be loaded ({type(error).__name__})", where=str(folder), fix=fix) from None
    inputs = dict(tokenizer(item, return_tensors="pt", truncation=True, max_length=max_tokens))
    if deployment.task == "text-generation":
        inputs.pop("token_type_ids", None)
    if not inputs["input_ids"].numel():
        raise UsageError("a text without any token", where="--text", fix="Give some words")
    return inputs


def pixels_of(folder: Path, path: Path) -> Any:
    """float32 (1, C, H, W): an image file through the image processor of ``folder``."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise MissingExtra("pillow is not installed", where="--image", fix="pip install pillow") from None
    from transformers import AutoImageProcessor

    try:
        with Image.open(path) as image:
            pixels = image.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise InvalidInput(f"no image can be read ({type(error).__name__})", where=str(path), fix="give a JPEG or PNG file") from None
    try:
        loader: Any = AutoImageProcessor
        processor = loader.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        fix = "copy preprocessor_config.json there: processor.save_pretrained(folder)"
        raise InvalidInput(f"no image processor can be loaded ({type(error).__name__})", where=str(folder), fix=fix) from None
    return processor(pixels, return_tensors="pt")["pixel_values"]


def _ask(remote: RemoteModel, deployment: Deployment, folder: Path, item: str | Path, inputs: dict[str, Any], new_tokens: int) -> Answer:
    name = item.name if isinstance(item, Path) else item
    before = len(remote.costs)
    if deployment.task == "text-generation":
        from transformers import AutoTokenizer

        tokens = remote.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
        tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        text = tokenizer.decode(tokens[0], skip_special_tokens=True)
        return Answer(name, text=str(text), costs=tuple(remote.costs[before:]))
    output: Any = remote(**inputs)
    labels: dict[Any, str] = remote.config.id2label or {}
    if deployment.policy.outputs == "argmax":
        index = int(output["predictions"][0])
        return Answer(name, label=str(labels.get(index, index)), costs=tuple(remote.costs[before:]))
    ranked = output.logits[0].double().softmax(-1).sort(descending=True)
    pairs = zip(ranked.indices.tolist(), ranked.values.tolist(), strict=True)
    scores = tuple((str(labels.get(index, index)), share) for index, share in pairs)
    return Answer(name, scores, scores[0][0], costs=tuple(remote.costs[before:]))


def _show(answer: Answer) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    shown = answer.input if len(answer.input) <= _SHOWN else f"{answer.input[:_SHOWN]}…"
    typer.echo(printable(answer.text or f"{answer.label}: {shown}"))
    if answer.scores:
        table = Table("label", "score", box=None)
        for label, share in answer.scores[:5]:
            table.add_row(Text(printable(label)), f"{share:.4f}")
        console.print(table)
    cost = answer.to_dict()
    typer.echo(
        f"{cost['seconds']:.2f} s, {cost['rounds']} rounds, {cost['bytes_sent'] / 1e6:.1f} MB sent by each party,"
        f" {cost['dealer_bytes'] / 1e6:.1f} MB by the dealer{' before' if cost['prepared'] else ''},"
        f" {cost['forwards']} forward{'s' if cost['forwards'] > 1 else ''}"
    )
