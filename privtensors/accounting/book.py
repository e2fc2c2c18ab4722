"""The bookkeeping of privacy that a ledger's rows add up to: budgets, reservations and what was settled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from privtensors.accounting.accountants import check_delta, check_epsilon
from privtensors.accounting.entry import Entry
from privtensors.accounting.events import (
    Account,
    EventGroups,
    Primitive,
    Release,
    account_from_json,
    event_from_json,
    group,
    merge,
    release_from_json,
)
from privtensors.errors import AccountingError, InvalidInput, LedgerCorrupt, MixedRelations

SET, RESERVE, SETTLE = "budget.set", "budget.reserve", "budget.settle"
FAMILY = "budget."
RULES = ("unlimited", "filter", "schedule")
"""Why a release was admitted: no budget; the filter; as the first release of a budget by its fixed schedule (then no other follows)."""


@dataclass(frozen=True, slots=True)
class Budget:
    """An (ε, δ) that everything released from an account together must not exceed. InvalidInput when out of range."""

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", check_epsilon(self.epsilon))
        check_delta(self.delta)


@dataclass(slots=True)
class AccountState:
    """One account's part of the book. Open reservations count in full."""

    account: Account
    budget: Budget | None = None
    releases: int = 0
    open: dict[int, tuple[EventGroups, str]] = field(default_factory=dict)
    closed_by: set[int] = field(default_factory=set)
    counts: dict[Primitive, int] = field(default_factory=dict)
    techniques: set[str] = field(default_factory=set)
    fingerprints: set[str] = field(default_factory=set)
    by_hand: int = 0

    @property
    def events(self) -> EventGroups:
        """Everything that was spent or is reserved."""
        return merge((EventGroups(tuple(self.counts.items())),))

    @property
    def closed(self) -> bool:
        """Whether a release was admitted by its fixed schedule, after which nothing else fits."""
        return bool(self.closed_by)


