"""Poisson samples: the right rate, independent coins, and nothing else accounted as amplified."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler, WeightedRandomSampler

from privtensors.errors import AccountingError, ParameterError
from privtensors.train import sampling
from privtensors.train.sampling import PoissonSampler, amplified_rate

FALSE_ALARM = 1e-6


def sampler_pvalue(size: int, rate: float, steps: int, sampler: PoissonSampler) -> float:
    """Two-sided normal tail of the number drawn; exact enough for thousands of coins."""
    total = sum(len(sampler.draw()) for _ in range(steps))
    coins = size * steps
    z = (total - coins * rate) / math.sqrt(coins * rate * (1 - rate))
    return math.erfc(abs(z) / math.sqrt(2))


@pytest.mark.parametrize(("size", "rate"), [(1000, 0.01), (997, 0.25), (50, 0.9)])
def test_units_are_drawn_at_the_rate(size: int, rate: float) -> None:
    assert sampler_pvalue(size, rate, 400, PoissonSampler(size, rate)) > FALSE_ALARM


def test_the_test_of_the_rate_finds_a_wrong_one() -> None:
    assert sampler_pvalue(1000, 0.01, 400, PoissonSampler(1000, 0.011)) < FALSE_ALARM


def test_every_unit_is_drawn_equally_often_and_sizes_vary_as_binomials_do() -> None:
    sampler, steps, size, rate = PoissonSampler(200, 0.1), 2000, 200, 0.1
    counts, sizes = torch.zeros(size), []
    for _ in range(steps):
        drawn = sampler.draw()
        counts[drawn] += 1
        sizes.append(len(drawn))
        assert drawn.dtype == torch.int64 and drawn.tolist() == sorted(set(drawn.tolist()))
    chi = float(((counts - steps * rate) ** 2 / (steps * rate * (1 - rate))).sum())
    assert abs(chi - size) < 5.2 * math.sqrt(2 * size)  # chi-squared with 200 degrees of freedom; 5.2 is beyond 1e-6
    variance = torch.tensor(sizes, dtype=torch.float64).var().item()
    assert abs(variance / (size * rate * (1 - rate)) - 1) < 5 * math.sqrt(2 / steps)  # fixed-size batches would give 0


def test_coins_of_two_units_and_of_two_steps_are_independent() -> None:
    sampler, steps = PoissonSampler(2, 0.5), 4000
    seen = torch.zeros(steps, 2)
    for step in range(steps):
        seen[step, sampler.draw()] = 1
    for a, b in ((seen[:, 0], seen[:, 1]), (seen[1:, 0], seen[:-1, 0])):
        correlation = torch.corrcoef(torch.stack([a, b]))[0, 1].item()
        assert abs(correlation) < 4.9 / math.sqrt(steps)


def test_a_rate_of_one_draws_everybody_and_a_tiny_one_mostly_nobody() -> None:
    assert PoissonSampler(5, 1.0).draw().tolist() == [0, 1, 2, 3, 4]
    sampler = PoissonSampler(10, 1e-6)
    assert sum(len(sampler.draw()) for _ in range(100)) <= 1


def test_the_threshold_is_the_rate_rounded_down() -> None:
    for rate in (0.1, 1 / 3, 1e-7, 0.9999999):
        real = Fraction(PoissonSampler(3, rate)._threshold, 2**64)
        assert 0 <= Fraction(rate) - real < Fraction(1, 2**64)


def test_more_units_than_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_CHUNK", 64)
    sampler = PoissonSampler(1000, 0.5)
    drawn = sampler.draw()
    assert 0 < len(drawn) < 1000 and int(drawn.max()) > 900 and drawn.tolist() == sorted(set(drawn.tolist()))


def test_two_samplers_draw_differently() -> None:
    torch.manual_seed(0)
    first = PoissonSampler(1000, 0.5).draw()
    torch.manual_seed(0)
    assert not torch.equal(first, PoissonSampler(1000, 0.5).draw())


@pytest.mark.parametrize(("size", "rate"), [(0, 0.5), (10, 0.0), (10, 1.5), (10, float("nan")), (10, 1), (2.0, 0.5)])
def test_bad_input(size: object, rate: object) -> None:
    with pytest.raises(ParameterError):
        PoissonSampler(size, rate)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sampler", "why"),
    [
        (WeightedRandomSampler([0.1, 0.9], 2), "higher probability"),
        (RandomSampler(range(4)), "shuffled epoch"),
        (SequentialSampler(range(4)), "same examples"),
        (BatchSampler(RandomSampler(range(4)), 2, False), "not known"),
    ],
)
def test_other_samplers_are_not_amplified(sampler: object, why: str) -> None:
    with pytest.raises(AccountingError, match=why) as caught:
        amplified_rate(sampler)  # type: ignore[arg-type]
    assert "PoissonSampler" in caught.value.fix
    assert amplified_rate(PoissonSampler(10, 0.5)) == 0.5
