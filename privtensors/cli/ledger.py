"""``privtensors ledger``: look at a ledger, check its hash chain, export it, and see and set what privacy may be spent."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from privtensors.cli.ledger_output import account_json, entry_json, existing, one_line_errors, print_tables, printed, selected, write_new
from privtensors.cli.text import printable
from privtensors.errors import UsageError

app = typer.Typer(
    help="Show, verify and export the ledger of everything that left protection, and its privacy budgets.", no_args_is_help=True
)

LedgerOption = Annotated[
    Path | None,
    typer.Option("--ledger", metavar="PATH", help="The ledger file; default: PRIVTENSORS_LEDGER, else the user's data directory."),
]
HeadOption = Annotated[
    str | None, typer.Option("--head", metavar="INDEX:HASH", help="A head noted elsewhere: finds a chain that was cut or rewritten.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object for programs.")]
DatasetOption = Annotated[str | None, typer.Option("--dataset", metavar="NAME", help="Only the accounts of this data set.")]
DeltaOption = Annotated[float, typer.Option("--delta", metavar="D", help="The delta for accounts without a budget.")]


class Format(StrEnum):
    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"


class Over(StrEnum):
    RELEASES = "releases"
    TIME = "time"


@app.command(epilog="Example: privtensors ledger show --limit 5 --plot epsilon.png")
def show(
    ledger: LedgerOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="Show the newest N rows.")] = 20,
    dataset: DatasetOption = None,
    delta: DeltaOption = 1e-5,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Also draw epsilon of each account: .png, .svg or .pdf.")
    ] = None,
    over: Annotated[Over, typer.Option("--over", help="What the plot runs over.")] = Over.RELEASES,
    as_json: JsonOption = False,
) -> None:
    """Print the newest rows, what each account has spent, and the head. It checks each row it shows, not the chain: that is `verify`."""
    with one_line_errors(as_json):
        from privtensors.accounting import Accounts

        found = existing(ledger)
        entries = found.entries(limit=limit)
        head = entries[-1].head if entries else found.head()
        accounts = Accounts(found)
        known = any(entry.kind.startswith("budget.") for entry in entries) or bool(found.entries(kind="budget.", limit=1))
        statements = selected(accounts, dataset, delta) if known or dataset is not None else ()
        if plot is not None:
            from privtensors.report import plot_epsilon

            plot_epsilon({one.account: accounts.history(one.account, delta) for one in statements}, plot, over=over.value)
        if as_json:
            answer = {"ok": True, "path": str(found.path), "ledger_id": found.ledger_id, "head": str(head)}
            rows, totals = [entry_json(entry) for entry in entries], [account_json(one) for one in statements]
            drawn = {} if plot is None else {"plot": str(plot)}
            typer.echo(json.dumps({**answer, "entries": rows, "accounts": totals, **drawn}))
            return
        histories = {one.account: accounts.history(one.account, delta, points=16, rdp_only=True) for one in statements}
        print_tables(entries, head, statements, histories)
        if plot is not None:
            typer.echo(f"plot {printable(str(plot))}")
        typer.echo(f"ledger {printable(str(found.path))}")
        typer.echo(f"head {head}")
        typer.echo("Not verified: `privtensors ledger verify` checks the chain.")


@app.command(epilog='Example: privtensors ledger verify --head "$(cat noted-head.txt)"')
def verify(
    ledger: LedgerOption = None,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="FILE", help="Check this export (format json) instead of a ledger.")
    ] = None,
    head: HeadOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check every row and link, and the bookkeeping of budgets; exit code 0 only if all of it holds."""
    with one_line_errors(as_json):
        if export is not None:
            from privtensors.accounting import verify_export

            if ledger is not None:
                raise UsageError("a ledger and an export were given", where="ledger verify", fix="Give one of --ledger and --export")
            path, verdict = export, verify_export(export, head)
        else:
            found = existing(ledger)
            path, verdict = found.path, found.verify(head)
        if as_json:
            against = None if verdict.against is None else str(verdict.against)
            answer = {"ok": True, "path": str(path), "ledger_id": verdict.ledger_id, "rows": verdict.rows, "head": str(verdict.head)}
            typer.echo(json.dumps({**answer, "against": against}))
            return
        from privtensors.report.spending import count

        typer.echo(f"The chain holds: {count(verdict.rows)} checked in {printable(str(path))}")
        typer.echo(f"head {verdict.head}")
        if verdict.against is None:
            typer.echo("Held against no head: a chain that was cut or rewritten as a whole is found only with --head.")
        else:
            typer.echo(f"It contains the given head, row {verdict.against.index}.")


