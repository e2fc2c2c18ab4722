"""From a promise and a data set to a run: its units, its plan, and its reservation on the ledger."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from privtensors.accounting import Account, Accounts, Fingerprinter, Ledger
from privtensors.errors import LedgerError, ParameterError
from privtensors.train.calibration import (
    Plan,
    default_delta,
    noise_for,
    noise_within_budget,
    sampling_rate,
    steps_within_budget,
)
from privtensors.train.charge import Reserved, Uncharged, declassify, reserve
from privtensors.train.data import Collate, Examples, Units, Users, content

OnBudget: TypeAlias = Literal["refuse", "shorten", "noise"]
"""What to do with a run that does not fit the data set's budget: refuse it; run as many steps as fit; add noise until it fits."""


@runtime_checkable
class Promise(Protocol):
    """What a run promises; the technique ``DP`` is one."""

    @property
    def epsilon(self) -> float | None: ...
    @property
    def delta(self) -> float | None: ...
    @property
    def unit(self) -> str: ...
    @property
    def dataset(self) -> str: ...
    @property
    def clipping_norm(self) -> float: ...
    @property
    def noise_multiplier(self) -> float | None: ...
    @property
    def sampling(self) -> str: ...
    @property
    def amplification(self) -> bool: ...
    @property
    def user_column(self) -> str | None: ...
    @property
    def max_per_user(self) -> int | None: ...


def account_of(promise: Promise) -> Account:
    """Whose privacy the run costs, under zero-out. Raises InvalidInput for a name that is none."""
    return Account(promise.dataset, promise.unit)


def units_of(promise: Promise, dataset: Any, collate: Collate | None = None, drop: Sequence[str] = ()) -> Units:
    """The data set as units of the promise.

    Raises:
        ParameterError: A unit that training does not have, or users without ``user_column``.
        AccountingError, InvalidInput: As :class:`~privtensors.train.data.Examples`.
    """
    if promise.unit == "example":
        return Examples(dataset, collate, drop)
    if promise.unit != "user":
        what = f"training has no privacy per {promise.unit!r}"
        raise ParameterError(what, where="DP, unit", fix='Use unit="example", or unit="user" with user_column=')
    if promise.user_column is None:
        what = 'unit="user", and nothing says whose an example is'
        raise ParameterError(what, where="DP, user_column", fix="Give user_column=, the entry of each example that holds its user")
    return Users(Examples(dataset, collate, drop), promise.user_column, promise.max_per_user)


def plan_run(promise: Promise, units: int, batch_size: int, steps: int, ledger: Ledger, on_budget: OnBudget = "refuse") -> Plan:
    """The schedule that keeps the promise: sigma by PLD for ``epsilon``, or ``noise_multiplier`` where that is given.

    Args:
        promise: The technique ``DP``.
        units: Their number.
        batch_size: Expected number of units in a step.
        steps: Number of steps.
        ledger: Holds the data set's budget, if there is one.
        on_budget: See :data:`OnBudget`.

    Raises:
        ParameterError: ``batch_size`` does not suit the data set, or there is no target.
        BudgetExceeded: Not one step fits (``"shorten"``), or no noise suffices (``"noise"``).
        AccountingError: No noise reaches the target.
        MissingExtra: dp-accounting is not installed.
    """
    if promise.sampling != "poisson":
        what = f"batches are drawn by Poisson sampling, and sampling={promise.sampling!r} is promised"
        raise ParameterError(what, where="DP, sampling", fix='DP(sampling="poisson"), with amplification=False to count every step in full')
    rate = sampling_rate(units, batch_size)
    delta = default_delta(units) if promise.delta is None else promise.delta
    accounted = rate if promise.amplification else 1.0
    sigma = promise.noise_multiplier
    if sigma is None:
        if promise.epsilon is None:
            raise ParameterError("neither epsilon nor noise_multiplier is given", where="DP", fix="Give one of them")
        sigma = noise_for(promise.epsilon, delta, accounted, steps)
    plan = Plan(sigma, rate, rate * units, steps, promise.clipping_norm, delta, accounted)
    if sigma == 0 or on_budget == "refuse":
        return plan
    accounts, account = Accounts(ledger), account_of(promise)
    if on_budget == "shorten":
        fitting = steps_within_budget(accounts, account, plan)
        return replace(plan, steps=fitting)
    if on_budget != "noise":
        fix = 'Give "refuse", "shorten" or "noise"'
        raise ParameterError(f"on_budget is {on_budget!r}", where="fit", fix=fix)
    return replace(plan, noise_multiplier=max(sigma, noise_within_budget(accounts, account, accounted, steps)))


def charge_run(promise: Promise, units: Units, plan: Plan, ledger: Ledger, *, durable: bool = False) -> Reserved | Uncharged:
    """Reserve the plan on the ledger; without noise, write down that the data set is used without privacy.

    Raises:
        BudgetExceeded: It does not fit. The message says what is left and how many steps would fit.
        PolicyError: No noise, and the data set has a budget.
        MixedRelations, LedgerError, MissingExtra: As ``Accounts.reserve``.
    """
    account = account_of(promise)
    if plan.noise_multiplier == 0:
        return declassify(ledger, account, plan.steps)
    fingerprint = Fingerprinter().of(map(content, units.rows()))
    return reserve(ledger, account, plan, fingerprint=fingerprint, durable=durable)


def ledger_of(recorder: object) -> Ledger:
    """The ledger that privacy is counted on.

    Raises:
        LedgerError: The session records into something that keeps no accounts.
    """
    if isinstance(recorder, Ledger):
        return recorder
    what = f"a {type(recorder).__name__} keeps no privacy accounts"
    raise LedgerError(what, where="fit, session", fix="Use Session(recorder=privtensors.Ledger(path)), or the default session")


def target_of(promise: Promise) -> float:
    """The promised ε; infinite where only a noise multiplier is given."""
    return math.inf if promise.epsilon is None else promise.epsilon
