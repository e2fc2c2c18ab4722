"""What the verbs of ``privtensors ledger`` share: errors, tables, JSON, files."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from privtensors.cli.text import one_line, printable
from privtensors.errors import AccountingError, LedgerError, PrivTensorsError, UsageError

if TYPE_CHECKING:
    from privtensors.accounting import Account, Accounts, Entry, Head, Ledger, Point, Statement

_PIPE_WIDTH = 200  # rich assumes 80 columns when nobody looks; a file has no such limit


@contextlib.contextmanager
def one_line_errors(as_json: bool) -> Iterator[None]:
    """Ends the command with one line, or one JSON object, for an error of this package: exit code 2 for a wrong command line, else 1."""
    try:
        yield
    except PrivTensorsError as error:
        if as_json:
            typer.echo(json.dumps({"ok": False, "error": type(error).__name__, "where": error.where, "what": error.what, "fix": error.fix}))
        else:
            typer.echo(f"error: {one_line(str(error))}", err=True)
        raise typer.Exit(2 if isinstance(error, UsageError) else 1) from None


def existing(path: Path | None) -> Ledger:
    """The ledger at ``path``, or the default one; never made."""
    from privtensors.accounting import Ledger

    return Ledger(path, create=False)


def selected(accounts: Accounts, dataset: str | None, delta: float) -> tuple[Statement, ...]:
    """The statements of one data set, or of all. Raises AccountingError where the data set is unknown."""
    found = tuple(one for one in accounts.statements(delta) if dataset in (None, one.account.dataset))
    if dataset is not None and not found:
        raise AccountingError("the ledger has no account of it", where=f"data set {dataset!r}", fix="Ask without --dataset")
    return found


def print_tables(
    entries: Sequence[Entry], head: Head | None, statements: Sequence[Statement], histories: Mapping[Account, Sequence[Point]] | None
) -> None:
    """The rows, where a head is given, and the accounts, where there are any or no rows were asked for."""
    from rich.console import Console

    from privtensors.report import ledger_rows, remarks, spending

    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH)
    if head is not None:
        console.print(ledger_rows(entries, head.index))
    if statements or head is None:
        console.print(spending(statements, histories))
    for line in remarks(statements):
        typer.echo(line)


def account_json(one: Statement) -> dict[str, object]:
    """An account for programs."""

    def number(value: float | None) -> float | str | None:
        return value if value is None or math.isfinite(value) else "inf"  # JSON has no infinity, and null means that there is none

    account = {"dataset": one.account.dataset, "unit": one.account.unit, "relation": one.account.relation.value}
    epsilons = {"filter": number(one.filtered), "left": number(one.left), "pld": number(one.cost.pld), "rdp": number(one.cost.rdp)}
    held = None if one.budget is None else {"epsilon": one.budget.epsilon, "delta": one.budget.delta}
    state = {"delta": one.cost.delta, "releases": one.releases, "open": list(one.open), "closed": one.closed}
    return {**account, "budget": held, **epsilons, **state, "by_hand": one.by_hand, "aliases": list(one.aliases)}


def entry_json(entry: Entry) -> dict[str, object]:
    """A row for programs."""
    fields = {"index": entry.index, "time": entry.time, "kind": entry.kind, "session": entry.session}
    return {**fields, "body": entry.body, "prev_hash": entry.prev_hash, "hash": entry.hash}


def printed(account: Account) -> str:
    """An account in a sentence."""
    return printable(str(account))


def write_new(path: Path, pieces: Iterable[str]) -> None:
    """Write a new file for its owner only: labels and data set names are in it. Raises LedgerError where it exists or cannot be written."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with open(descriptor, "w", encoding="utf-8", newline="") as file:
            file.writelines(pieces)
    except FileExistsError as error:
        raise LedgerError("it exists already", where=str(path), fix="Choose another file") from error
    except OSError as error:
        raise LedgerError(f"it cannot be written ({error.strerror})", where=str(path), fix="Choose another file") from error
