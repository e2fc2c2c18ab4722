"""``privtensors ledger``: look at a ledger, check its hash chain, and see what privacy was spent."""

from __future__ import annotations

import contextlib
import json
import math
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from privtensors.errors import AccountingError, PrivTensorsError

if TYPE_CHECKING:
    from privtensors.accounting import Entry, Head, Ledger, Statement

app = typer.Typer(help="Show and verify the ledger of everything that left protection, and its privacy budgets.", no_args_is_help=True)

LedgerOption = Annotated[
    Path | None,
    typer.Option("--ledger", metavar="PATH", help="The ledger file; default: PRIVTENSORS_LEDGER, else the user's data directory."),
]
HeadOption = Annotated[
    str | None, typer.Option("--head", metavar="INDEX:HASH", help="A head noted elsewhere: finds a chain that was cut or rewritten.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object for programs.")]

_PIPE_WIDTH = 200  # rich assumes 80 columns when nobody looks; a file has no such limit


@app.command(epilog="Example: privtensors ledger show --limit 5")
def show(
    ledger: LedgerOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="Show the newest N rows.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """Print the newest rows and the head. It checks each row it shows, not the chain: that is `verify`."""
    with _one_line_errors(as_json):
        found = _existing(ledger)
        entries = found.entries(limit=limit)
        head = entries[-1].head if entries else found.head()
        if as_json:
            rows = [_as_dict(entry) for entry in entries]
            typer.echo(json.dumps({"ok": True, "path": str(found.path), "ledger_id": found.ledger_id, "head": str(head), "entries": rows}))
        else:
            _print_table(found, entries, head)


@app.command(epilog='Example: privtensors ledger verify --head "$(cat noted-head.txt)"')
def verify(
    ledger: LedgerOption = None,
    head: HeadOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check every row and link; exit code 0 only if the chain holds."""
    with _one_line_errors(as_json):
        found = _existing(ledger)
        verdict = found.verify(head)
        if as_json:
            against = None if verdict.against is None else str(verdict.against)
            answer = {"ok": True, "path": str(found.path), "ledger_id": verdict.ledger_id, "rows": verdict.rows, "head": str(verdict.head)}
            typer.echo(json.dumps({**answer, "against": against}))
            return
        typer.echo(f"The chain holds: {_count(verdict.rows)} checked in {found.path}")
        typer.echo(f"head {verdict.head}")
        if verdict.against is None:
            typer.echo("Held against no head: a chain that was cut or rewritten as a whole is found only with --head.")
        else:
            typer.echo(f"It contains the given head, row {verdict.against.index}.")


@app.command(epilog="Example: privtensors ledger budget --dataset reviews --json")
def budget(
    ledger: LedgerOption = None,
    dataset: Annotated[str | None, typer.Option("--dataset", metavar="NAME", help="Only this data set.")] = None,
    delta: Annotated[float, typer.Option("--delta", metavar="D", help="The delta for accounts without a budget.")] = 1e-5,
    as_json: JsonOption = False,
) -> None:
    """Print what privacy each data set has spent, over all techniques together, and what is left of its budget.

    Open reservations count in full. "filter" holds when noise or stopping was chosen on the way, and is what budgets
    are held against; "PLD" and "RDP" are valid for a schedule fixed in advance.
    """
    with _one_line_errors(as_json):
        from privtensors.accounting import Accounts

        found = _existing(ledger)
        statements = [one for one in Accounts(found).statements(delta) if dataset in (None, one.account.dataset)]
        if dataset is not None and not statements:
            raise AccountingError("the ledger has no account of it", where=f"data set {dataset!r}", fix="Ask without --dataset")
        if as_json:
            accounts = [_account(one) for one in statements]
            typer.echo(json.dumps({"ok": True, "path": str(found.path), "head": str(found.head()), "accounts": accounts}))
        else:
            _print_budgets(found, statements)


def _existing(path: Path | None) -> Ledger:
    from privtensors.accounting import Ledger

    return Ledger(path, create=False)


@contextlib.contextmanager
def _one_line_errors(as_json: bool) -> Iterator[None]:
    try:
        yield
    except PrivTensorsError as error:
        if as_json:
            typer.echo(json.dumps({"ok": False, "error": type(error).__name__, "where": error.where, "what": error.what, "fix": error.fix}))
        else:
            typer.echo(f"error: {_printable(str(error))}", err=True)
        raise typer.Exit(1) from None


def _print_table(ledger: Ledger, entries: tuple[Entry, ...], head: Head) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH)
    table = Table(title=Text(f"newest {len(entries)} of {_count(head.index)}"), title_justify="left")
    for name in ("index", "time", "kind", "backend", "shape", "receiver", "label", "simulated", "hash"):
        table.add_column(name, overflow="fold", justify="right" if name == "index" else "left")
    for entry in entries:
        body = entry.body
        facts = [_cell(body.get(name)) for name in ("backend", "shape", "receiver", "label", "simulated")]
        # Text, not str: what a label holds must not be read as markup.
        table.add_row(*map(Text, (str(entry.index), entry.time[:19] + "Z", entry.kind, *facts, entry.hash[:12])))
    console.print(table)
    typer.echo(f"ledger {_printable(str(ledger.path))}")
    typer.echo(f"head {head}")
    typer.echo("Not verified: `privtensors ledger verify` checks the chain.")


