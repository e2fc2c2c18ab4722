"""What training rests on: roots, quotients and logarithms over many octaves, fine averages, roundings that do not drift."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from privtensors import MPC, protect, reveal
from privtensors.backends.mpc.kernels.optimizers import QUOTIENT_HIGH, QUOTIENT_LOW
from privtensors.backends.mpc.protocols.gradients import one_hot, smooth
from privtensors.backends.mpc.protocols.octaves import logarithm, span, wide_quotient, wide_sqrt
from privtensors.backends.mpc.runtime import Runtime
from privtensors.backends.mpc.shares import Shares
from privtensors.core import Session
from privtensors.core.recorder import MemoryRecorder
from tests.unit.backends.mpc.harness import sign_extend


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return Session(recorder=MemoryRecorder()).backend(MPC()).runtime  # type: ignore[attr-defined, no-any-return]


def shares(runtime: Runtime, values: Tensor, frac: int) -> Shares:
    words = (values.double() * 2.0**frac).round().to(torch.int64)
    mask = runtime.dealer.mask(tuple(words.shape)).shares
    return Shares(torch.stack([mask[0], words - mask[0]]), frac)


def value(x: Shares) -> Tensor:
    return sign_extend(x.data.sum(0), x.ring).double() / 2.0**x.frac


exponents = st.lists(st.floats(-37.5, 9.5), min_size=8, max_size=8)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(exponents)
def test_wide_sqrt(runtime: Runtime, powers: list[float]) -> None:
    x = 2.0 ** torch.tensor(powers, dtype=torch.float64)
    found = value(runtime.run(wide_sqrt(runtime, shares(runtime, x, 42), span(42, -40, 10))))
    coarse = 2.0**-43 / x / 2  # what rounding x itself to 2^-42 costs
    assert bool(((found / x.sqrt() - 1).abs() < 1e-5 + coarse).all())


def test_wide_sqrt_saturates(runtime: Runtime) -> None:
    x = torch.tensor([0.0, -1.0, 2.0**-42, 2.0**11, 2.0**14], dtype=torch.float64)
    found = value(runtime.run(wide_sqrt(runtime, shares(runtime, x, 44), span(44, -40, 10))))
    torch.testing.assert_close(found, torch.tensor([2.0**-20] * 3 + [2.0**5] * 2, dtype=torch.float64), rtol=1e-5, atol=0)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(exponents.map(lambda es: [e * 32 / 48 + 2.5 for e in es]), st.floats(-8, 8))
def test_wide_quotient(runtime: Runtime, powers: list[float], ratio: float) -> None:
    y = 2.0 ** torch.tensor(powers, dtype=torch.float64)
    where = span(46, QUOTIENT_LOW, QUOTIENT_HIGH)
    found = value(runtime.run(wide_quotient(runtime, shares(runtime, ratio * y, 42), shares(runtime, y, 46), where, 42)))
    assert bool(((found - ratio).abs() < 1e-5 * (1 + abs(ratio)) + 2.0**-42 / y).all())


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.lists(st.floats(-13.0, 17.5), min_size=8, max_size=8))
def test_logarithm(runtime: Runtime, powers: list[float]) -> None:
    x = 2.0 ** torch.tensor(powers, dtype=torch.float64)
    found = value(runtime.run(logarithm(runtime, shares(runtime, x, 18), span(18, -16, 18))))
    assert bool(((found - x.log()).abs() < 2e-5 + 2.0**-18 / x).all())


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(0, n - 1), min_size=1, max_size=5))))
def test_one_hot(runtime: Runtime, case: tuple[int, list[int]]) -> None:
    classes, labels = case
    target = torch.tensor(labels)
    bits = runtime.run(one_hot(runtime, shares(runtime, target, 0), classes))
    found = (bits[0] ^ bits[1]).bool()
    assert torch.equal(found, (torch.arange(classes).unsqueeze(1) == target))


@pytest.mark.parametrize("name", ["softplus", "gelu", "gelu_tanh", "silu"])
def test_slopes_end_where_they_should(name: str) -> None:
    act = smooth(name)
    assert act.plan.series.error < 1e-4 and (act.below, act.above) == ((0.0, 0.0) if name == "softplus" else (0.0, 1.0))


def taps(draw: st.DrawFn) -> tuple[int, int, int, int, int]:
    """Size, kernel, stride, padding and dilation of one axis: every window has a tap on the image, or torch has no answer."""
    kernel, stride, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    padding = draw(st.integers(0, kernel // 2))
    return draw(st.integers(max(dilation, dilation * (kernel - 1) + 1 - 2 * padding), 7)), kernel, stride, padding, dilation


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.composite(lambda draw: (taps(draw), taps(draw)))(), st.integers(0, 2), st.integers(0, 99))
def test_maximum_pooling_in_every_geometry(axes: tuple[tuple[int, ...], tuple[int, ...]], batch: int, number: int) -> None:
    """Values, places and gradients are torch's, of equal elements too."""
    (high, wide), *rest = zip(*axes, strict=True)
    options = dict(zip(("kernel_size", "stride", "padding", "dilation"), rest, strict=True))
    generator = torch.Generator().manual_seed(number)
    start = torch.randint(-4, 5, (*([batch] if batch else []), 2, high, wide), generator=generator) / 4
    found = []
    with Session(recorder=MemoryRecorder()):
        for private in (False, True):
            x = nn.Parameter(protect(start, MPC()) if private else start.clone())
            out, places = nn.functional.max_pool2d(x, return_indices=True, **options)
            slopes = torch.randint(-8, 9, out.shape, generator=torch.Generator().manual_seed(number)) / 8
            out.backward(protect(slopes, MPC()) if private else slopes)
            parts = (out.detach(), places, x.grad)
            found.append([reveal(t) if private else t for t in parts])
    for plain, ours in zip(*found, strict=True):
        assert torch.equal(plain, ours) and plain.dtype == ours.dtype


