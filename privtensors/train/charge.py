"""The ledger's side of a training run: reserve the planned steps before the first, settle those that really ran.

A step counts from the moment its sample is drawn: what an error afterwards tells about it is paid for. A run that dies keeps
its reservation, in full. A run with checkpoints claims its steps in blocks, each a row of the ledger, so that it can go on
after a crash within the same reservation: steps that were claimed and lost stay spent.
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from types import TracebackType
from typing import Final, Protocol, Self

from privtensors.accounting import Account, Accounts, Ledger, Release, SampledGaussian, Transaction
from privtensors.accounting.events import event_from_json, group, release_from_json
from privtensors.errors import AccountingError, PolicyError
from privtensors.train.calibration import Plan

CLAIM, DECLASSIFY = "training.claim", "training.declassify"
TECHNIQUE: Final = "dp_sgd"
_BLOCKS = 20  # claims per run at most: a crash loses at most a twentieth of the steps
_LOG: Final = logging.getLogger("privtensors")


class Charge(Protocol):
    """What the loop asks before every step."""

    @property
    def steps(self) -> int:
        """How many steps it covers in all."""

    @property
    def spent(self) -> int:
        """How many of them have begun."""

    def begin_step(self) -> None:
        """Count one step; AccountingError when none is left, and then the step must not happen."""

    def settle(self) -> None:
        """Give back what was not spent; nothing more can be begun. Called again it does nothing."""


class Reserved:
    """A reservation on the ledger that the steps of one run are counted against; a context manager that settles at its end.

    Made by :func:`reserve` and :func:`resume`.

    Args:
        accounts: Of the ledger.
        ledger: The ledger.
        index: The row that holds the reservation.
        event: What it reserved.
        spent: Steps that are spent already: claimed by a run that died.
        durable: Claim steps on the ledger before they happen, so that the reservation can be resumed.

    Attributes:
        index: Row of the ledger; its id.
        rule: Why it was admitted; see ``accounting.Reservation``.
        aliases: Other names under which the same data is known.
    """

    def __init__(
        self,
        accounts: Accounts,
        ledger: Ledger,
        index: int,
        event: SampledGaussian,
        *,
        spent: int = 0,
        durable: bool = False,
        rule: str = "",
        aliases: tuple[str, ...] = (),
    ) -> None:
        self.index, self.rule, self.aliases = index, rule, aliases
        self._accounts, self._ledger, self._event, self._durable = accounts, ledger, event, durable
        self._spent = self._claimed = spent
        self._settled = False

    @property
    def steps(self) -> int:
        return self._event.steps

    @property
    def spent(self) -> int:
        return self._spent

    def begin_step(self) -> None:
        """See :meth:`Charge.begin_step`."""
        if self._settled or self._spent >= self.steps:
            what = "it is settled" if self._settled else f"all {self.steps} steps are spent"
            raise AccountingError(what, where=f"reservation in row {self.index}", fix="Reserve again before training on")
        if self._durable and self._spent >= self._claimed:
            self._claim()
        self._spent += 1

    def settle(self) -> None:
        """See :meth:`Charge.settle`."""
        if self._settled:
            return
        self._settled = True  # before: an interrupt in the middle leaves it open or settled, never settled twice
        happened = self._spent
        if self._durable:
            # Another process may have gone on with the same reservation: what it claimed is spent. Claiming the rest stops it.
            with self._ledger.transaction() as transaction:
                total = claimed(transaction, self.index)
                transaction.append(CLAIM, {"reservation": self.index, "steps": self.steps})
            happened += max(0, total - self._claimed)
        event = SampledGaussian(self._event.noise_multiplier, self._event.sampling_rate, happened) if happened else None
        self._accounts.settle(self.index, event)

    def _claim(self) -> None:
        with self._ledger.transaction() as transaction:
            _check_open(transaction, self.index)
            if claimed(transaction, self.index) != self._claimed:
                what = "another process has gone on with it"
                raise AccountingError(what, where=f"reservation in row {self.index}", fix="Let one run at a time resume a checkpoint")
            upto = min(self.steps, self._claimed + math.ceil(self.steps / _BLOCKS))
            transaction.append(CLAIM, {"reservation": self.index, "steps": upto})
        self._claimed = upto

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.settle()


class Uncharged:
    """A run without noise: nothing is claimed about its privacy, so nothing is charged. Made by :func:`declassify`."""

    index: int | None = None
    rule, aliases = "declassified", ()

    def __init__(self, steps: int) -> None:
        self._steps, self._spent = steps, 0

    @property
    def steps(self) -> int:
        return self._steps

    @property
    def spent(self) -> int:
        return self._spent

    def begin_step(self) -> None:
        self._spent += 1

    def settle(self) -> None:
        """Nothing was reserved."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.settle()


