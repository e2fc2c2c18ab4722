"""``AccountantSuite``: the tests that every accountant passes. A plugin inherits them with one fixture.

class TestMine(AccountantSuite):
    @pytest.fixture
    def accountant(self) -> Accountant:
        return MyAccountant()
"""

from __future__ import annotations

import math
from typing import ClassVar

import pytest

from privtensors.accounting.accountants import Accountant
from privtensors.accounting.events import Composed, Event, EventGroups, Gaussian, Laplace, Relation, SampledGaussian, group
from privtensors.errors import InvalidInput

_DELTA = 1e-5


class AccountantSuite:
    """Inherit, name the class ``Test...``, and provide the fixture ``accountant``.

    Class attributes:
        slack: How far above the exact ε of a Gaussian the accountant may lie, relative. Below it must never lie.
    """

    slack: ClassVar[float] = 0.25

    @pytest.fixture
    def accountant(self) -> Accountant:
        raise NotImplementedError("provide the fixture 'accountant'")

    def test_nothing_costs_nothing(self, accountant: Accountant) -> None:
        assert accountant.epsilon(EventGroups(), _DELTA) == 0

    @pytest.mark.parametrize("noise", [0.7, 2.0, 30.0])
    def test_gaussian_is_never_below_the_exact_epsilon(self, accountant: Accountant, noise: float) -> None:
        exact = gaussian_epsilon(noise, _DELTA)
        found = accountant.epsilon(group(Gaussian(noise)), _DELTA)
        assert exact * (1 - 1e-6) <= found <= exact * (1 + self.slack)

    def test_gaussians_compose_as_one(self, accountant: Accountant) -> None:
        # n Gaussians are one with the noise multiplier over the square root of n, exactly.
        many = accountant.epsilon(group([Gaussian(20.0)] * 100), _DELTA)
        assert many == pytest.approx(accountant.epsilon(group(Gaussian(2.0)), _DELTA), rel=1e-6)

    @pytest.mark.parametrize("event", [Laplace(2.0), SampledGaussian(1.0, 0.01, 200), Gaussian(3.0)])
    def test_more_releases_never_cost_less(self, accountant: Accountant, event: Event) -> None:
        one = accountant.epsilon(group(event), _DELTA)
        assert 0 < one < accountant.epsilon(group(Composed((event,), 3)), _DELTA) < math.inf

    def test_more_noise_costs_less(self, accountant: Accountant) -> None:
        steps = [accountant.epsilon(group(SampledGaussian(noise, 0.01, 300)), _DELTA) for noise in (0.8, 1.0, 1.5)]
        assert steps[0] > steps[1] > steps[2]

    def test_a_larger_sample_costs_more(self, accountant: Accountant) -> None:
        steps = [accountant.epsilon(group(SampledGaussian(1.0, rate, 100)), _DELTA) for rate in (0.01, 0.1, 1.0)]
        assert steps[0] < steps[1] < steps[2]

    def test_a_smaller_delta_costs_more(self, accountant: Accountant) -> None:
        events = group(Composed((Gaussian(4.0), Laplace(5.0)), 3))
        assert accountant.epsilon(events, 1e-7) > accountant.epsilon(events, 1e-5)

    def test_laplace_is_never_below_its_tail(self, accountant: Accountant) -> None:
        # The pure 1/b, less what δ buys (Balle and Wang's hockey stick in closed form): δ = 1 - exp((ε - 1/b) / 2).
        exact = 1 / 2.0 + 2 * math.log1p(-_DELTA)
        assert accountant.epsilon(group(Laplace(2.0)), _DELTA) >= exact * (1 - 1e-9)

    @pytest.mark.parametrize("relation", list(Relation))
    def test_every_relation(self, accountant: Accountant, relation: Relation) -> None:
        assert 0 < accountant.epsilon(group(SampledGaussian(1.0, 0.01, 10)), _DELTA, relation) < math.inf

    @pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
    def test_delta_is_checked(self, accountant: Accountant, delta: float) -> None:
        with pytest.raises(InvalidInput):
            accountant.epsilon(group(Gaussian(1.0)), delta)


def gaussian_epsilon(noise: float, delta: float) -> float:
    """The exact ε of one Gaussian release by bisection (Balle and Wang 2018, theorem 8)."""

    def cdf(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    def excess(epsilon: float) -> float:
        return cdf(0.5 / noise - epsilon * noise) - math.exp(epsilon) * cdf(-0.5 / noise - epsilon * noise) - delta

    low, high = 0.0, 200.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return high
