"""``privtensors audit obfuscation``: every known attack on keyed models, and which attacker each scheme stops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from privtensors.cli.ledger_output import one_line_errors
from privtensors.cli.text import printable
from privtensors.errors import UsageError

if TYPE_CHECKING:
    from privtensors.audit.obfuscation import ObfuscationAudit, Verdict

_WIDTH = 195  # rich assumes 80 columns when nobody looks


def obfuscation(
    client: Annotated[Path | None, typer.Option("--client", metavar="DIR", help="Your client folder: the truth, to judge by.")] = None,
    server: Annotated[Path | None, typer.Option("--server", metavar="DIR", help="Your server folder: what is attacked.")] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="NAME_OR_PATH", help="The open model that an attacker has; default: MiniLM.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option("--text", metavar="FILE", help="Texts that are sent, one a line; default: film reviews.")
    ] = None,
    tokens: Annotated[int | None, typer.Option("--tokens", min=10, metavar="N", help="Tokens whose rows are attacked.")] = None,
    volumes: Annotated[
        str | None, typer.Option("--volumes", metavar="N,N", help="Tokens that a reader sees; default: 300,1000,10000,100000.")
    ] = None,
    noise: Annotated[
        str | None, typer.Option("--noise", metavar="S,S", help="Noise on the weights, in standard deviations; default: 0,0.1,0.5.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Everything: all noises, all seeds, a million tokens. Takes half an hour.")] = False,
    passphrase_file: Annotated[Path | None, typer.Option("--passphrase-file", metavar="FILE", help="Of your client's key.")] = None,
    require: Annotated[
        str | None, typer.Option("--require", metavar="WHO", help="Fail unless every scheme stops this attacker: reader, informed, server.")
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Also draw the recovery: .png, .svg or .pdf.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for programs.")] = False,
) -> None:
    """Attack keyed models with everything that is published, and say which attacker each scheme stops.

    Exit code 0 only if the controls show that the attacks work and find nothing where nothing is, and what --require asks for holds.
    """
    with one_line_errors(as_json):
        from privtensors.cli.audit_subjects import Request, prepared

        if require not in (None, "reader", "informed", "server"):
            raise UsageError(f"no attacker is called {printable(str(require))}", where="--require", fix="Give reader, informed or server")
        sizes, noises = _numbers(volumes, "--volumes"), _numbers(noise, "--noise")
        read = None if sizes is None else tuple(int(one) for one in sizes)
        request = Request(client, server, base, text, tokens, read, noises, full, passphrase_file)
        if plot is not None and plot.suffix.lower() not in (".png", ".svg", ".pdf"):
            raise UsageError("a plot is .png, .svg or .pdf", where=str(plot), fix="Give a path with one of these endings")
        from privtensors.cli.stages import Stages

        found = prepared(request, Stages())
        if plot is not None:
            from privtensors.audit.obfuscation import plot_recovery

            plot_recovery(found, plot)
        unmet = _unmet(found, require)
        passed = found.passed and not unmet
        if as_json:
            typer.echo(json.dumps({"ok": passed, **found.to_dict()}))
        else:
            _show(found)
            if plot is not None:
                typer.echo(f"plot       {printable(str(plot))}")
            for one in unmet:
                typer.echo(printable(f"required   {one.scheme} {one.outcome.value} the {one.attacker.value} ({one.running:.1%})"))
    if not passed:
        raise typer.Exit(1)


def _numbers(text: str | None, where: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        found = tuple(float(one) for one in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 <= one < 1e9 for one in found):
        fix = "Give numbers with commas between, such as 1000,10000"
        raise UsageError(f"{printable(text)} is no list of numbers", where=where, fix=fix)
    return tuple(sorted(set(found)))


def _unmet(found: ObfuscationAudit, require: str | None) -> list[Verdict]:
    from privtensors.audit.obfuscation import Attacker, Outcome

    if require is None:
        return []
    asked = Attacker[require.upper()]
    return [one for one in found.found if one.attacker is asked and one.outcome is not Outcome.STOPS]


def _show(found: ObfuscationAudit) -> None:
    from rich.console import Console

    from privtensors.audit.obfuscation import statements
    from privtensors.cli.audit_tables import contest_table, reader_table, server_table

    console = Console()
    console = console if console.is_terminal else Console(width=_WIDTH)
    for table in (server_table(found), reader_table(found), contest_table(found)):
        if table.row_count:
            console.print(table)
    for one in statements(found.found):
        schemes, _, told = one.partition(" | ")
        attacker, _, parts = told.partition(": ")
        typer.echo(f"verdict    {printable(schemes)}")
        typer.echo(f"           {attacker}")
        for part in parts.split("; "):
            typer.echo(f"             {part}")
    typer.echo("guarantee  heuristic: none of these schemes encrypts anything")
    for fault in found.faults:
        typer.echo(f"CONTROL    FAILS: {printable(fault)}")
    if found.passed:
        typer.echo("controls   pass: what lies open is found, and nothing where nothing is")