def reserve(ledger: Ledger, account: Account, plan: Plan, *, fingerprint: str = "", durable: bool = False) -> Reserved:
    """Reserve every step of ``plan`` on the account.

    Args:
        ledger: Where.
        account: Whose privacy.
        plan: The schedule; its noise is above 0.
        fingerprint: Of the data; a KnownDataWarning tells where the same data is known under another name.
        durable: The run writes checkpoints and may be resumed after a crash.

    Raises:
        BudgetExceeded, MixedRelations, LedgerError, MissingExtra: As ``Accounts.reserve``.
    """
    accounts, event = Accounts(ledger), plan.event(plan.steps)
    made = accounts.reserve(Release(account, event, TECHNIQUE, fingerprint))
    if made.rule == "schedule":
        _LOG.warning("%s: this run takes the whole budget by its fixed schedule; nothing can follow it", account)
    return Reserved(accounts, ledger, made.index, event, durable=durable, rule=made.rule, aliases=made.aliases)


def resume(ledger: Ledger, account: Account, plan: Plan, reservations: tuple[int, ...]) -> Reserved:
    """Go on with a run from a checkpoint, within what it reserved: the steps that are left are those that nobody spent.

    After a crash the last reservation is still open and goes on; what was claimed of it and lost stays spent. Where it was settled,
    the plan's steps that were never spent are reserved anew.

    Args:
        ledger: Where the run was reserved.
        account: Whose privacy.
        plan: The whole run.
        reservations: Rows of the reservations of the run so far, oldest first, as the checkpoint names them.

    Raises:
        AccountingError: A row is no reservation of this account and schedule; or every step of the run is spent.
        BudgetExceeded: As :func:`reserve`.
        LedgerError: The ledger cannot be read or written.
    """
    spent = 0
    for index in reservations:
        event = _reserved(ledger, account, plan, index)
        settled = _settled(ledger, index)
        if settled is None:
            return Reserved(Accounts(ledger), ledger, index, event, spent=claimed(ledger, index), durable=True, rule="resumed")
        spent += settled
    left = plan.steps - spent
    if left <= 0:
        what = f"all {plan.steps} steps of the run are spent"
        raise AccountingError(what, where="resume", fix="Use its last checkpoint as it is, or start another run")
    return reserve(ledger, account, replace(plan, steps=left), durable=True)


def spent_on(ledger: Ledger, reservations: tuple[int, ...]) -> int:
    """Steps that the settled ones of ``reservations`` spent."""
    return sum(_settled(ledger, index) or 0 for index in reservations)


def _reserved(ledger: Ledger, account: Account, plan: Plan, index: int) -> SampledGaussian:
    where = f"row {index} of {ledger.path}"
    rows = ledger.entries(kind="budget.reserve", after=index - 1)
    if not rows or rows[0].index != index:
        raise AccountingError("it is no reservation", where=where, fix="Resume with the ledger that the checkpoint was made with")
    release = release_from_json(rows[0].body["release"])
    event = release.event
    same = isinstance(event, SampledGaussian) and plan.event(event.steps) == event and event.steps <= plan.steps
    if not same or release.account != account or release.technique != TECHNIQUE:
        what = f"it reserved another run than this one ({release.account}, {release.event})"
        raise AccountingError(what, where=where, fix="Resume with the data set, epsilon, delta, batch size and steps of the checkpoint")
    assert isinstance(event, SampledGaussian)
    return event


def _settled(ledger: Ledger, index: int) -> int | None:
    for row in ledger.entries(kind="budget.settle", after=index):
        if row.body["reservation"] == index:
            return 0 if row.body["spent"] is None else sum(count for _, count in group(event_from_json(row.body["spent"])).counts)
    return None


def declassify(ledger: Ledger, account: Account, steps: int) -> Uncharged:
    """Write down that a model is trained on the data set without any privacy, where nobody gave that data a budget.

    Raises:
        PolicyError: The data set has a budget, which a run without noise would void.
        LedgerError: The ledger cannot be read or written.
    """
    for now in Accounts(ledger).statements():
        if now.account.dataset == account.dataset and now.budget is not None:
            what = f"epsilon=inf, and {now.account} has a budget of ε {now.budget.epsilon:g}"
            fix = "Make the reference run on public data, or give a finite epsilon"
            raise PolicyError(what, where="DP, epsilon", fix=fix)
    ledger.append(DECLASSIFY, {"dataset": account.dataset, "unit": account.unit, "technique": TECHNIQUE, "steps": steps})
    _LOG.warning("%s: trained without noise (epsilon=inf): the model may hold any of it", account)
    return Uncharged(steps)


def claimed(ledger: Ledger | Transaction, index: int) -> int:
    """Steps of the reservation in row ``index`` that runs have claimed so far."""
    rows = ledger.entries(kind=CLAIM, after=index)
    return max((int(row.body["steps"]) for row in rows if row.body["reservation"] == index), default=0)


def _check_open(transaction: Transaction, index: int) -> None:
    if any(row.body["reservation"] == index for row in transaction.entries(kind="budget.settle", after=index)):
        raise AccountingError("it was settled meanwhile", where=f"reservation in row {index}", fix="Start the run again")
