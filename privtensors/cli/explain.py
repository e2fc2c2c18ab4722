"""``privtensors explain``: who sees what under a policy file."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from privtensors.errors import UsageError
from privtensors.policy import Policy


def explain(
    policy_file: Annotated[Path, typer.Argument(help="A policy file, e.g. policy.toml.", metavar="POLICY.TOML")],
    collude: Annotated[
        list[str] | None, typer.Option(help="Parties that pool what they hold: repeat, or separate by commas.", metavar="PARTY[,PARTY]")
    ] = None,
    deployment: Annotated[str, typer.Option(help="simulated (one process) or deployed (parties on the network).")] = "simulated",
    json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Print who sees what under a policy, in which form, under which assumption.

    Example: privtensors explain policy.toml --collude server,dealer --deployment deployed
    """
    if deployment not in ("simulated", "deployed"):
        raise UsageError(f"unknown deployment {deployment!r}", where="--deployment", fix="Allowed: simulated, deployed")
    parties = frozenset(name.strip() for item in collude or () for name in item.split(",") if name.strip())
    explanation = Policy.from_toml(policy_file).explain(collude=parties, deployment=cast(Literal["simulated", "deployed"], deployment))
    typer.echo(dumps(explanation.to_dict(), indent=2, ensure_ascii=False) if json else str(explanation))
