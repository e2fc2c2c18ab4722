"""ε of known compositions, against papers and against integrals of our own."""

from __future__ import annotations

import logging
import math
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import privtensors
from privtensors.accounting import (
    Composed,
    Gaussian,
    Laplace,
    PLDAccountant,
    RDPAccountant,
    Relation,
    RenyiFilter,
    SampledGaussian,
    ZeroConcentrated,
    calibrate,
    cost,
)
from privtensors.accounting.accountants import MAX_GROUPS, Accountant, _without_series_warnings, coarsen, conversion, rdp_curve
from privtensors.accounting.events import Event, EventGroups, group
from privtensors.accounting.profile import zcdp_distribution
from privtensors.errors import AccountingError, InvalidInput
from privtensors.testing import AccountantSuite
from privtensors.testing.accountant_suite import gaussian_epsilon

SST2 = SampledGaussian(0.7, 256 / 67349, 2367)


class TestRDP(AccountantSuite):
    @pytest.fixture
    def accountant(self) -> Accountant:
        return RDPAccountant()


class TestPLD(AccountantSuite):
    slack = 0.001

    @pytest.fixture
    def accountant(self) -> Accountant:
        return PLDAccountant()


@pytest.mark.parametrize(
    ("event", "epsilon"),
    [
        (SampledGaussian(4.0, 0.01, 10_000), 1.26),  # Abadi et al. 2016, section 3.2
        (SampledGaussian(1.3, 250 / 60_000, 3_600), 1.18),  # TensorFlow Privacy's tutorial on MNIST
    ],
)
def test_rdp_curve_reproduces_published_epsilons(event: Event, epsilon: float) -> None:
    # Both were published with the older conversion (Mironov 2017, proposition 3).
    orders = tuple(1 + x / 10 for x in range(1, 600))
    curve = rdp_curve(group(event), orders)
    assert min(rho + math.log(1e5) / (order - 1) for order, rho in zip(orders, curve, strict=True)) == pytest.approx(epsilon, abs=0.006)


def test_one_total_over_techniques_is_tighter_than_the_sum() -> None:
    parts: tuple[Event, ...] = (SST2, Laplace(2.0), Composed((Gaussian(20.0),), 30))
    total = cost(parts, 1e-5)
    alone = [cost(part, 1e-5) for part in parts]
    assert (round(alone[0].rdp, 2), round(alone[0].epsilon, 2)) == (3.31, 2.63)
    assert (round(total.rdp, 2), round(total.epsilon, 2)) == (3.83, 3.17)
    assert total.epsilon < 0.8 * sum(part.epsilon for part in alone)