@app.command(epilog="Example: privtensors ledger export --output ledger.json && privtensors ledger verify --export ledger.json")
def export(
    ledger: LedgerOption = None,
    format: Annotated[
        Format, typer.Option("--format", help="json can be verified; jsonl and csv are rows for notebooks and tables.")
    ] = Format.JSON,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="A new file for its owner only; default: standard output.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --output: print one JSON object about it; else: format json.")] = False,
) -> None:
    """Verify the whole ledger and write it out."""
    with one_line_errors(as_json):
        from privtensors.accounting.export import to_text

        found = existing(ledger)
        snapshot = found.snapshot()
        if output is None:
            if as_json and format is not Format.JSON:
                what = f"--json and --format {format} contradict each other"
                raise UsageError(what, where="ledger export", fix="Give --output, or leave out --json")
            for piece in to_text(snapshot, format.value):
                typer.echo(piece, nl=False)
            return
        write_new(output, to_text(snapshot, format.value))
        if as_json:
            answer = {"ok": True, "path": str(found.path), "output": str(output), "format": format.value, "ledger_id": snapshot.ledger_id}
            typer.echo(json.dumps({**answer, "rows": len(snapshot.entries), "head": str(snapshot.head)}))
        else:
            from privtensors.report.spending import count

            typer.echo(f"{count(len(snapshot.entries))} written to {printable(str(output))}")
            typer.echo(f"head {snapshot.head}")


@app.command(epilog="Example: privtensors ledger budget --dataset reviews --epsilon 3 --delta 1e-5")
def budget(
    ledger: LedgerOption = None,
    dataset: DatasetOption = None,
    delta: DeltaOption = 1e-5,
    epsilon: Annotated[
        float | None, typer.Option("--epsilon", metavar="E", help="Set the budget of --dataset to this epsilon at --delta.")
    ] = None,
    unit: Annotated[str, typer.Option("--unit", metavar="UNIT", help="With --epsilon: whose privacy, e.g. example or user.")] = "example",
    replace: Annotated[bool, typer.Option("--replace", help="With --epsilon: change a budget that exists; both stay on record.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Print what privacy each data set has spent, over all techniques together, and what is left; or set a budget.

    Open reservations count in full. "filter" holds when noise or stopping was chosen on the way, and is what budgets
    are held against; "PLD" and "RDP" are valid for a schedule fixed in advance.
    """
    with one_line_errors(as_json):
        from privtensors.accounting import Account, Accounts, Ledger

        if epsilon is None:
            if replace:
                raise UsageError("there is nothing to replace a budget by", where="ledger budget", fix="Give --epsilon")
            found = existing(ledger)
        else:
            if dataset is None:
                raise UsageError("a budget is of a data set", where="ledger budget", fix="Give --dataset")
            account = Account(dataset, unit)
            found = Ledger(ledger)  # made here if need be: a budget is best set before anything is released
            Accounts(found).set_budget(account, epsilon, delta, replace=replace)
        statements = selected(Accounts(found), dataset, delta)
        if as_json:
            accounts = [account_json(one) for one in statements]
            typer.echo(json.dumps({"ok": True, "path": str(found.path), "head": str(found.head()), "accounts": accounts}))
            return
        print_tables((), None, statements, None)
        if not statements:
            typer.echo("No differentially private release and no budget is in this ledger.")
        typer.echo(f"ledger {printable(str(found.path))}")
        typer.echo("PLD and RDP hold for a schedule fixed in advance, the filter for one chosen on the way.")


@app.command(epilog='Example: privtensors ledger settle 7 --steps 812 --reason "killed; 812 is the last step in the log"')
def settle(
    row: Annotated[int, typer.Argument(metavar="ROW", help="The row of the open reservation, as `ledger show` prints it.")],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="How you know. It stays on record.")],
    ledger: LedgerOption = None,
    everything: Annotated[bool, typer.Option("--all", help="All that was reserved happened, or nobody knows better.")] = False,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, metavar="N", help="So many of its steps happened, those thrown away included.")
    ] = None,
    nothing: Annotated[bool, typer.Option("--nothing", help="No noisy value was ever looked at by anybody, nor saved.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Settle the reservation of a run that died, on your word, which nothing here can check.

    Nothing settles such a reservation by itself: until somebody does, it counts in full, which is the safe side. A run
    that is still alive must not be settled for: it would go on unaccounted.
    """
    with one_line_errors(as_json):
        if (everything, steps is not None, nothing).count(True) != 1:
            raise UsageError("say what happened, in one way", where="ledger settle", fix="Give one of --all, --steps N and --nothing")
        from privtensors.accounting import Accounts
        from privtensors.accounting.events import part_of

        found = existing(ledger)
        accounts = Accounts(found)
        release = accounts.open_release(row)
        spent = None if nothing else release.event if steps is None else part_of(release.event, steps)
        accounts.settle(row, spent, reason=reason)
        if as_json:
            totals = [account_json(accounts.statement(release.account))]
            typer.echo(json.dumps({"ok": True, "path": str(found.path), "head": str(found.head()), "row": row, "accounts": totals}))
        else:
            from privtensors.report.spending import event_text

            happened = "nothing" if spent is None else event_text(spent)
            typer.echo(f"Row {row} of {printed(release.account)} is settled by hand: {happened} happened.")
            typer.echo(f"head {found.head()}")
