"""The privacy filter: whether one more release fits a budget when everything may depend on what was released before.

Fixed-schedule bounds do not hold when the next noise, the next step or stopping is chosen from earlier outputs. A Rényi
filter does: for one order fixed in advance, an interaction that is stopped before the sum of the divergences exceeds a
limit has a Rényi divergence of at most that limit, however the parameters were chosen (Feldman and Zrnic 2021).

One order fits some mechanisms badly, so the filter holds several, all fixed by the budget alone, and goes on while at
least one has room. Which order that is may depend on the outputs, so δ is divided among them: split the transcripts by
the order that still had room at the end; on each part the interaction equals the one stopped by that order, whose part
of δ bounds its hockey-stick divergence; the parts add up to δ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from privtensors.accounting.accountants import check_delta, check_epsilon, conversion, rdp_curve
from privtensors.accounting.events import MAX_COUNT, Event, EventGroups, Relation, group
from privtensors.errors import InvalidInput

_SPREAD = 3  # orders on each side of the best one for a Gaussian, a factor of sqrt(2) apart


@dataclass(frozen=True, slots=True)
class RenyiFilter:
    """An (ε, δ) budget for fully adaptive composition. It holds no state: admission is a function of all events so far.

    Args:
        epsilon: The budget's ε, above 0.
        delta: Its δ, in (0, 1).
        relation: The neighbouring relation of every event.

    Raises:
        InvalidInput: ε or δ is out of range.

    Attributes:
        orders: The orders that are tracked, fixed by ε and δ.
        parts: The part of δ of each order; they add up to δ at most.
        limits: The Rényi divergence that each order may reach.
    """

    epsilon: float
    delta: float
    relation: Relation = Relation.ZERO_OUT
    orders: tuple[float, ...] = field(init=False)
    parts: tuple[float, ...] = field(init=False)
    limits: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        check_delta(self.delta)
        weights = {order: weight for order, weight in _orders(float(self.epsilon), self.delta)}
        total = math.fsum(weights.values())
        found = []
        for order, weight in weights.items():
            part = self.delta * weight / total * (1 - 1e-9)  # rounding must not let the parts exceed the whole
            limit = self.epsilon - conversion(order, part)
            if limit > 0:
                found.append((order, part, limit))
        object.__setattr__(self, "orders", tuple(order for order, _, _ in found))
        object.__setattr__(self, "parts", tuple(part for _, part, _ in found))
        object.__setattr__(self, "limits", tuple(limit for _, _, limit in found))

    def admits(self, events: EventGroups) -> bool:
        """Whether everything so far, the new release included, is within the budget. Raises MissingExtra without dp-accounting."""
        if not events.counts:
            return True
        curve = rdp_curve(events, self.orders, self.relation) if self.orders else ()
        return any(value <= limit for value, limit in zip(curve, self.limits, strict=True))

    def spent(self, events: EventGroups) -> float:
        """ε of the events by the filter's own measure: admitted exactly while it is at most :attr:`epsilon`; 0 without events.

        It is at least the fixed-schedule ε: the price of choosing parameters on the way.
        """
        if not events.counts:
            return 0.0
        curve = rdp_curve(events, self.orders, self.relation) if self.orders else ()
        triples = zip(self.orders, self.parts, curve, strict=True)
        return max(0.0, min((value + conversion(order, part) for order, part, value in triples), default=math.inf))

    def left(self, events: EventGroups) -> float:
        """ε that is left, never below 0. For a unit people can plan with see :meth:`fits`."""
        return max(0.0, float(self.epsilon) - self.spent(events))

    def fits(self, events: EventGroups, event: Event) -> int:
        """How many more times ``event`` as a whole would be admitted after ``events``."""
        if not self.orders:
            return 0
        before = rdp_curve(events, self.orders, self.relation)
        each = rdp_curve(group(event), self.orders, self.relation)
        rooms = [(limit - value) / one for limit, value, one in zip(self.limits, before, each, strict=True) if one > 0]
        count = min(int(max(0.0, max(rooms, default=0.0))), MAX_COUNT)
        # The quotient is rounded; the sums that admission looks at decide.
        one = group(event)
        while count > 0 and not self.admits(events + _times(one, count)):
            count -= 1
        return count


@dataclass(frozen=True, slots=True)
class FilterAccountant:
    """ε by the measure of a filter, for ``calibrate``: noise calibrated by it is admitted by that filter when it comes first.

    Args:
        filter: The budget's filter.
        spent: What was released before.
    """

    filter: RenyiFilter
    spent: EventGroups = field(default_factory=EventGroups)

    @property
    def name(self) -> str:
        return "filter"

    def supports(self, events: EventGroups) -> bool:
        return True

    def epsilon(self, events: EventGroups, delta: float, relation: Relation = Relation.ZERO_OUT) -> float:
        """ε of what was spent and ``events`` together. δ and relation are the filter's; InvalidInput if others are asked for."""
        if delta != self.filter.delta or relation is not self.filter.relation:
            raise InvalidInput("another delta or relation than the filter's", where="filter accountant", fix="Ask for the filter's own")
        return self.filter.spent(self.spent + events)


def _times(events: EventGroups, count: int) -> EventGroups:
    return EventGroups(tuple((event, number * count) for event, number in events.counts))


def _orders(epsilon: float, delta: float) -> tuple[tuple[float, float], ...]:
    """Orders and weights around the best order of a Gaussian that spends (ε, δ) exactly (Bun and Steinke 2016, lemma 3.5)."""
    log = -math.log(delta)
    rho = (math.sqrt(log + epsilon) - math.sqrt(log)) ** 2
    best = math.sqrt(log / rho)
    chosen: dict[float, float] = {}
    for k in range(-_SPREAD, _SPREAD + 1):
        order = 1 + best * 2 ** (k / 2)
        # Whole orders have a faster and more exact formula; small ones need the resolution.
        order = float(round(order)) if order > 4 else max(1.1, round(order * 20) / 20)
        chosen[order] = chosen.get(order, 0.0) + 2.0 ** -abs(k)
    return tuple(chosen.items())
