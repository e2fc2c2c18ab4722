"""Privacy budgets on a ledger: reserve before a run, settle after it, and count across techniques and processes.

What is reserved counts in full until it is settled, so a run that dies keeps its reservation: the accounting fails
closed. Reserving reads everything so far and writes the row in one exclusive transaction, so of several processes that
ask at once only those that fit together are admitted.
"""

from __future__ import annotations

import threading
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from privtensors.accounting.accountants import Cost, check_delta, cost
from privtensors.accounting.book import FAMILY, RESERVE, SET, SETTLE, AccountState, Book, Budget, check_reason
from privtensors.accounting.entry import JsonValue
from privtensors.accounting.events import (
    Account,
    Composed,
    Event,
    EventGroups,
    Release,
    SampledGaussian,
    account_to_json,
    dp_accounting,
    event_to_json,
    group,
    release_from_json,
    release_to_json,
)
from privtensors.accounting.filter import RenyiFilter
from privtensors.accounting.history import Point, history
from privtensors.errors import AccountingError, BudgetExceeded, KnownDataWarning, MixedRelations

if TYPE_CHECKING:
    from privtensors.accounting.ledger import Ledger, Transaction


@dataclass(frozen=True, slots=True)
class Reservation:
    """A release that was admitted and may now happen.

    Attributes:
        index: Row of the ledger that holds it; its id.
        release: What may be released.
        rule: ``"filter"``; ``"schedule"`` for a first release that only its fixed schedule's ε admits, after which the
            budget is closed; ``"unlimited"`` without a budget.
        aliases: Other names under which data with this fingerprint was used: their ε is not in this account.
    """

    index: int
    release: Release
    rule: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Statement:
    """Where an account stands; open reservations count in full.

    Attributes:
        account: Data set, unit and relation.
        budget: None without one.
        releases: Number of reservations ever made.
        open: Rows of the reservations that nothing has settled, oldest first.
        events: Everything spent or reserved, equal events counted together.
        cost: ε by RDP and PLD, valid for a schedule fixed in advance; δ is the budget's, else the one asked for.
        filtered: ε by the budget's filter, valid for parameters chosen on the way; None without a budget.
        left: ε that the filter has left; None without a budget.
        closed: No release is admitted any more, because the first one used the whole budget by its fixed schedule.
        by_hand: Number of reservations that a person settled, on a word that nothing here can check.
        aliases: Other names under which data with a fingerprint of this account was used: their ε is not in it.
    """

    account: Account
    budget: Budget | None
    releases: int
    open: tuple[int, ...]
    events: EventGroups
    cost: Cost
    filtered: float | None
    left: float | None
    closed: bool
    by_hand: int = 0
    aliases: tuple[str, ...] = ()


