"""``privtensors deal``: the dealer makes correlated randomness before anybody asks for it."""

from __future__ import annotations

import json as json_module
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from privtensors.cli.text import printable
from privtensors.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from privtensors.deploy.bundle import Wanted
    from privtensors.deploy.config import Deployment
    from privtensors.deploy.programs import Programs

_FOLDER = "dealer-store"
_MOST = 1 << 20


def deal(
    policy_file: Annotated[Path, typer.Argument(help="A policy file with a table [deployment].", metavar="POLICY.TOML")],
    count: Annotated[int, typer.Option("--for", min=1, max=_MOST, metavar="N", help="Requests of one session, of each length.")],
    tokens: Annotated[str | None, typer.Option(metavar="T[,T…]", help="Lengths of texts, padding included.")] = None,
    batch: Annotated[int, typer.Option(min=1, max=_MOST, metavar="B", help="Texts or images in each request.")] = 1,
    masked: Annotated[bool, typer.Option("--masked", help="Texts whose attention mask leaves something out.")] = False,
    image_size: Annotated[int | None, typer.Option(min=1, max=_MOST, metavar="P", help="Side of images; default: the model's.")] = None,
    bundles: Annotated[int, typer.Option(min=1, max=_MOST, metavar="K", help="Sessions to deal for: each takes one bundle.")] = 1,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help=f"The store; default: {_FOLDER}/ beside the policy file.")] = None,
    model: Annotated[Path | None, typer.Option(metavar="FOLDER", help="With the model's config.json; default: the file's.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, and nothing else there.")] = False,
) -> None:
    """Fill the dealer's store: seeds and corrections for requests to come. Run it at the dealer.

    Example: privtensors deal policy.toml --for 4 --tokens 32,128

    Serve from the store with: privtensors serve POLICY.TOML --as dealer --store FOLDER. Whoever reads the store learns the
    masks of its unused requests. Never copy it and never restore it from a backup: its randomness must be used once.
    """
    from privtensors.deploy.config import DEALER, Deployment
    from privtensors.deploy.parts import load_dealer_model
    from privtensors.deploy.programs import Programs
    from privtensors.deploy.rooms import deployed_technique
    from privtensors.deploy.store import fill
    from privtensors.deploy.terms import terms_of

    lengths = _lengths(tokens)
    deployment = Deployment.load(policy_file)
    if deployment.limits.threads:
        import torch

        torch.set_num_threads(deployment.limits.threads)
    folder = out or policy_file.absolute().parent / _FOLDER
    structure = load_dealer_model(deployment, model or deployment.models[DEALER])
    programs = Programs(structure, deployment.policy, deployed_technique(deployment.policy))
    start, written = time.perf_counter(), 0
    try:
        wanted = _wanted(deployment, programs, structure, lengths, count, batch, masked, image_size)
        with _Bar(bundles * sum(w.count * w.program.correction_bytes for w in wanted), show=not json) as tell:
            for _ in range(bundles):
                written += fill(folder, terms_of(deployment, structure), programs.setup.program, wanted, tell)
    finally:
        programs.close()
    _report(folder, lengths, wanted, bundles, written, time.perf_counter() - start, json=json)


def _lengths(text: str | None) -> tuple[int | None, ...]:
    if text is None:
        return (None,)
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and 0 < int(part) <= _MOST for part in parts) or len(set(parts)) != len(parts):
        raise UsageError(f"{text!r} is no list of lengths", where="--tokens", fix="Give numbers like 32 or 32,128")
    return tuple(map(int, parts))


def _wanted(
    deployment: Deployment,
    programs: Programs,
    structure: object,
    lengths: tuple[int | None, ...],
    count: int,
    batch: int,
    masked: bool,
    image_size: int | None,
) -> list[Wanted]:
    from privtensors.deploy.bundle import Wanted
    from privtensors.deploy.kinds import expected, kind_of

    found = []
    for length in lengths:
        view = expected(structure, causal=programs.causal, tokens=length, batch=batch, masked=masked, image_size=image_size)
        if view.tokens > deployment.limits.tokens:
            fix = f"Allowed by limits.tokens: {deployment.limits.tokens}"
            raise UsageError(f"{view.tokens} tokens in a request", where="--tokens, --batch", fix=fix)
        found.append(Wanted(kind_of(view), programs.find(view, None).result().program, count))
    return found


class _Bar:
    """A progress bar on standard error, or nothing."""

    def __init__(self, total: int, show: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (TextColumn("dealing"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, disable=not show or not console.is_terminal, transient=True)
        self._task = self._progress.add_task("", total=total)

    def __enter__(self) -> Callable[[int], None]:
        self._progress.start()
        return lambda size: self._progress.advance(self._task, size)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def _report(
    folder: Path, lengths: tuple[int | None, ...], wanted: list[Wanted], bundles: int, written: int, seconds: float, *, json: bool
) -> None:
    rows = [(length, w.count * bundles, w.program.correction_bytes) for length, w in zip(lengths, wanted, strict=True)]
    if json:
        kinds = [{"tokens": length, "requests": number, "bytes_each": size} for length, number, size in rows]
        found = {"ok": True, "store": str(folder), "bundles": bundles, "kinds": kinds, "bytes": written, "seconds": seconds}
        typer.echo(json_module.dumps(found, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("requests", "tokens", "MB each", box=None)
    for length, number, size in rows:
        table.add_row(str(number), "an image" if length is None else str(length), f"{size / 1e6:.1f}")
    Console(highlight=False).print(table)
    plural = "s" if bundles > 1 else ""
    typer.echo(f"{bundles} bundle{plural} in {printable(str(folder))}: {written / 1e6:.1f} MB, {seconds:.1f} s")
