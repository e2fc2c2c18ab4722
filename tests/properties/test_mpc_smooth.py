"""Fourier series, power laws and activations on shares, against float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from privtensors.backends.mpc.fits import Series, fit, precise
from privtensors.backends.mpc.protocols.activation import RANGE_BITS, activate, activation, exponential_series
from privtensors.backends.mpc.protocols.fourier import Plan, bulk, pieces, widen
from privtensors.backends.mpc.protocols.normalise import power
from privtensors.backends.mpc.protocols.softmax import LEAST_HIGH, LOW, scale_of
from privtensors.backends.mpc.shares import Shares
from privtensors.errors import ProtocolError
from privtensors.testing.strategies import shapes
from tests.unit.backends.mpc.harness import FRAC, ULP, Lab, value, worst

seeds = st.integers(0, 2**20)
ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "erf": torch.erf,
}


def series(number: int, parity: str, harmonics: range, period: float) -> Series:
    """A random trigonometric polynomial."""
    rng = np.random.default_rng(number)
    n = len(harmonics)
    cosine = tuple(rng.normal(size=n)) if parity != "odd" else (0.0,) * n
    sine = tuple(rng.normal(size=n)) if parity != "even" else (0.0,) * n
    return Series(0.3 if parity != "odd" else 0.0, cosine, sine, tuple(harmonics), period, -period / 2, period / 2, 0.0, 0.0)


def evaluate(s: Series, x: torch.Tensor) -> torch.Tensor:
    angle = 2 * math.pi * x.double().unsqueeze(-1) * torch.tensor(s.harmonics, dtype=torch.float64) / s.period
    return s.constant + angle.cos() @ torch.tensor(s.cosine, dtype=torch.float64) + angle.sin() @ torch.tensor(s.sine, dtype=torch.float64)


@given(
    st.sampled_from(["even", "odd", "none"]),
    st.sampled_from([range(1, 10), range(1, 18, 2), range(2, 8), range(3, 4)]),
    st.integers(2, 6),
    seeds,
)
@settings(max_examples=15)
def test_bulk_evaluates_any_series_and_is_periodic(parity: str, harmonics: range, period_log2: int, number: int) -> None:
    lab = Lab(number=number)
    s = series(number, parity, harmonics, 2.0**period_log2)
    out_frac = math.floor(29 - math.log2(s.norm + 1))
    plan = Plan(s, 20 - period_log2, 20, out_frac)
    assert plan.parity == parity
    x = (torch.rand(700, generator=lab.generator) * 2 - 1).double() * s.period / 2
    shifted = x + s.period * torch.randint(-1000, 1000, x.shape, generator=lab.generator)
    # One rounding of a table entry is half of 2^-15; the argument is right to 2^-frac.
    slope = 2 * math.pi * max(s.harmonics) * s.norm / s.period
    # A public weight is rounded to an integer, half a unit times a table entry, twice per harmonic.
    bound = s.norm * 2.0**-15 + slope * 2.0**-plan.frac + len(harmonics) * 2.0 ** (15 - out_frac)
    for points in (x, shifted):
        with lab.meter.scope() as scope:
            words = lab.run(bulk(lab.rt, lab.share(points), plan))
        assert words.dtype == torch.int32 and scope.spent.rounds == 1 and scope.spent.bytes_sent == 3 * 700
        got = (words[0] + words[1]).double() / 2.0**out_frac
        assert worst(got, evaluate(s, points)) <= bound


@given(shapes(), seeds)
@settings(max_examples=30)
def test_bulk_of_any_shape(shape: tuple[int, ...], number: int) -> None:
    lab = Lab(number=number)
    plan = activation("gelu").plan
    x = torch.randn(shape, generator=lab.generator)
    wide = lab.run(widen(lab.rt, lab.run(bulk(lab.rt, lab.share(x), plan)), plan.out_frac, FRAC))
    assert wide.public.shape == shape and wide.ring == 64
    assert worst(value(Shares(wide.residue(), FRAC)), F.gelu(x.double()) - x.double() / 2) <= 1e-3


def test_a_block_border_is_no_border() -> None:
    lab = Lab()
    x = torch.linspace(-5, 5, 3 * (1 << 14) + 17)
    assert worst(value(lab.run(activate(lab.rt, lab.share(x), "gelu"))), F.gelu(x.double())) <= activation("gelu").error


def test_plans_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ProtocolError, match="period"):
        Plan(series(0, "even", range(1, 4), 12.0), 16, 20, 20)
    lab = Lab()
    with pytest.raises(ProtocolError, match="period of 20 bits"):
        lab.run(bulk(lab.rt, lab.share(torch.ones(2), 18, 20), activation("gelu").plan))
    with pytest.raises(ProtocolError, match="period of 40 bits"):
        lab.run(pieces(lab.rt, lab.share(torch.ones(2), 18, 30), (series(0, "even", range(1, 4), 8.0),), (40,), 30))


@given(seeds, st.integers(1, 3), st.integers(12, 30))
@settings(max_examples=30)
def test_pieces(number: int, count: int, frac: int) -> None:
    lab = Lab(number=number)
    parts = tuple(series(number + i, "none", range(1, 8), 8.0) for i in range(count))
    periods = tuple(3 + frac + 2 * i for i in range(count))
    x = (torch.rand(50, generator=lab.generator) * 30 - 15).double()
    out = lab.run(pieces(lab.rt, lab.share(x, frac), parts, periods, 44))
    assert tuple(out.shape) == (2, count, 50) and lab.meter.rounds == 1
    exact = (x * 2.0**frac).round() / 2.0**frac
    for i, part in enumerate(parts):
        want = evaluate(part, exact / 4.0**i)
        assert worst((out[0, i] + out[1, i]).double() / 2.0**44, want) <= part.norm * 2.0**-26 + 7 * 2.0 ** (26 - 44)


# (exponent, low, octaves, fractional bits): how the kernels, layer_norm and softmax use it.
POWERS = [(-0.5, -16, 30, 18), (-0.5, -16, 36, 36), (-1.0, -6, 18, 12), (-0.5, 2, 30, 28), (-0.5, -10, 30, 36), (-1.0, -6, 12, 20)]


@pytest.mark.parametrize(("exponent", "low", "octaves", "frac"), POWERS)
def test_power_has_one_relative_error_over_all_octaves(exponent: float, low: int, octaves: int, frac: int) -> None:
    lab = Lab()
    x = torch.logspace(low, low + octaves, 1001, base=2, dtype=torch.float64)
    words = (x * 2.0**frac).round()
    x = words / 2.0**frac
    inside = (x >= 2.0**low) & (x <= 2.0 ** (low + octaves))
    with lab.meter.scope() as scope:
        out = lab.run(power(lab.rt, lab.share(x, frac), exponent, low=low, octaves=octaves))
    assert scope.spent.rounds <= 5
    relative = ((value(out) - x**exponent) / x**exponent)[inside].abs().max()
    assert float(relative) <= (6e-6 if -exponent * octaves <= 15 else 5e-5)  # public weights of the last octaves have fewer bits
    print(f"power {exponent} on 2^{low}..2^{low + octaves}: relative error {float(relative):.1e}, rounds {scope.spent.rounds}")


@pytest.mark.parametrize(("exponent", "low", "octaves", "frac"), POWERS)
def test_power_saturates(exponent: float, low: int, octaves: int, frac: int) -> None:
    lab = Lab()
    top = 2.0 ** (low + octaves)
    under = torch.tensor([0.0, 2.0**low * 0.5, 2.0**low * 0.9, -(2.0**low), -0.9 * top])
    over = torch.tensor([1.13, 2.0, 7.0, 60.0]).clamp(max=2.0 ** (61 - frac) / top) * top
    out = value(lab.run(power(lab.rt, lab.share(torch.cat([under, over]).double(), frac), exponent, low=low, octaves=octaves)))
    assert worst(out[:5] / (2.0**low) ** exponent, torch.ones(5)) <= 1e-6
    assert worst(out[5:] / top**exponent, torch.ones(4)) <= 1e-6


def test_power_of_a_coarse_scale() -> None:
    """An integer tensor has no fractional bits; the small octaves need some."""
    lab = Lab()
    x = torch.arange(1, 300)
    out = lab.run(power(lab.rt, lab.words(x, 0), -0.5, low=-16, octaves=30))
    assert worst(value(out) * x.double().sqrt(), torch.ones(299)) <= 2e-6


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_activations_keep_their_declared_error_everywhere(name: str) -> None:
    lab = Lab()
    act = activation(name)
    dense = torch.linspace(-2 * act.window, 2 * act.window, 40_001)
    wide = torch.linspace(-8000, 8000, 8001)
    for x in (dense, wide):
        with lab.meter.scope() as scope:
            out = lab.run(activate(lab.rt, lab.share(x), name))
        assert scope.spent.rounds == 3 and (out.frac, out.ring) == (FRAC, 64)
        error = (value(out) - ACTIVATIONS[name](x.double())).abs()
        assert float(error.max()) <= act.error
        print(f"{name}: error {float(error.max()):.1e} (declared {act.error:.0e}), mean {float(error.mean()):.1e}")


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_activations_saturate_exactly(name: str) -> None:
    lab = Lab()
    act = activation(name)
    edge = act.window + 0.5
    x = torch.cat([torch.linspace(edge, 8000, 3001), -torch.linspace(edge, 8000, 3001)])
    out = value(lab.run(activate(lab.rt, lab.share(x), name)))
    if act.line:
        want = torch.where(x > 0, (x.double() * 2.0**FRAC).round() / 2.0**FRAC, 0.0)
        assert worst(out, want) <= 2 * ULP  # half of x is lifted, then doubled
        assert not bool(out[x < 0].any())
    else:
        assert worst(out, torch.where(x > 0, act.above, act.below).double()) <= ULP / 2


@pytest.mark.parametrize("name", list(ACTIVATIONS))
@pytest.mark.parametrize(("frac", "ring"), [(36, 64), (32, 60), (16, 64), (24, 52), (0, 64)])
def test_activations_of_any_scale_and_ring(name: str, frac: int, ring: int) -> None:
    lab = Lab()
    x = torch.linspace(-40, 40, 2001) if frac else torch.arange(-40, 41)
    out = lab.run(activate(lab.rt, lab.share(x, frac, ring), name))
    assert worst(value(out), ACTIVATIONS[name](x.double())) <= activation(name).error + 2.0**-frac * (frac < FRAC and frac > 0)


def test_activations_wrap_beyond_their_range() -> None:
    """Documented, not wished for: the window of the comparison ends at 2^13."""
    lab = Lab()
    far = 2.0**RANGE_BITS + 100
    assert float(value(lab.run(activate(lab.rt, lab.share(torch.tensor([far])), "gelu")))) < 1


def test_fits_say_what_they_reach() -> None:
    for low, high, period in ((-5.0, 5.0, 16.0), (-3.0, 2.0, 8.0)):
        s = fit(precise().tanh, low=low, high=high, period=period, harmonics=range(1, 13))
        grid = torch.linspace(low, high, 5001, dtype=torch.float64)
        assert worst(evaluate(s, grid), torch.tanh(grid)) <= s.error * 1.01
    assert exponential_series().error < 1e-2
    for factor in (1.0, 0.125, 1 / math.sqrt(32), 1 / math.sqrt(80), 0.5, 3.0):
        scale = scale_of(factor)
        assert 1.1 <= factor * 2.0**scale.cell_bits <= 2.2001
        series = scale.plan.series
        x = torch.linspace(series.low, series.high, 5001, dtype=torch.float64)
        assert worst(evaluate(series, x) ** 2, x.exp()) <= 2.3e-4 * math.exp(series.high) and scale.high >= LEAST_HIGH
        cell = factor * 2.0**scale.cell_bits
        assert scale.offset + LOW / cell > 0 and scale.offset + scale.high / cell < 62