class Book:
    """The state of every account, folded from the rows of a ledger in the order of the chain.

    Args:
        where: Name of the ledger, for messages.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._owner: dict[int, AccountState] = {}
        self._names: dict[str, set[str]] = {}
        self.accounts: dict[tuple[str, str], AccountState] = {}
        self.index = 0

    def apply(self, entry: Entry) -> None:
        """Add one row; rows of other kinds change nothing.

        Raises:
            LedgerCorrupt: A row of a budget is malformed or contradicts the rows before it.
        """
        if entry.kind.startswith(FAMILY):
            try:
                self._apply(entry)
            except (InvalidInput, AccountingError) as error:
                raise LedgerCorrupt(
                    f"its privacy bookkeeping does not hold ({error.what})",
                    where=f"row {entry.index} of {self._where}",
                    fix="Go back to a copy that verifies; until then nothing can be released under a budget",
                ) from error
        self.index = entry.index

    def check(self, account: Account, *, budget: bool = False) -> None:
        """Refuse what would be added up wrongly.

        Args:
            account: Where a release or a budget is to go.
            budget: A budget is to be set: that is how a unit becomes covered.

        Raises:
            MixedRelations: The account has another neighbouring relation; or the data set has a budget per another unit
                and none per this one, so that the release would pass it by.
        """
        state = self.accounts.get((account.dataset, account.unit))
        if state is not None and state.account.relation is not account.relation:
            known, asked = state.account.relation.value, account.relation.value
            fix = "A sensitivity holds under one relation: state it under the account's"
            raise MixedRelations(f"it is counted under {known}, not {asked}", where=str(account), fix=fix)
        if budget or (state is not None and state.budget is not None):
            return
        covered = sorted(
            unit for (dataset, unit), other in self.accounts.items() if dataset == account.dataset and other.budget is not None
        )
        if covered:
            what = f"the data set has a budget per {', '.join(covered)} that would not count this"
            raise MixedRelations(what, where=str(account), fix="Set a budget for this unit too, or release per the unit that has one")

    def aliases(self, dataset: str, fingerprints: Iterable[str]) -> tuple[str, ...]:
        """Names other than ``dataset`` under which data with one of the fingerprints was used, sorted."""
        names = {name for one in fingerprints if one for name in self._names.get(one, set())}
        return tuple(sorted(names - {dataset}))

    def holder(self, index: int) -> AccountState:
        """The account of the open reservation in row ``index``; AccountingError if the row holds none."""
        state = self._owner.get(index)
        if state is None or index not in state.open:
            raise AccountingError(f"row {index} is no open reservation", where="settle", fix="Settle each reservation once, by its index")
        return state

    def reserved(self, index: int) -> EventGroups:
        """What row ``index`` reserved and nothing has settled; AccountingError if it holds no open reservation."""
        return self.holder(index).open[index][0]

    def _apply(self, entry: Entry) -> None:
        body = entry.body
        if entry.kind == SET:
            _exactly(body, "account", "epsilon", "delta")
            account, budget = account_from_json(body["account"]), Budget(body["epsilon"], body["delta"])
            self._same_relation(account)
            self._state(account).budget = budget
        elif entry.kind == RESERVE:
            _exactly(body, "release", "rule")
            release, rule = release_from_json(body["release"]), body["rule"]
            if rule not in RULES:
                raise InvalidInput("an unknown rule of admission", where="reservation", fix="Update privtensors")
            self._same_relation(release.account)
            self._reserve(entry.index, release, rule)
        elif entry.kind == SETTLE:
            _exactly(body, "reservation", "spent", *(("reason",) if "reason" in body else ()))
            by_hand = "reason" in body and bool(check_reason(body["reason"]))
            spent = EventGroups() if body["spent"] is None else group(event_from_json(body["spent"]))
            self._settle(body["reservation"], spent, by_hand)
        else:
            raise InvalidInput("an unknown kind of row", where="budget", fix="Update privtensors")

    def _state(self, account: Account) -> AccountState:
        return self.accounts.setdefault((account.dataset, account.unit), AccountState(account))

    def _same_relation(self, account: Account) -> None:
        state = self.accounts.get((account.dataset, account.unit))
        if state is not None and state.account.relation is not account.relation:
            raise InvalidInput("another neighbouring relation than the rows before", where="account", fix="Keep one relation")

    def _reserve(self, index: int, release: Release, rule: str) -> None:
        state, groups = self._state(release.account), group(release.event)
        state.open[index] = (groups, rule)
        self._owner[index] = state
        state.releases += 1
        if rule == "schedule":
            state.closed_by.add(index)
        if release.technique:
            state.techniques.add(release.technique)
        for fingerprint in release.fingerprints:
            state.fingerprints.add(fingerprint)
            self._names.setdefault(fingerprint, set()).add(release.account.dataset)
        _add(state.counts, groups, 1)

    def _settle(self, index: object, spent: EventGroups, by_hand: bool) -> None:
        if type(index) is not int:
            raise InvalidInput("the settled reservation is no index", where="settlement", fix="Write it with privtensors")
        reserved = self.reserved(index)
        if not spent.within(reserved):
            raise InvalidInput("it settles more than was reserved", where="settlement", fix="Settle at most what was reserved")
        state = self._owner[index]
        del state.open[index]
        state.by_hand += by_hand
        if not spent.counts:  # nothing was released, so nothing needs to stay closed
            state.closed_by.discard(index)
        _add(state.counts, reserved, -1)
        _add(state.counts, spent, 1)


def check_reason(reason: object) -> str:
    """``reason``, or InvalidInput unless it is printable text of 1 to 500 characters."""
    if not (isinstance(reason, str) and reason.strip() and len(reason) <= 500 and reason.isprintable()):
        raise InvalidInput("the reason is no printable text of 1 to 500 characters", where="settlement", fix="Say in one line how you know")
    return reason


def _add(counts: dict[Primitive, int], groups: EventGroups, sign: int) -> None:
    for event, count in groups.counts:
        counts[event] = counts.get(event, 0) + sign * count
        if counts[event] == 0:
            del counts[event]


def _exactly(body: Mapping[str, object], *names: str) -> None:
    if set(body) != set(names):
        raise InvalidInput(f"it does not have exactly the fields {', '.join(names)}", where="budget", fix="Write it with privtensors")
