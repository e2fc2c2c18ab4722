"""``privtensors convert``: a model in a keyed basis, for a server that shall not read what it is asked."""

from __future__ import annotations

import json as json_module
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from privtensors.cli.ledger_output import one_line_errors
from privtensors.cli.passphrases import passphrase_of
from privtensors.cli.text import printable
from privtensors.errors import UsageError, WrongKey

if TYPE_CHECKING:
    from privtensors.obfuscation.convert import Converted
    from privtensors.obfuscation.keys import ObfuscationKey

_WHERE: Final = "privtensors convert"
_SCHEMES: Final = ("equivariant", "sentinel")
_HEURISTIC: Final = (
    "Heuristic. It stops a reader of traffic or logs who lacks the weights. It does not stop a server that holds the transformed"
    " weights of an open model: that server recovers the key (100 % of the tokens)."
)


def convert(
    scheme: Annotated[str, typer.Option("--scheme", metavar="NAME", help="equivariant, or sentinel.")] = "equivariant",
    model: Annotated[
        str | None, typer.Option("--model", metavar="PATH_OR_NAME", help="A model with its tokenizer: a folder, or a hub's name.")
    ] = None,
    client: Annotated[Path | None, typer.Option("--client", metavar="DIR", help="Key, keyed tokenizer, label names.")] = None,
    server: Annotated[Path | None, typer.Option("--server", metavar="DIR", help="Weights for the server.")] = None,
    rotate: Annotated[bool, typer.Option("--rotate", help="Instead: put both folders under a fresh key, without the plain model.")] = False,
    key: Annotated[Path | None, typer.Option("--key", metavar="FILE", help="A key file; default: a fresh key.")] = None,
    passphrase: Annotated[bool, typer.Option("--passphrase", help="Ask for a passphrase that wraps the key.")] = False,
    passphrase_file: Annotated[
        Path | None, typer.Option("--passphrase-file", metavar="FILE", help="Read that passphrase from a file.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace folders of an earlier conversion.")] = False,
    model_name_or_path: Annotated[
        str | None, typer.Option("--model_name_or_path", metavar="PATH_OR_NAME", help="sentinel: the model.")
    ] = None,
    destination_dir: Annotated[Path | None, typer.Option("--destination_dir", metavar="DIR", help="sentinel: the new folder.")] = None,
    encryption_key: Annotated[
        str | None, typer.Option("--encryption_key", metavar="KEY", help="sentinel: a key file, or a passphrase; others may see this line.")
    ] = None,
    embedding_rescaling_factor: Annotated[
        int | None, typer.Option("--embedding_rescaling_factor", min=0, metavar="N", help="sentinel, with --compat: rounds; default 2.")
    ] = None,
    shuffle: Annotated[bool, typer.Option("--shuffle", help="sentinel, with --compat: swap ids too.")] = False,
    compat: Annotated[bool, typer.Option("--compat", help="sentinel: the published construction, which protects nothing.")] = False,
    noise: Annotated[
        float | None, typer.Option("--noise", metavar="S", help="sentinel: embedding noise, in standard deviations of a row.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, and nothing else there.")] = False,
) -> None:
    """Write a client folder and a server folder: same stock class, same size, same answers, in a keyed basis.

    The server folder holds weights and no tokenizer, key or label name; stock AutoModel classes load it. The client folder's tokenizer
    loads with stock AutoTokenizer. Both appear whole or not at all.

    Example: privtensors convert --model ./my-classifier --client client/ --server server/

    Example: privtensors convert --rotate --client client/ --server server/

    Example: privtensors convert --scheme sentinel --model_name_or_path ./bert --destination_dir keyed/ --encryption_key key.json
    """
    with one_line_errors(json):
        sentinel = {
            "--model_name_or_path": model_name_or_path, "--destination_dir": destination_dir, "--encryption_key": encryption_key,
            "--embedding_rescaling_factor": embedding_rescaling_factor, "--shuffle": shuffle or None, "--compat": compat or None,
            "--noise": noise,
        }  # fmt: skip
        equivariant = {"--model": model, "--client": client, "--server": server, "--key": key, "--rotate": rotate or None}
        _check(scheme, equivariant, sentinel)
        secret = _passphrase(passphrase, passphrase_file, confirm=not rotate and key is None)
        with _told_of_interruption(), _quiet(), _bar("rotate" if rotate else "transform", shown=not json) as advance:
            if scheme == "sentinel":
                from privtensors.obfuscation.sentinel.conversion import convert as convert_sentinel
                from privtensors.obfuscation.sentinel.hardened import DEFAULT_NOISE

                assert model_name_or_path is not None and destination_dir is not None
                _show_sentinel(
                    convert_sentinel(
                        model_name_or_path, destination_dir, encryption_key=encryption_key, shuffle=shuffle, compat=compat,
                        embedding_rescaling_factor=2 if embedding_rescaling_factor is None else embedding_rescaling_factor,
                        noise=DEFAULT_NOISE if noise is None else noise, passphrase=secret, overwrite=overwrite, progress=advance,
                    ),
                    json,
                )  # fmt: skip
                return
            assert client is not None and server is not None
            found = _equivariant(model, client, server, rotate, key, secret, overwrite, advance)
        if json:
            typer.echo(json_module.dumps({"ok": True, "guarantee": "heuristic", **found.to_dict()}))
        else:
            _show(found, rotate)


