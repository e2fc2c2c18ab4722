"""From events to ε at δ: Rényi DP and privacy loss distributions over dp-accounting, and noise calibrated to a target.

Both are upper bounds for a schedule that was fixed in advance; for parameters chosen on the way see
:mod:`privtensors.accounting.filter`. Equal events are composed at once, so cost grows with the number of *different*
events only; past :data:`MAX_GROUPS` different ones, noise is rounded down and sampling rates are rounded up onto the
finest grid that is small enough. That is sound: Laplace and Gaussian noise are divisible, so less noise dominates, and
the hockey-stick divergence of a Poisson sampled mechanism grows with the rate (joint convexity).
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from privtensors.accounting.events import (
    Event,
    EventGroups,
    Gaussian,
    Laplace,
    Primitive,
    Relation,
    SampledGaussian,
    ZeroConcentrated,
    dp_accounting,
    group,
    merge,
    to_dp_event,
    to_dp_relation,
)
from privtensors.accounting.profile import zcdp_distribution
from privtensors.errors import AccountingError, InvalidInput

MAX_GROUPS = 24
"""Most different events that are composed as they are."""

_FINEST = 1024  # grid steps per factor of two: 0.07 %
_RDP_ORDERS = (*(1 + x / 10 for x in range(1, 100)), *range(11, 64), 80, 96, 128, 192, 256, 384, 512, 1024, 2048, 4096, 8192)
_USUAL_ORDERS = 256
_FEW_ORDERS = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 128.0, 256.0)
_LOWEST_NOISE, _HIGHEST_NOISE = 1e-3, 1e6
_INTERVALS_PER_EPSILON = 2**14
_FINEST_INTERVAL = 1e-5
_SERIES = "_compute_log_a_frac failed to converge"


class Accountant(Protocol):
    """What every accountant can do; the conformance suite is ``privtensors.testing.AccountantSuite``."""

    @property
    def name(self) -> str:
        """``"rdp"``, ``"pld"``."""

    def supports(self, events: EventGroups) -> bool:
        """Whether every event has a curve here."""

    def epsilon(self, events: EventGroups, delta: float, relation: Relation = Relation.ZERO_OUT) -> float:
        """Upper bound of ε at ``delta`` of all events together, fixed in advance; 0 without events, infinite where none holds.

        Raises:
            AccountingError: An event is not supported.
            InvalidInput: ``delta`` is not in (0, 1).
            MissingExtra: dp-accounting is not installed.
        """


@dataclass(frozen=True, slots=True)
class RDPAccountant:
    """Rényi DP (Mironov 2017; sampled Gaussian: Mironov et al. 2019; conversion: Canonne et al. 2020, proposition 12)."""

    orders: tuple[float, ...] = _RDP_ORDERS

    @property
    def name(self) -> str:
        return "rdp"

    def supports(self, events: EventGroups) -> bool:
        return True

    def epsilon(self, events: EventGroups, delta: float, relation: Relation = Relation.ZERO_OUT) -> float:
        """See :meth:`Accountant.epsilon`."""
        check_delta(delta)
        if not events.counts:
            return 0.0
        found = math.inf
        # A sampled Gaussian costs time in proportion to the order, and large ones matter to small ε only: they are asked
        # where the best so far is the largest. Whichever orders are asked, the smallest value is a bound.
        usual = tuple(order for order in self.orders if 1.01 < order <= _USUAL_ORDERS)
        for orders in (usual, tuple(order for order in self.orders if order > _USUAL_ORDERS)):
            if not orders:
                continue
            values = [rho + conversion(order, delta) for order, rho in zip(orders, rdp_curve(events, orders, relation), strict=True)]
            found = min([found, *values])
            if found < values[-1]:
                break
        return max(0.0, found)


@dataclass(frozen=True, slots=True)
class PLDAccountant:
    """Privacy loss distributions, composed by FFT with pessimistic rounding (Koskela et al. 2020; Doroshenko et al. 2022).

    Every event has one. A zCDP release's is derived from its Rényi bound (:mod:`privtensors.accounting.profile`): alone it
    costs what RDP says, and it does not loosen the rest.

    Args:
        interval: Discretisation of the privacy loss; by default 2^-14 of the RDP ε, between 1e-5 and 1.
    """

    interval: float | None = None

    @property
    def name(self) -> str:
        return "pld"

    def supports(self, events: EventGroups) -> bool:
        return True

    def epsilon(self, events: EventGroups, delta: float, relation: Relation = Relation.ZERO_OUT) -> float:
        """See :meth:`Accountant.epsilon`."""
        check_delta(delta)
        if not events.counts:
            return 0.0
        interval = self.interval
        if interval is None:
            interval = interval_for(RDPAccountant(_FEW_ORDERS).epsilon(events, delta, relation))
        return float(distribution(events, interval, relation).get_epsilon_for_delta(delta))


@dataclass(frozen=True, slots=True)
class Cost:
    """ε of a schedule fixed in advance, by both accountants.

    Attributes:
        delta: The δ of both.
        rdp: By Rényi DP.
        pld: By privacy loss distributions.
    """

    delta: float
    rdp: float
    pld: float

    @property
    def epsilon(self) -> float:
        """The smaller: each is a valid bound."""
        return min(self.rdp, self.pld)


def cost(events: Event | Sequence[Event] | EventGroups, delta: float, relation: Relation = Relation.ZERO_OUT) -> Cost:
    """ε at ``delta`` of the events, valid for a schedule fixed in advance. Errors as :meth:`Accountant.epsilon`."""
    groups = events if isinstance(events, EventGroups) else group(events)
    rdp = RDPAccountant().epsilon(groups, delta, relation)
    return Cost(delta, rdp, PLDAccountant(interval_for(rdp)).epsilon(groups, delta, relation))


def calibrate(
    make: Callable[[float], Event],
    epsilon: float,
    delta: float,
    *,
    accountant: Accountant | None = None,
    relation: Relation = Relation.ZERO_OUT,
    tolerance: float = 1e-3,
) -> float:
    """The noise multiplier for a target, e.g. ``calibrate(lambda s: SampledGaussian(s, 0.01, 1000), 3.0, 1e-5)``.

    Args:
        make: The events at a noise multiplier; ε must fall as it grows.
        epsilon: Target, above 0.
        delta: In (0, 1).
        accountant: PLD by default. Under a budget that an RDP filter admits by, give that filter's own accountant.
        tolerance: Relative width of the answer. The result never costs more than ``epsilon``.

    Raises:
        AccountingError: No noise multiplier from 0.001 to a million reaches the target.
        InvalidInput: A target is out of range.
        MissingExtra: dp-accounting is not installed.
    """
    check_epsilon(epsilon)
    chosen: Accountant = PLDAccountant() if accountant is None else accountant

    def excess(log_noise: float, by: Accountant) -> float:
        value = by.epsilon(group(make(math.exp(log_noise))), delta, relation)
        return math.log(max(value, 1e-12) / epsilon)

    low, high = math.log(_LOWEST_NOISE), math.log(_HIGHEST_NOISE)
    rough = RDPAccountant()
    if excess(high, rough) > 0 and excess(high, chosen) > 0:
        raise AccountingError("no noise reaches the target", where="calibrate", fix="Check that the events depend on the noise multiplier")
    # RDP is cheap: it brackets, and the chosen accountant closes in from there.
    start = _root(lambda x: excess(x, rough), low, high, 0.005)
    return math.exp(_around(lambda x: excess(x, chosen), start, low, high, tolerance))


def rdp_curve(events: EventGroups, orders: Sequence[float], relation: Relation = Relation.ZERO_OUT) -> tuple[float, ...]:
    """Rényi divergence bound at each order of all events together. Raises MissingExtra without dp-accounting."""
    dp = dp_accounting()
    accountant = dp.rdp.RdpAccountant(list(orders), to_dp_relation(relation))
    with _without_series_warnings():
        for event, count in coarsen(events).counts:
            accountant.compose(to_dp_event(event), count)
    return tuple(float(value) for value in accountant.rdp)


@contextmanager
def _without_series_warnings() -> Iterator[None]:
    """Without dp-accounting's warning for every order whose series it cannot sum, by the hundred where much is sampled.

    It counts such an order as infinite, which is sound. Nothing else is held back: no other message, and none of another thread.
    """
    logger, thread = logging.getLogger("absl"), threading.get_ident()

    def keep(record: logging.LogRecord) -> bool:
        return record.thread != thread or not str(record.msg).startswith(_SERIES)

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def conversion(order: float, delta: float) -> float:
    """What to add to the Rényi divergence at ``order`` for ε at ``delta`` (Canonne et al. 2020, proposition 12)."""
    return math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)


def coarsen(events: EventGroups, limit: int = MAX_GROUPS) -> EventGroups:
    """An upper bound of at most ``limit`` (at least 2) + 2 different events: all Gaussians as one and all zCDP as one, both exactly."""
    inverse = math.fsum(count / event.noise_multiplier**2 for event, count in events.counts if isinstance(event, Gaussian))
    rho = math.fsum(count * event.rho for event, count in events.counts if isinstance(event, ZeroConcentrated))
    whole: tuple[tuple[Primitive, int], ...] = ()
    if inverse > 0:
        whole = ((Gaussian(math.sqrt(1 / inverse)), 1),)
    if rho > 0:
        whole = (*whole, (ZeroConcentrated(rho), 1))
    rest = EventGroups(tuple(pair for pair in events.counts if isinstance(pair[0], (Laplace, SampledGaussian))))
    if len(rest.counts) > limit:
        rest = _on_grid(rest, max(limit, 2))
    return EventGroups((*whole, *rest.counts))


def check_delta(delta: float) -> float:
    """``delta``, or InvalidInput unless it is in (0, 1)."""
    if not (isinstance(delta, float) and 0 < delta < 1):
        raise InvalidInput("delta is not between 0 and 1", where="privacy accounting", fix="Give a small float, e.g. 1e-5")
    return delta


def check_epsilon(epsilon: float) -> float:
    """``epsilon``, or InvalidInput unless it is a finite number above 0."""
    number = isinstance(epsilon, (int, float)) and not isinstance(epsilon, bool)
    if not (number and 0 < epsilon < math.inf):
        raise InvalidInput("epsilon is not a finite number above zero", where="privacy accounting", fix="Give e.g. 3.0")
    return float(epsilon)


def interval_for(epsilon: float, per_epsilon: int = _INTERVALS_PER_EPSILON) -> float:
    """The discretisation of the privacy loss where ε is about ``epsilon``: so many intervals, none below 1e-5 or above 1."""
    return min(max(epsilon / per_epsilon, _FINEST_INTERVAL), 1.0)


def distribution(events: EventGroups, interval: float, relation: Relation = Relation.ZERO_OUT) -> Any:
    """The ``PrivacyLossDistribution`` of at least one event, on a grid of ``interval``. Raises MissingExtra without dp-accounting."""
    total: Any = None
    for event, count in coarsen(events).counts:
        one = _distribution(event, count, interval, relation)
        total = one if total is None else total.compose(one)
    return total


def _distribution(event: Primitive, count: int, interval: float, relation: Relation) -> Any:
    dp_accounting()
    from dp_accounting.pld import privacy_loss_distribution as pld

    if isinstance(event, ZeroConcentrated):
        return zcdp_distribution(event.rho * count, interval)
    if isinstance(event, Laplace):
        return pld.from_laplace_mechanism(event.noise_multiplier, value_discretization_interval=interval).self_compose(count)
    neighbours = to_dp_relation(relation)
    if isinstance(event, Gaussian):
        noise = event.noise_multiplier / math.sqrt(count)
        return pld.from_gaussian_mechanism(noise, value_discretization_interval=interval, neighboring_relation=neighbours)
    assert isinstance(event, SampledGaussian)
    step = pld.from_gaussian_mechanism(
        event.noise_multiplier,
        value_discretization_interval=interval,
        sampling_prob=event.sampling_rate,
        neighboring_relation=neighbours,
    )
    return step.self_compose(count)


def _on_grid(events: EventGroups, limit: int) -> EventGroups:
    """At most ``limit`` (at least 2) events of less noise and higher rates, on the finest geometric grid that gives so few."""
    # Anchored at the least noise and the highest rate: the coarsest grid leaves one event of each kind.
    laplace = min((event.noise_multiplier for event, _ in events.counts if isinstance(event, Laplace)), default=1.0)
    sampled = [event for event, _ in events.counts if isinstance(event, SampledGaussian)]
    noise = min((event.noise_multiplier for event in sampled), default=1.0)
    rate = max((event.sampling_rate for event in sampled), default=1.0)

    def rounded(event: Primitive, steps: float) -> Primitive:
        if isinstance(event, Laplace):
            return Laplace(min(event.noise_multiplier, laplace * _down(event.noise_multiplier / laplace, steps)))
        assert isinstance(event, SampledGaussian)
        higher = rate / _down(rate / event.sampling_rate, steps)
        # Rounding must not put a grid point on the wrong side.
        less = min(event.noise_multiplier, noise * _down(event.noise_multiplier / noise, steps))
        return SampledGaussian(less, min(1.0, max(event.sampling_rate, higher)))

    steps = float(_FINEST)
    while len(events.counts) > limit:
        events = merge(EventGroups(((rounded(event, steps), count),)) for event, count in events.counts)
        steps /= 2
    return events


def _down(ratio: float, steps: float) -> float:
    """The grid point at or below ``ratio``, at least 1."""
    return min(ratio, math.exp2(math.floor(math.log2(ratio) * steps) / steps))


def _around(excess: Callable[[float], float], start: float, low: float, high: float, tolerance: float) -> float:
    """The root near ``start``: widen until it is bracketed, then close in."""
    width = 0.05
    if excess(start) <= 0:
        upper = start
        while (lower := max(low, upper - width)) > low and excess(lower) <= 0:
            upper, width = lower, width * 2
        return _root(excess, lower, upper, tolerance)
    lower = start
    while (upper := min(high, lower + width)) < high and excess(upper) > 0:
        lower, width = upper, width * 2
    return _root(excess, lower, upper, tolerance)


def _root(excess: Callable[[float], float], low: float, high: float, tolerance: float) -> float:
    """The smallest x found in [low, high] with excess(x) <= 0, by regula falsi (Illinois); ``low`` if it is enough already."""
    at_low, at_high = excess(low), excess(high)
    if at_low <= 0:
        return low
    if at_high > 0:
        raise AccountingError(
            "no noise reaches the target", where="calibrate", fix="Give a larger epsilon, fewer steps or a smaller sampling rate"
        )
    while high - low > tolerance:
        # Steps in the middle half only where the values are no guide (infinite at the lower end).
        guess = high - at_high * (high - low) / (at_high - at_low) if math.isfinite(at_low) else (low + high) / 2
        guess = min(max(guess, low + (high - low) * 0.02), high - (high - low) * 0.02)
        # Past the estimated root by a third of the tolerance: then both ends close in on it.
        guess = min(guess + tolerance / 3, high - (high - low) * 0.01)
        value = excess(guess)
        if value > 0:
            low, at_low, at_high = guess, value, at_high / 2
        else:
            high, at_high, at_low = guess, value, at_low / 2
    return high
