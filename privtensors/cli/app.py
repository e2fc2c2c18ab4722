"""The command ``privtensors``: its verbs, and how every one of them reports errors."""

from __future__ import annotations

import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from privtensors import __version__
from privtensors.cli.audit import app as audit
from privtensors.cli.backends import app as backends
from privtensors.cli.convert import convert
from privtensors.cli.deal import deal
from privtensors.cli.demo import demo
from privtensors.cli.explain import explain
from privtensors.cli.infer import infer
from privtensors.cli.keys import app as keys
from privtensors.cli.ledger import app as ledger
from privtensors.cli.serve import serve
from privtensors.cli.text import one_line
from privtensors.cli.train import train
from privtensors.errors import PrivTensorsError, UsageError


class OneLineErrors(TyperGroup):
    """Turns errors of this package into one line on standard error and an exit code, Ctrl-C into 130.

    Anything else is a mistake of ours and keeps its traceback.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PrivTensorsError as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            typer.echo(f"error: {one_line(str(error))}", err=True)
            raise typer.Exit(2 if isinstance(error, UsageError) else 1) from None
        except KeyboardInterrupt:
            typer.echo("interrupted: every reveal up to here is in the ledger, complete; nothing else was revealed", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=OneLineErrors,
    help="Ordinary PyTorch and Hugging Face code on data that stays hidden. Start with: privtensors demo",
    epilog="Example: privtensors demo. Every verb has --help with an example; --json where a program may read it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"privtensors {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", envvar="PRIVTENSORS_DEBUG", help="Show the traceback of an error.")] = False,
) -> None:
    pass


app.command(epilog="Example: privtensors demo --reviews 8 --json")(demo)
app.command(epilog="Example: privtensors explain policy.toml --collude server,dealer")(explain)
app.add_typer(backends, name="backends")
app.command(epilog="Example: privtensors convert --model ./my-classifier --client client/ --server server/")(convert)
app.command(epilog="Example: privtensors serve policy.toml --as server")(serve)
app.command(epilog="Example: privtensors deal policy.toml --for 20 --tokens 32,128")(deal)
app.command(epilog='Example: privtensors infer policy.toml --text "A film to remember."')(infer)
app.command(epilog="Example: privtensors train --model_name_or_path keyed --dataset_name reviews.csv --do_train --output_dir tuned")(train)
app.add_typer(keys, name="keys")
app.add_typer(ledger, name="ledger")
app.add_typer(audit, name="audit", epilog="Example: privtensors audit dp --epsilon 2 --json")
