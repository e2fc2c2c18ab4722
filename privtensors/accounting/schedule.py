"""ε after each step of a planned run: a short table that is made once and asked at every step."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import Any

from privtensors.accounting.accountants import RDPAccountant, check_delta, distribution, interval_for
from privtensors.accounting.events import EventGroups, Relation, SampledGaussian, group
from privtensors.errors import InvalidInput

_INTERVALS_PER_EPSILON = 2**12  # a quarter of the accountant's: some 0.1 % of ε for a quarter of the time


@dataclass(frozen=True, slots=True)
class EpsilonCurve:
    """ε at δ after each step of a schedule fixed in advance; never less than what was spent.

    Attributes:
        delta: The δ.
        steps: Numbers of steps, ascending, from 0 to the end of the schedule.
        epsilons: ε after each of them, an upper bound by privacy loss distributions.
    """

    delta: float
    steps: tuple[int, ...]
    epsilons: tuple[float, ...]

    def at(self, step: int) -> float:
        """ε after ``step`` steps: that of the next entry of the table, so never too small.

        Raises:
            InvalidInput: ``step`` is below 0 or after the end of the schedule.
        """
        if type(step) is not int or not 0 <= step <= self.steps[-1]:
            what = f"step {step!r} is not between 0 and {self.steps[-1]}"
            raise InvalidInput(what, where="epsilon curve", fix="Plan as many steps as are run")
        return self.epsilons[bisect.bisect_left(self.steps, step)]


def epsilon_curve(
    planned: SampledGaussian,
    delta: float,
    *,
    relation: Relation = Relation.ZERO_OUT,
    spent: EventGroups | None = None,
    points: int = 40,
) -> EpsilonCurve:
    """ε at ``delta`` after each step of ``planned``, for a progress bar. Takes well under a second; asking takes microseconds.

    Valid for a schedule fixed in advance (guarantee class: statistical). Each entry adds the same block of steps to the
    privacy loss distribution of the entry before, with pessimistic rounding (Koskela et al. 2020; Doroshenko et al. 2022).

    Args:
        planned: The run's steps.
        delta: In (0, 1).
        relation: The neighbouring relation.
        spent: What was released before; counts from step 0 on.
        points: About how many entries the table has, at least 1.

    Raises:
        InvalidInput: ``delta`` or ``points`` is out of range.
        MissingExtra: dp-accounting is not installed.
    """
    check_delta(delta)
    if type(points) is not int or points < 1:
        raise InvalidInput("points is not a whole number above 0", where="epsilon curve", fix="Give e.g. 50")
    before = EventGroups() if spent is None else spent
    about = RDPAccountant().epsilon(before + group(planned), delta, relation)
    interval = interval_for(about, _INTERVALS_PER_EPSILON)
    block = -(-planned.steps // points)

    def of(steps: int) -> EventGroups:
        return group(SampledGaussian(planned.noise_multiplier, planned.sampling_rate, steps))

    def after(total: Any, add: Any) -> Any:
        return add if total is None else total.compose(add)

    start = distribution(before, interval, relation) if before.counts else None
    found = [(0, 0.0 if start is None else float(start.get_epsilon_for_delta(delta)))]
    few = 1  # ε rises fastest at the start, so the first block has entries of its own
    while few < min(block, planned.steps):
        found.append((few, float(after(start, distribution(of(few), interval, relation)).get_epsilon_for_delta(delta))))
        few = max(few + 1, few * 7 // 5)
    total, done, add = start, 0, distribution(of(block), interval, relation)
    while done < planned.steps:
        number = min(block, planned.steps - done)
        total = after(total, add if number == block else distribution(of(number), interval, relation))
        done += number
        found.append((done, float(total.get_epsilon_for_delta(delta))))
    # Rounding may make an entry a hair smaller than the one before; what was spent only ever grows.
    epsilons: list[float] = []
    for _, epsilon in found:
        epsilons.append(max(epsilon, epsilons[-1] if epsilons else 0.0))
    return EpsilonCurve(delta, tuple(step for step, _ in found), tuple(epsilons))
