"""ε of one account over its releases, for a plot: the book as it stood after some of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from privtensors.accounting.accountants import PLDAccountant, RDPAccountant, check_delta, interval_for
from privtensors.accounting.book import Book, Budget
from privtensors.accounting.entry import Entry
from privtensors.accounting.events import Account
from privtensors.accounting.filter import RenyiFilter
from privtensors.errors import InvalidInput

_COARSE, _FINE = 2**11, 2**14  # intervals per ε; the last point is as exact as a statement, the others some 0.1 % above


@dataclass(frozen=True, slots=True)
class Point:
    """Where an account stood after one row of the ledger; open reservations count in full.

    Attributes:
        index: The row.
        time: When it was written, by the writer's clock.
        releases: Number of reservations up to then.
        open: How many of them were open.
        epsilon: ε by PLD or RDP, whichever is smaller, valid for a schedule fixed in advance.
        filtered: ε by the filter of the budget at that time; None without one.
        budget: The budget at that time; None without one.
    """

    index: int
    time: str
    releases: int
    open: int
    epsilon: float
    filtered: float | None
    budget: Budget | None


def history(entries: Sequence[Entry], account: Account, delta: float, points: int, where: str, *, rdp_only: bool) -> tuple[Point, ...]:
    """See :meth:`privtensors.accounting.Accounts.history`; ``entries`` are the rows of budgets, ``where`` names their ledger."""
    check_delta(delta)
    if type(points) is not int or points < 2:
        raise InvalidInput("points is not a whole number above 1", where="history", fix="Give e.g. 24")
    changed = _changes(entries, account, where)
    if len(changed) > points:
        last = len(changed) - 1
        changed = [changed[round(k * last / (points - 1))] for k in range(points)]
    wanted, book, found = set(changed), Book(where), []
    for entry in entries:
        book.apply(entry)
        if entry.index in wanted:
            coarse = None if rdp_only else _COARSE if entry.index != changed[-1] else _FINE
            found.append(_point(book, entry, account, delta, coarse))
    return tuple(found)


def _changes(entries: Sequence[Entry], account: Account, where: str) -> list[int]:
    """The rows that changed the account."""
    book, before, changed = Book(where), (0, 0, None), []
    for entry in entries:
        book.apply(entry)
        state = book.accounts.get((account.dataset, account.unit))
        if state is not None and (now := (state.releases, len(state.open), state.budget)) != before:
            before = now  # type: ignore[assignment]
            changed.append(entry.index)
    return changed


def _point(book: Book, entry: Entry, account: Account, delta: float, intervals: int | None) -> Point:
    state = book.accounts[account.dataset, account.unit]
    events, relation, budget = state.events, state.account.relation, state.budget
    chosen = delta if budget is None else budget.delta
    epsilon = RDPAccountant().epsilon(events, chosen, relation)
    if intervals is not None:
        interval = interval_for(epsilon, intervals)
        epsilon = min(epsilon, PLDAccountant(interval).epsilon(events, chosen, relation))
    filtered = None if budget is None else RenyiFilter(budget.epsilon, budget.delta, relation).spent(events)
    return Point(entry.index, entry.time, state.releases, len(state.open), epsilon, filtered, budget)
