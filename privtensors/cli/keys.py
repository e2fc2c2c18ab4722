"""``privtensors keys``: certificates for the parties of a deployment."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from privtensors.cli.text import printable
from privtensors.errors import UsageError

app = typer.Typer(help="Make certificates for the parties of a deployment.", no_args_is_help=True)

_DEFAULT = ("client", "server", "dealer")


@app.command(epilog="Example: privtensors keys init policy.toml")
def init(
    place: Annotated[Path, typer.Argument(help="A folder, or a policy file whose deployment names folder and parties.", metavar="PLACE")],
    party: Annotated[list[str] | None, typer.Option("--party", metavar="NAME", help="Parties, with a folder: repeat it.")] = None,
    days: Annotated[float, typer.Option(min=0.01, max=3650, metavar="D", help="Days that the certificates are valid.")] = 30,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object for programs.")] = False,
) -> None:
    """Make an authority and a certificate with its key for each party: for tests and trials.

    The authority's key is not kept, so no further party can be added. Give each host ca.pem and its own two files, no
    other party's key. Existing files are never overwritten. For use beyond trials issue certificates from an authority of
    your own; docs/guides/transport.md says which name each must carry.
    """
    from privtensors.transport.tls import make_test_certificates

    names, folder = tuple(party or _DEFAULT), place
    if place.suffix == ".toml":
        if party:
            raise UsageError("--party and a policy file exclude each other", where="privtensors keys init", fix="Give one of them")
        from privtensors.deploy.config import DEALER, SERVER, Deployment

        deployment = Deployment.load(place)
        names, folder = (*deployment.clients, SERVER, DEALER), deployment.keys
    identities = make_test_certificates(folder, names, days=days)
    if json:
        files = {name: {"certificate": str(i.certificate), "key": str(i.key)} for name, i in identities.items()}
        typer.echo(json_module.dumps({"ok": True, "authority": str(folder / "ca.pem"), "parties": files, "days": days}))
        return
    typer.echo(f"{printable(str(folder))}: ca.pem, and for each of {', '.join(names)} a .pem and a .key, valid for {days:g} days")
    typer.echo("Give each party ca.pem and its own two files; a key belongs to one host only.")
