"""What a run will release, fixed before its first step: sampling rate, steps, noise and the ε that they cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

from privtensors.accounting import Account, Accounts, RenyiFilter, SampledGaussian, calibrate, cost
from privtensors.accounting.filter import FilterAccountant
from privtensors.errors import AccountingError, BudgetExceeded, ParameterError


@dataclass(frozen=True)
class Plan:
    """The schedule of a run of DP-SGD.

    Attributes:
        noise_multiplier: sigma; 0 for a run without privacy.
        rate: Probability with which one unit is in a step.
        accounted: The rate that is accounted for: ``rate``, or 1 where nobody may count on the sample being secret.
        expected: Expected number of units in a step, the divisor of every update.
        steps: Number of steps.
        clipping_norm: C.
        delta: The δ of the run's ε.
    """

    noise_multiplier: float
    rate: float
    expected: float
    steps: int
    clipping_norm: float
    delta: float
    accounted: float

    def event(self, steps: int) -> SampledGaussian:
        """What ``steps`` steps of the plan are on a ledger."""
        return SampledGaussian(self.noise_multiplier, self.accounted, steps)

    def epsilon(self, steps: int) -> float:
        """ε at ``delta`` after ``steps`` steps, for a number of steps fixed in advance; infinite without noise."""
        if self.noise_multiplier == 0:
            return math.inf if steps else 0.0
        return cost(self.event(steps), self.delta).epsilon if steps else 0.0


def default_delta(units: int) -> float:
    """min(1e-5, 1 / (10 · units)): well below the chance that publishing one unit at random would leave each with."""
    return min(1e-5, 1 / (10 * units))


def sampling_rate(units: int, batch_size: int) -> float:
    """The rate at which ``batch_size`` of ``units`` are expected in a step.

    Raises:
        ParameterError: ``batch_size`` is not between 1 and ``units``.
    """
    if type(batch_size) is not int or not 1 <= batch_size <= units:
        raise ParameterError(
            f"batch_size is {batch_size!r} with {units} to draw from",
            where="fit",
            fix=f"Give the expected number per step, from 1 to {units}",
        )
    return batch_size / units


def noise_for(epsilon: float, delta: float, rate: float, steps: int) -> float:
    """The noise multiplier with which ``steps`` steps at ``rate`` cost at most ``epsilon``; 0 where ``epsilon`` is infinite.

    Computed from privacy loss distributions (Doroshenko et al. 2022), for a schedule fixed in advance.

    Raises:
        AccountingError: No noise reaches the target.
        InvalidInput: A target is out of range.
        MissingExtra: dp-accounting is not installed.
    """
    if epsilon == math.inf:
        return 0.0
    return calibrate(lambda sigma: SampledGaussian(sigma, rate, steps), epsilon, delta)


def noise_within_budget(accounts: Accounts, account: Account, rate: float, steps: int) -> float:
    """The smallest noise multiplier with which the budget's filter still admits ``steps`` steps; 0 without a budget.

    Raises:
        BudgetExceeded: No noise makes them fit: what is left is spent.
    """
    now = accounts.statement(account)
    if now.budget is None:
        return 0.0
    gate = RenyiFilter(now.budget.epsilon, now.budget.delta, account.relation)
    by = FilterAccountant(gate, now.events)
    try:
        if now.closed:
            raise AccountingError("closed")
        return calibrate(lambda sigma: SampledGaussian(sigma, rate, steps), now.budget.epsilon, now.budget.delta, accountant=by)
    except AccountingError as error:
        what = f"ε {_down(now.left)} of ε {now.budget.epsilon:g} is left, and no noise makes {steps} steps fit"
        raise BudgetExceeded(what, where=str(account), fix="Settle open reservations, or ask for a larger budget") from error


def steps_within_budget(accounts: Accounts, account: Account, plan: Plan) -> int:
    """How many of the plan's steps the account's budget admits now; all of them without a budget.

    Raises:
        BudgetExceeded: Not one does. The message says what is left.
    """
    now = accounts.statement(account)
    if now.budget is None:
        return plan.steps
    gate = RenyiFilter(now.budget.epsilon, now.budget.delta, account.relation)
    fitting = 0 if now.closed else min(plan.steps, gate.fits(now.events, plan.event(1)))
    if fitting == 0:
        what = f"ε {_down(now.left)} of ε {now.budget.epsilon:g} at δ {now.budget.delta:g} is left, too little for one step"
        fix = "Add noise, draw smaller batches, settle open reservations, or ask for a larger budget"
        raise BudgetExceeded(what, where=str(account), fix=fix)
    return fitting


def steps_of(units: int, batch_size: int, epochs: float | None, steps: int | None, default_epochs: float = 3.0) -> int:
    """The number of steps that was asked for, as steps or as epochs (an epoch is units / batch_size steps, rounded up at the end).

    Raises:
        ParameterError: Both were given, or one is out of range.
    """
    if steps is not None and epochs is not None:
        raise ParameterError("both epochs and steps were given", where="fit", fix="Give one of them")
    if steps is not None:
        if type(steps) is not int or steps < 1:
            raise ParameterError(f"steps is {steps!r}", where="fit", fix="Give a whole number of at least 1")
        return steps
    chosen = default_epochs if epochs is None else epochs
    if isinstance(chosen, bool) or not isinstance(chosen, (int, float)) or not (0 < chosen < math.inf):
        raise ParameterError(f"epochs is {epochs!r}", where="fit", fix="Give a number above 0")
    return max(1, math.ceil(chosen * units / batch_size))


def _down(value: float | None) -> str:
    return f"{int((value or 0.0) * 1000) / 1000:g}"