def gaussian_delta(noise: float, epsilon: float) -> float:
    """The exact δ of one Gaussian release (Balle and Wang 2018, theorem 8)."""

    def cdf(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    return cdf(0.5 / noise - epsilon * noise) - math.exp(epsilon) * cdf(-0.5 / noise - epsilon * noise)


def _sampled_delta(noise: float, rate: float, epsilon: float) -> float:
    """δ of one Poisson sampled Gaussian step by numeric integration of both hockey sticks."""
    x = np.linspace(-15 * noise, 15 * noise + 1, 2_000_001)
    null = np.exp(-(x**2) / (2 * noise**2)) / (noise * math.sqrt(2 * math.pi))
    mixed = (1 - rate) * null + rate * np.exp(-((x - 1) ** 2) / (2 * noise**2)) / (noise * math.sqrt(2 * math.pi))
    width = float(x[1] - x[0])
    pairs = ((mixed, null), (null, mixed))
    return max(float(np.clip(p - math.exp(epsilon) * q, 0, None).sum()) * width for p, q in pairs)


@pytest.mark.parametrize(("noise", "rate"), [(0.6, 0.02), (1.0, 0.3), (2.0, 0.5)])
def test_pld_of_a_sampled_step_is_the_integral(noise: float, rate: float) -> None:
    epsilon = PLDAccountant().epsilon(group(SampledGaussian(noise, rate)), 1e-5)
    assert _sampled_delta(noise, rate, epsilon * 1.0001) <= 1e-5 < _sampled_delta(noise, rate, epsilon * 0.99)


@pytest.mark.parametrize("event", [SST2, SampledGaussian(10.0, 1e-3, 20_000), Composed((Laplace(30.0),), 500)])
def test_the_discretisation_costs_less_than_one_percent(event: Event) -> None:
    fine = PLDAccountant(2e-5).epsilon(group(event), 1e-5)
    assert PLDAccountant().epsilon(group(event), 1e-5) == pytest.approx(fine, rel=0.01)


def test_pure_epsilons_stay_pure() -> None:
    # A hundred Laplace releases of ε 0.001 cannot cost more than their sum.
    assert 0 < cost(Composed((Laplace(1000.0),), 100), 1e-9).epsilon <= 0.1 * 1.001


def test_zcdp_alone_costs_what_rdp_says() -> None:
    found = cost([ZeroConcentrated(1 / 18), Gaussian(3.0)], 1e-5)
    assert found.rdp == pytest.approx(RDPAccountant().epsilon(group([Gaussian(3.0)] * 2), 1e-5))  # zCDP of 1 / (2 σ²)
    for rho in (1e-6, 0.01, 0.5, 8.0):
        alone = cost(ZeroConcentrated(rho), 1e-5)
        assert 0 < alone.pld <= alone.rdp * (1 + 1e-6)


def test_zcdp_does_not_loosen_the_rest() -> None:
    rho = 30 / (2 * 20.0**2)
    mixed, gaussian = cost([SST2, ZeroConcentrated(rho)], 1e-5), cost([SST2, Gaussian(20 / math.sqrt(30))], 1e-5)
    assert gaussian.pld < mixed.pld < gaussian.pld + 0.12 and mixed.epsilon < mixed.rdp - 0.5


@pytest.mark.parametrize("noise", [0.5, 1.0, 3.0, 18.0])
def test_the_zcdp_distribution_dominates_every_gaussian_of_that_rho(noise: float) -> None:
    rho = 1 / (2 * noise**2)
    found = zcdp_distribution(rho, 1e-3 / noise)
    epsilons = np.linspace(-2 / noise, 8 / noise, 501)
    exact = [gaussian_delta(noise, float(epsilon)) for epsilon in epsilons]
    bound = found.get_delta_for_epsilon(epsilons)
    assert (np.asarray(bound) >= np.asarray(exact) * (1 - 1e-9) - 1e-14).all()
    # And any zCDP mechanism of that rho: the bound is the envelope of the conversion, which holds for all of them.
    assert found.get_epsilon_for_delta(1e-5) >= gaussian_epsilon(noise, 1e-5)


def test_an_absurd_zcdp_is_infinite_by_pld_and_not_an_overflow() -> None:
    found = cost(ZeroConcentrated(1e9), 1e-5)
    assert found.pld == math.inf and found.epsilon == found.rdp < math.inf


def test_every_kind_of_event_has_both_curves() -> None:
    for event in (Gaussian(2.0), Laplace(2.0), SampledGaussian(1.0, 0.1, 3), ZeroConcentrated(0.1), Composed((Gaussian(2.0),), 2)):
        assert PLDAccountant().supports(group(event)) and RDPAccountant().supports(group(event))
        for relation in Relation:
            found = cost(event, 1e-5, relation)
            assert 0 < found.pld < math.inf and 0 < found.rdp < math.inf


@pytest.mark.parametrize("event", [SampledGaussian(400.0, 1e-3, 100), Gaussian(300.0), SST2, SampledGaussian(0.8, 0.2, 50)])
def test_large_orders_are_left_out_only_where_they_do_not_matter(event: Event) -> None:
    accountant, total = RDPAccountant(), math.inf
    for order, rho in zip(accountant.orders, rdp_curve(group(event), accountant.orders), strict=True):
        total = min(total, rho + conversion(order, 1e-5))
    assert accountant.epsilon(group(event), 1e-5) == pytest.approx(max(0.0, total), rel=1e-9)


@pytest.mark.parametrize("epsilon", [0.3, 3.0])
@pytest.mark.parametrize("accountant", [RDPAccountant(), PLDAccountant()])
def test_calibration_meets_its_target_and_no_more(accountant: Accountant, epsilon: float) -> None:
    noise = calibrate(lambda s: SampledGaussian(s, 0.01, 500), epsilon, 1e-5, accountant=accountant)
    assert 0.99 * epsilon < accountant.epsilon(group(SampledGaussian(noise, 0.01, 500)), 1e-5) <= epsilon


def test_calibration_of_one_gaussian_is_the_analytic_one() -> None:
    noise = calibrate(Gaussian, 1.0, 1e-5)
    assert noise == pytest.approx(3.730632, rel=2e-3)  # Balle and Wang 2018, algorithm 1
    assert gaussian_epsilon(noise, 1e-5) <= 1.0


def test_calibration_refuses_what_no_noise_reaches() -> None:
    with pytest.raises(AccountingError, match="no noise"):
        calibrate(lambda s: Gaussian(1.0), 0.1, 1e-5)
    for epsilon in (0.0, math.inf, math.nan):
        with pytest.raises(InvalidInput):
            calibrate(Gaussian, epsilon, 1e-5)


def _many(distinct: bool) -> EventGroups:
    draw = random.Random(1)
    events: list[Event] = []
    for i in range(10_000):
        scale = 1 + draw.random() if distinct else 1.0
        events.append((Gaussian(200 * scale), Laplace(300 * scale), SampledGaussian(2 * scale, 0.001 * scale, 10))[i % 3])
    return group(events)


def test_ten_thousand_entries_cost_less_than_a_second() -> None:
    cost(Gaussian(1.0), 1e-5)  # the import
    spent = []
    for _ in range(3):
        start = time.process_time()
        found = cost(_many(distinct=False), 1e-5)
        spent.append(time.process_time() - start)
    assert min(spent) < 1.0 and 0 < found.pld < found.rdp


def test_different_events_are_rounded_the_safe_way() -> None:
    events = _many(distinct=True)
    coarse = coarsen(events)
    assert len(events.counts) > 9_000 and len(coarse.counts) <= MAX_GROUPS + 2
    few = EventGroups(events.counts[::150])
    orders = (2.0, 8.0, 32.0)
    exact = sum(np.array(rdp_curve(EventGroups((pair,)), orders)) for pair in few.counts)
    bound = np.array(rdp_curve(few, orders))
    assert len(few.counts) > MAX_GROUPS and (bound >= exact).all() and (bound <= exact * 1.3).all()


def test_accounting_imports_neither_torch_nor_dp_accounting() -> None:
    code = "import sys, privtensors.accounting; print(sorted({'torch', 'dp_accounting', 'scipy', 'sqlite3'} & set(sys.modules)))"
    root = Path(privtensors.__file__).parents[1]
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# Half of the data in every step: the series of several fractional orders do not converge.
CROWDED = SampledGaussian(3.0, 0.5, 50)


def test_orders_without_a_sum_are_left_out_in_silence(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        found = cost(CROWDED, 1e-5)
        assert RenyiFilter(3.0, 1e-5).spent(group(CROWDED)) < math.inf
    assert found.pld <= found.rdp < math.inf
    assert capfd.readouterr() == ("", "") and not caplog.records


def test_no_other_message_is_held_back(caplog: pytest.LogCaptureFixture) -> None:
    logger, before = logging.getLogger("absl"), list(logging.getLogger("absl").filters)
    said = "_compute_log_a_frac failed to converge after %d iterations"

    def elsewhere() -> None:
        logger.warning(said, 2)

    with caplog.at_level(logging.WARNING, "absl"), _without_series_warnings():
        logger.warning(said, 1)
        logger.warning("another matter")
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert [record.getMessage() for record in caplog.records] == ["another matter", said % 2]
    assert logger.filters == before
    with pytest.raises(RuntimeError), _without_series_warnings():
        raise RuntimeError
    assert logger.filters == before