class Accounts:
    """The privacy accounts of one ledger. Safe for several threads and processes.

    Args:
        ledger: Where budgets and releases are written.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._book = Book(str(ledger.path))
        self._lock = threading.Lock()

    def set_budget(self, account: Account, epsilon: float, delta: float, *, replace: bool = False) -> Budget:
        """Give ``account`` a budget; what was released before counts.

        Args:
            account: Whose privacy.
            epsilon: Above 0.
            delta: In (0, 1).
            replace: Change a budget that exists. The ledger keeps both; a budget that is raised because of what was
                released is no longer a bound that was fixed in advance.

        Raises:
            AccountingError: The account has another budget already.
            MixedRelations: See :meth:`reserve`.
            InvalidInput: ε or δ is out of range.
            LedgerError: The ledger cannot be read or written.
        """
        budget = Budget(epsilon, delta)
        with self._lock, self._ledger.transaction() as transaction:
            self._refresh(transaction)
            state = self._book.accounts.get((account.dataset, account.unit))
            before = None if state is None else state.budget
            if before == budget and state is not None and state.account == account:
                return budget
            if before is not None and not replace:
                what = f"it has the budget ε {before.epsilon:g} at δ {before.delta:g}"
                raise AccountingError(what, where=str(account), fix="Say replace=True to change it")
            self._book.check(account, budget=True)
            transaction.append(SET, {"account": account_to_json(account), "epsilon": budget.epsilon, "delta": budget.delta})
        return budget

    def reserve(self, release: Release) -> Reservation:
        """Admit ``release`` and write it down; only then may it happen.

        Warns with KnownDataWarning where the release's fingerprint was seen under another name.

        Raises:
            BudgetExceeded: It does not fit; nothing was written. The message says what is left.
            MixedRelations: The account is counted under another relation, or per another unit that a budget does not cover.
            MissingExtra: There is a budget and dp-accounting is not installed.
            LedgerCorrupt: The ledger's rows do not hold.
            LedgerError: The ledger cannot be read or written.
        """
        groups = group(release.event)
        planned = self._planned(release, groups)  # slow, so before the ledger is locked
        with self._lock, self._ledger.transaction() as transaction:
            self._refresh(transaction)
            self._book.check(release.account)
            state = self._book.accounts.get((release.account.dataset, release.account.unit))
            rule = _admit(release, groups, state, planned)
            body: dict[str, JsonValue] = {"release": release_to_json(release), "rule": rule}
            entry = transaction.append(RESERVE, body)
            aliases = self._book.aliases(release.account.dataset, release.fingerprints)
        if aliases:
            what = f"{release.account}: this data was used as {', '.join(map(repr, aliases))}; what that cost is not counted here"
            warnings.warn(what, KnownDataWarning, stacklevel=2)
        return Reservation(entry.index, release, rule, aliases)

    def settle(self, reservation: Reservation | int, spent: Event | None, *, reason: str | None = None) -> None:
        """Say what of a reservation was really released; the rest is free again.

        Args:
            reservation: It, or its row.
            spent: The events that happened, each at most as often as reserved; None if nothing at all left. Steps that
                were computed and thrown away happened: noise that was looked at is spent.
            reason: Where a person and not the run says so: how they know. Written to the row, and counted in
                :attr:`Statement.by_hand`.

        Raises:
            InvalidInput: ``reason`` is no printable text of 1 to 500 characters.
            AccountingError: The row is no open reservation, or ``spent`` is more than it holds; it stays open.
            LedgerError: The ledger cannot be read or written.
        """
        index = reservation if isinstance(reservation, int) else reservation.index
        happened = EventGroups() if spent is None else group(spent)
        body: dict[str, JsonValue] = {"reservation": index, "spent": None if spent is None else event_to_json(spent)}
        if reason is not None:
            body["reason"] = check_reason(reason)
        with self._lock, self._ledger.transaction() as transaction:
            self._refresh(transaction)
            if not happened.within(self._book.reserved(index)):
                fix = "Reserve before releasing; this ledger now understates what happened if it did happen"
                raise AccountingError(f"more happened than row {index} reserved", where="settle", fix=fix)
            transaction.append(SETTLE, body)

    def statement(self, account: Account, delta: float = 1e-5) -> Statement:
        """Where ``account`` stands; ``delta`` is used where it has no budget.

        Raises:
            MixedRelations: It is counted under another relation.
            MissingExtra: dp-accounting is not installed.
            LedgerError: The ledger cannot be read.
        """
        with self._lock:
            self._read()
            state = self._book.accounts.get((account.dataset, account.unit), AccountState(account))
            if state.account != account:
                what = f"it is counted under {state.account.relation.value}"
                raise MixedRelations(what, where=str(account), fix="Ask under that relation")
            return _statement(state, delta, self._book)

    def statements(self, delta: float = 1e-5) -> tuple[Statement, ...]:
        """Every account of the ledger, by data set and unit. Errors as :meth:`statement`."""
        with self._lock:
            self._read()
            return tuple(_statement(state, delta, self._book) for _, state in sorted(self._book.accounts.items()))

    def open_release(self, index: int) -> Release:
        """What the open reservation in row ``index`` may release.

        Raises:
            AccountingError: The row holds no open reservation.
            LedgerError: The ledger cannot be read.
        """
        with self._lock:
            self._read()
            self._book.holder(index)
            entry = self._ledger.entries(kind=RESERVE, after=index - 1)[0]
            return release_from_json(entry.body["release"])

    def history(self, account: Account, delta: float = 1e-5, *, points: int = 24, rdp_only: bool = False) -> tuple[Point, ...]:
        """ε of ``account`` over its releases, oldest first; the last point is where it stands now.

        Args:
            account: Whose.
            delta: Used where there is no budget.
            points: At most so many rows are evaluated, evenly chosen among those that changed the account; at least 2.
            rdp_only: ε by RDP alone: some milliseconds a point.

        Raises:
            InvalidInput: ``points`` is below 2 or ``delta`` is out of range.
            MissingExtra: dp-accounting is not installed.
            LedgerError: The ledger cannot be read.
        """
        return history(self._ledger.entries(kind=FAMILY), account, delta, points, str(self._ledger.path), rdp_only=rdp_only)

    def _read(self) -> None:
        for entry in self._ledger.entries(kind=FAMILY, after=self._book.index):
            self._book.apply(entry)

    def _refresh(self, transaction: Transaction) -> None:
        # Only rows that are already committed: those of this transaction may still be rolled back.
        for entry in transaction.entries(kind=FAMILY, after=self._book.index):
            self._book.apply(entry)

    def _planned(self, release: Release, groups: EventGroups) -> Budget | None:
        """The budget that the release alone meets by its fixed schedule, where that may be needed: the filter refuses it as the first."""
        with self._lock:
            self._read()
            state = self._book.accounts.get((release.account.dataset, release.account.unit))
            if state is None or state.budget is None:
                return None
            budget, first = state.budget, not state.counts
        dp_accounting()
        if not first or RenyiFilter(budget.epsilon, budget.delta, release.account.relation).admits(groups):
            return None
        return budget if cost(groups, budget.delta, release.account.relation).epsilon <= budget.epsilon else None


def _admit(release: Release, groups: EventGroups, state: AccountState | None, planned: Budget | None) -> str:
    """The rule that admits the release, or BudgetExceeded."""
    if state is None or state.budget is None:
        return "unlimited"
    budget = state.budget
    gate = RenyiFilter(budget.epsilon, budget.delta, release.account.relation)
    if not state.closed and gate.admits(state.events + groups):
        return "filter"
    # One release whose parameters were all fixed before anything was seen needs no filter. What follows would, and the
    # filter has no room left for it: from then on the budget is closed, whatever is settled.
    if not state.counts and planned == budget:
        return "schedule"
    total = f"ε {budget.epsilon:g} at δ {budget.delta:g}"
    if state.closed:
        raise BudgetExceeded(f"the budget of {total} was used by its first release", where=str(release.account), fix=_FIX)
    left = gate.left(state.events)
    what = f"ε {_floor(left)} of {total} is left, and the release needs more{_fitting(gate, state.events, release.event)}"
    raise BudgetExceeded(what, where=str(release.account), fix=_FIX)


_FIX = "Release less, add noise, settle open reservations, or ask whoever owns the data for a larger budget"


def _fitting(gate: RenyiFilter, spent: EventGroups, event: Event) -> str:
    if isinstance(event, SampledGaussian):
        step = SampledGaussian(event.noise_multiplier, event.sampling_rate)
        return f": {gate.fits(spent, step)} of its {event.steps} steps would fit"
    if isinstance(event, Composed) and event.count > 1:
        return f": {gate.fits(spent, Composed(event.events))} of its {event.count} rounds would fit"
    return ""


def _floor(value: float) -> str:
    return f"{int(value * 1000) / 1000:g}"  # rounded down: never promise what is not there


def _statement(state: AccountState, delta: float, book: Book) -> Statement:
    events, relation = state.events, state.account.relation
    filtered = left = None
    chosen = check_delta(delta)
    if state.budget is not None:
        gate = RenyiFilter(state.budget.epsilon, state.budget.delta, relation)
        chosen, filtered = state.budget.delta, gate.spent(events)
        left = 0.0 if state.closed else max(0.0, state.budget.epsilon - filtered)
    return Statement(
        account=state.account,
        budget=state.budget,
        releases=state.releases,
        open=tuple(sorted(state.open)),
        events=events,
        cost=cost(events, chosen, relation),
        filtered=filtered,
        left=left,
        closed=state.closed,
        by_hand=state.by_hand,
        aliases=book.aliases(state.account.dataset, state.fingerprints),
    )