def _equivariant(
    model: str | None,
    client: Path,
    server: Path,
    rotate: bool,
    key: Path | None,
    passphrase: str | None,
    overwrite: bool,
    advance: Callable[[int, int], None],
) -> Converted:
    from privtensors.obfuscation import convert as obfuscation

    chosen = None if key is None else _key(key, passphrase)
    if rotate:
        return obfuscation.rotate(client, server, passphrase=passphrase, key=chosen, progress=advance)
    assert model is not None
    return obfuscation.convert(
        model, client=client, server=server, key=chosen, passphrase=passphrase, overwrite=overwrite, progress=advance
    )


def _key(path: Path, passphrase: str | None) -> ObfuscationKey:
    """The key of a file, wrapped or not: the passphrase is in the first place that of the client folder."""
    from privtensors.obfuscation.keys import load_key

    try:
        return load_key(path)
    except WrongKey:
        if passphrase is None:
            raise
    return load_key(path, passphrase=passphrase)


def _check(scheme: str, equivariant: Mapping[str, Any], sentinel: Mapping[str, Any]) -> None:
    if scheme not in _SCHEMES:
        raise UsageError(f"no scheme {scheme!r}", where=_WHERE, fix=f"Give --scheme {' or '.join(_SCHEMES)}")
    mine, others = (sentinel, equivariant) if scheme == "sentinel" else (equivariant, sentinel)
    foreign = [name for name, value in others.items() if value is not None]
    if foreign:
        raise UsageError(f"{foreign[0]} does not belong to --scheme {scheme}", where=_WHERE, fix=f"It takes {', '.join(mine)}")
    if scheme == "sentinel":
        needed: tuple[str, ...] = ("--model_name_or_path", "--destination_dir")
    else:
        needed = ("--client", "--server") if mine["--rotate"] else ("--model", "--client", "--server")
    missing = [name for name in needed if mine[name] is None]
    if missing:
        raise UsageError(f"{missing[0]} is missing", where=_WHERE, fix=f"Give {', '.join(needed)}")
    if scheme == "equivariant" and mine["--rotate"] and mine["--model"] is not None:
        raise UsageError("--rotate needs no --model", where=_WHERE, fix="Leave --model out: the server folder is put under a fresh key")


def _passphrase(asked: bool, file: Path | None, *, confirm: bool) -> str | None:
    if asked and file is not None:
        raise UsageError("--passphrase and --passphrase-file exclude each other", where=_WHERE, fix="Give one of them")
    if asked:
        return str(typer.prompt("Passphrase", hide_input=True, confirmation_prompt=confirm, err=True))
    return None if file is None else passphrase_of(file)


@contextmanager
def _told_of_interruption() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted: no folder was written or changed", err=True)
        raise typer.Exit(130) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """What there is to tell is printed, so only errors of transformers are logged."""
    from transformers.utils import logging as reports

    logging: Any = reports
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def _bar(title: str, *, shown: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, in parameters."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn("line"), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal)) as progress:
        task = progress.add_task("load", total=None)
        yield lambda done, total: progress.update(task, description=title if done < total else "check", completed=done, total=total)


def _show(found: Converted, rotated: bool) -> None:
    rows = {
        "model": f"{found.architecture} ({found.model_type}), {found.parameters:,} parameters, {found.dtype}",
        "key": f"{found.key_id} (its public id)",
        "keyed ids": f"{found.rows:,}" if found.rows else "pixels and places of patches",
        "keyed labels": f"{found.labels}" if found.labels else "none",
        "largest |Δ|": "not compared" if found.error is None else f"{found.error:.2g} on a random input, read back from disk",
        "seconds": f"{found.seconds:.1f}",
        "client folder": f"{found.client}: key, tokenizer, label names. Keep it",
        "server folder": f"{found.server}: weights. Give it to the server",
    }  # fmt: skip
    title = "A rotation that was interrupted is complete" if found.finished else "Rotated" if rotated else "Converted"
    _print(title, rows, (_HEURISTIC,))


def _show_sentinel(found: Any, json: bool) -> None:
    if json:
        facts = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(found).items()}
        typer.echo(json_module.dumps({"ok": True, "guarantee": "heuristic", "scheme": "sentinel", **facts}))
        return
    rows = {
        "construction": "published (compat)" if found.compat else "hardened",
        "model": f"{found.model_type}, {found.parameters:,} parameters",
        "key": f"{found.key_source}, public id {found.key_id}",
        "embedding noise": f"{found.noise:g} of a row's standard deviation",
        "seconds": f"{found.seconds:.1f}",
        "client folder": str(found.client),
        "server folder": str(found.server),
    }
    _print("Converted", rows, found.remarks)


def _print(title: str, rows: Mapping[str, str], remarks: Iterable[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(width=200, highlight=False)
    table = Table(title=title, show_header=False)
    for name, value in rows.items():
        table.add_row(name, Text(printable(value)))
    console.print(table)
    for remark in remarks:
        typer.echo(printable(remark))