# --- optimizers ---------------------------------------------------------------------------------------------------------------


def weight_after(steps: int, gradient: float, optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> tuple[Tensor, Tensor]:
    """A constant gradient, plain and on shares: 200 equal weights."""
    found = []
    with Session(recorder=MemoryRecorder()):
        for private in (False, True):
            start = torch.zeros(200)
            weight = nn.Parameter(protect(start, MPC()) if private else start)
            stepper = optimizer([weight])
            for _ in range(steps):
                slope = torch.full((200,), gradient * 2**10)
                weight.grad = protect(slope, MPC()) * 2.0**-10 if private else slope * 2.0**-10
                stepper.step()
            found.append(reveal(weight) if private else weight.detach())
    return found[0], found[1]


def test_updates_below_the_resolution_are_not_lost() -> None:
    """lr · gradient is 2^-22, a sixteenth of the smallest step of 18 bits: 64 steps arrive, each weight within a few units."""
    plain, private = weight_after(64, 2.0**-12, lambda p: torch.optim.SGD(p, lr=2.0**-10))
    assert float(plain.abs().max()) == 2.0**-16
    assert float((private - plain).abs().max()) <= 2.0**-18 and float((private - plain).mean().abs()) <= 2.0**-20


@pytest.mark.parametrize("gradient", [3e-5, 1e-3, 0.1, 10.0])
@pytest.mark.parametrize("name", ["Adam", "AdamW", "RMSprop"])
def test_adaptive_steps_over_the_range_of_gradients(name: str, gradient: float) -> None:
    plain, private = weight_after(4, gradient, lambda p: getattr(torch.optim, name)(p, lr=0.01))
    largest = float(plain.abs().max())
    if gradient < 1e-4:  # eight units of 2^-18; Adam's first squared averages, 0.001 of a square, lie below what is told apart
        assert 0.7 * largest < float(private.mean().abs()) < 1.1 * largest
    else:
        assert float((private - plain).abs().max()) / largest < 0.01


def test_a_slow_average_keeps_small_numbers() -> None:
    """0.999 times a value of 10^-7, 500 times over: the decay is right to a percent although 10^-7 is far below 2^-18."""
    with Session(recorder=MemoryRecorder()):
        average = torch.zeros_like(protect(torch.zeros(50), MPC()))
        slope = protect(torch.full((50,), 0.01), MPC())
        average.addcmul_(slope, slope, value=0.001)  # 10^-7
        for _ in range(500):
            average.mul_(0.999)
        found = reveal(average * 2.0**17) / 2.0**17
    torch.testing.assert_close(found, torch.full((50,), 1e-7 * 0.999**500), rtol=0.02, atol=0)
