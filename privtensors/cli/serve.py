"""``privtensors serve``: the server or the dealer of a deployment, until it is told to end."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privtensors.cli.text import one_line
from privtensors.errors import UsageError

if TYPE_CHECKING:
    from privtensors.deploy.dealer import DealerServer
    from privtensors.deploy.server import Server
    from privtensors.deploy.service import Figures


def serve(
    policy_file: Annotated[Path | None, typer.Argument(help="A policy file with a table [deployment].", metavar="[POLICY.TOML]")] = None,
    role: Annotated[str | None, typer.Option("--as", metavar="ROLE", help="With a policy file: server or dealer.")] = None,
    keys: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Certificates; default: the file's.")] = None,
    model: Annotated[Path | None, typer.Option(metavar="FOLDER", help="The model; for the dealer, its config.json.")] = None,
    address: Annotated[
        str | None,
        typer.Option("--address", "--listen", metavar="HOST:PORT", help="Where to listen; default: the file's. Port 0 takes a free one."),
    ] = None,
    store: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Dealer: serve what privtensors deal stored there, and keep used ids there.")
    ] = None,
    stored_only: Annotated[bool, typer.Option("--stored-only", help="Dealer: refuse what is not in store.")] = False,
    device: Annotated[str | None, typer.Option(metavar="DEVICE", help="Server: where to compute, e.g. cuda; default: the CPU.")] = None,
    keyed: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Serve this server folder of privtensors convert, over HTTP.")
    ] = None,
    cert: Annotated[Path | None, typer.Option(metavar="FILE", help="Keyed: PEM certificate of this host, for HTTPS.")] = None,
    key_file: Annotated[Path | None, typer.Option(metavar="FILE", help="Keyed: the certificate's private key.")] = None,
    client_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keyed: only clients with a certificate of this authority.")
    ] = None,
    insecure_http: Annotated[bool, typer.Option("--insecure-http", help="Keyed: plain HTTP beyond this machine.")] = False,
    limit: Annotated[list[str] | None, typer.Option(metavar="NAME=N", help="Keyed: a limit, e.g. batch=8: repeat it.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log with tracebacks of unexpected errors.")] = False,
) -> None:
    """Serve as one party of a deployment, or a keyed model, until SIGINT or SIGTERM, then end with exit code 0.

    Each request is one line in the log: sizes, rounds, bytes and seconds, never a value. On a terminal a status line follows.

    Example: privtensors serve policy.toml --as server

    Example: privtensors serve --keyed SERVER_FOLDER --listen 127.0.0.1:8443 --cert host.pem --key-file host.key
    """
    if keyed is not None:
        given = {"POLICY.TOML": policy_file, "--as": role, "--keys": keys, "--model": model, "--store": store}
        if others := [name for name, value in given.items() if value is not None] + ["--stored-only"] * stored_only:
            raise UsageError(f"{', '.join(others)} does not go with --keyed", where="privtensors serve", fix="Leave it out")
        from privtensors.cli.keyed import serve_keyed

        with (
            _logged(verbose),
            serve_keyed(keyed, address, cert, key_file, client_ca, insecure_http, limit, device) as server,
            _ending(server),
        ):
            typer.echo(f"key {server.model.info.key_id}, {server.model.info.task}: listens at {server.url}")
            sys.stdout.flush()
            with _status(server):
                server.run()
        typer.echo("server ended")
        return
    keyed_only = {
        "--cert": cert,
        "--key-file": key_file,
        "--client-ca": client_ca,
        "--limit": limit,
        "--insecure-http": insecure_http or None,
    }
    if others := [name for name, value in keyed_only.items() if value is not None]:
        raise UsageError(f"{', '.join(others)} goes with --keyed", where="privtensors serve", fix="Give --keyed FOLDER, or leave it out")
    if policy_file is None or role is None:
        what = "no policy file" if policy_file is None else "no role"
        fix = "Give POLICY.TOML --as server, POLICY.TOML --as dealer, or --keyed FOLDER"
        raise UsageError(what, where="privtensors serve", fix=fix)
    if role not in ("server", "dealer"):
        raise UsageError(f"unknown role {role!r}", where="--as", fix="Allowed: server, dealer")
    if (store is not None or stored_only) and role != "dealer":
        raise UsageError("only the dealer has a store", where="--store", fix="Leave it out, or serve as dealer")
    if device is not None and role != "server":
        raise UsageError("the dealer computes on the CPU", where="--device", fix="Leave it out, or serve as server")
    if stored_only and store is None:
        raise UsageError("there is no store", where="--stored-only", fix="Give --store FOLDER")
    with _logged(verbose), _service(policy_file, role, keys, model, address, store, stored_only, device) as service, _ending(service):
        host, port = service.address
        typer.echo(f"{role} listens at {host}:{port}")
        sys.stdout.flush()
        with _status(service):
            service.run()
    typer.echo(f"{role} ended")


def _service(
    policy_file: Path,
    role: str,
    keys: Path | None,
    model: Path | None,
    address: str | None,
    store: Path | None,
    stored_only: bool,
    device: str | None,
) -> Server | DealerServer:
    from privtensors.deploy.config import Deployment, parse_address

    deployment = Deployment.load(policy_file)
    if deployment.limits.threads:
        import torch

        torch.set_num_threads(deployment.limits.threads)
    where = parse_address(address) if address else None
    if role == "server":
        from privtensors.deploy.server import Server

        return Server(deployment, keys=keys, model=model, address=where, device=device)
    from privtensors.deploy.dealer import DealerServer

    return DealerServer(deployment, keys=keys, model=model, address=where, store=store, stored_only=stored_only)


@contextmanager
def _logged(verbose: bool) -> Iterator[None]:
    """Lines of the logger ``privtensors`` on standard error, control characters removed."""

    class Printable(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            text = super().format(record)
            return text if record.exc_info else one_line(text)

    handler = logging.StreamHandler()
    handler.setFormatter(Printable("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("privtensors")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


@contextmanager
def _ending(service: Any) -> Iterator[None]:
    """SIGINT and SIGTERM end the service."""

    def end(_number: int, _frame: object) -> None:
        service.stop()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _status(service: Any) -> Iterator[None]:
    """A status line on a terminal, nothing elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    from rich.live import Live
    from rich.text import Text

    done = threading.Event()
    with Live(Text(""), console=console, refresh_per_second=4, transient=True) as live:

        def refresh() -> None:
            while not done.wait(0.5):
                live.update(Text(status_text(service.figures())))

        thread = threading.Thread(target=refresh, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def status_text(figures: Figures) -> str:
    """One line about a service."""
    parts = [
        f"{figures.sessions} sessions",
        f"{figures.served} served",
        f"{figures.running} running",
        f"{figures.waiting} waiting",
        f"{figures.failed} failed",
        f"{figures.refused} refused",
        f"{figures.rounds} rounds",
        f"{figures.bytes_sent / 1e6:.1f} MB sent",
        f"last {figures.last_s:.2f} s",
    ]
    return " · ".join(parts)