def _print_budgets(ledger: Ledger, statements: list[Statement]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH)
    table = Table(title=Text("privacy spent, open reservations in full"), title_justify="left")
    for name in ("data set", "unit", "relation", "releases", "open", "delta", "budget", "filter", "left", "PLD", "RDP"):
        table.add_column(name, overflow="fold", justify="left" if name in ("data set", "unit", "relation") else "right")
    for one in statements:
        names = (one.account.dataset, one.account.unit, one.account.relation.value.replace("_", "-"))
        counts = (str(one.releases), str(len(one.open)), f"{one.cost.delta:g}")
        held = (None if one.budget is None else one.budget.epsilon, one.filtered)
        left = "closed" if one.closed else _epsilon(one.left, down=True)
        cells = (*names, *counts, *map(_epsilon, held), left, _epsilon(one.cost.pld), _epsilon(one.cost.rdp))
        table.add_row(*(Text(_printable(cell)) for cell in cells))
    console.print(table)
    if not statements:
        typer.echo("No differentially private release and no budget is in this ledger.")
    typer.echo(f"ledger {_printable(str(ledger.path))}")
    typer.echo("PLD and RDP hold for a schedule fixed in advance, the filter for one chosen on the way.")


def _account(one: Statement) -> dict[str, object]:
    def number(value: float | None) -> float | str | None:
        return value if value is None or math.isfinite(value) else "inf"  # JSON has no infinity, and null means that there is none

    account = {"dataset": one.account.dataset, "unit": one.account.unit, "relation": one.account.relation.value}
    epsilons = {"filter": number(one.filtered), "left": number(one.left), "pld": number(one.cost.pld), "rdp": number(one.cost.rdp)}
    held = None if one.budget is None else {"epsilon": one.budget.epsilon, "delta": one.budget.delta}
    state = {"delta": one.cost.delta, "releases": one.releases, "open": list(one.open), "closed": one.closed}
    return {**account, "budget": held, **epsilons, **state}


def _epsilon(value: float | None, *, down: bool = False) -> str:
    # A cost is rounded up and what is left is rounded down: neither may look better than it is.
    if value is None:
        return ""
    if not math.isfinite(value):
        return "inf"
    thousandths = math.floor(value * 1000) if down else math.ceil(value * 1000 - 1e-9)
    return f"{thousandths / 1000:.3f}"


def _as_dict(entry: Entry) -> dict[str, object]:
    fields = {"index": entry.index, "time": entry.time, "kind": entry.kind, "session": entry.session}
    return {**fields, "body": entry.body, "prev_hash": entry.prev_hash, "hash": entry.hash}


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _printable(value if isinstance(value, str) else json.dumps(value))


def _printable(text: str) -> str:
    # Control characters in free text could drive the terminal of whoever looks at the ledger.
    return "".join("�" if unicodedata.category(char).startswith("C") else char for char in text)


def _count(rows: int) -> str:
    return "1 row" if rows == 1 else f"{rows} rows"
