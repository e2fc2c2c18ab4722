"""Kernels over the whole range of legal inputs, ±2^18: accurate, saturated, or a typed error; never silently something else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import privtensors as pt
from privtensors.core.recorder import MemoryRecorder
from privtensors.errors import InvalidInput, OutOfRange, ParameterError, PrivTensorsError
from tests.unit.backends.mpc.harness import Lab, value, worst

TOP = 2.0**18 - 1


@pytest.fixture(autouse=True)
def session() -> Iterator[pt.Session]:
    with torch.no_grad(), pt.Session(recorder=MemoryRecorder()) as session:
        yield session


def private(function: Callable[..., Tensor], *plain: Tensor) -> Tensor:
    return pt.reveal(function(*(pt.protect(x, "mpc", owner="client") for x in plain)), to="client")


PROMOTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "exp": torch.exp,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "reciprocal": torch.reciprocal,
    "sigmoid": torch.sigmoid,
    "erf": torch.erf,
    "/ 3": lambda t: t / 3,
    "+ 0.5": lambda t: t + 0.5,
    "- 0.25": lambda t: t - 0.25,
    "1.5 - x": lambda t: 1.5 - t,
    "* 0.5": lambda t: t * 0.5,
    "* float tensor": lambda t: t * torch.full((5,), 0.5),
    "+ float tensor": lambda t: t + torch.full((5,), 0.5),
    "clamp": lambda t: t.clamp(1.5, 3.5),
    "maximum": lambda t: torch.maximum(t, torch.full((5,), 2.5)),
    "** 0.5": lambda t: t**0.5,
    "** 2": lambda t: t**2,
    "cat": lambda t: torch.cat([t, torch.tensor([0.5])]),
    "where": lambda t: torch.where(torch.arange(5) > 2, t, 0.5),
    "product": lambda t: t * t,
    "sum": lambda t: t.sum(),
    "bool * float": lambda t: (t > 2) * torch.full((5,), 0.5),
    "bool * int": lambda t: (t > 2) * t,
    "bool sum": lambda t: (t > 2).sum(),
    "bool cumsum": lambda t: (t > 2).cumsum(0),
    "> 1.5": lambda t: t > 1.5,
    "<= 2.5": lambda t: t <= torch.full((5,), 2.5),
    "masked_fill": lambda t: t.masked_fill(torch.arange(5) > 2, 7),
    "bool or": lambda t: (t > 2) * (t > 1),
    "to float": lambda t: t.float() * 0.5,
}


@pytest.mark.parametrize("name", list(PROMOTIONS))
def test_integers_become_floats_where_torch_makes_them_floats(name: str) -> None:
    x = torch.arange(1, 6)
    want = PROMOTIONS[name](x)
    got = private(PROMOTIONS[name], x)
    assert got.dtype == want.dtype
    assert float((got.double() - want.double()).abs().max()) <= 1e-3


def test_comparison_of_any_two_inputs() -> None:
    a = torch.tensor([TOP, -TOP, TOP, -TOP, TOP, 0.0])
    b = torch.tensor([-TOP, TOP, TOP - 1, -TOP + 1, 0.0, -TOP])
    assert torch.equal(private(torch.gt, a, b), a > b)
    assert torch.equal(private(torch.maximum, a, b), torch.maximum(a, b))
    assert torch.equal(private(lambda t: t.amax(-1), torch.stack([a, b])), torch.stack([a, b]).amax(-1))


def test_exp_over_its_whole_range() -> None:
    x = torch.linspace(-24, 8, 4001)
    error = (private(torch.exp, x) - x.exp()).abs()
    assert bool((error <= 2e-5 + 1e-4 * x.exp()).all())
    assert float(private(torch.exp, torch.tensor([8.5, 20.0, 100.0])).max()) <= 8.3e3  # saturates


def test_reciprocal_is_as_right_as_its_result_has_digits() -> None:
    x = torch.cat([torch.logspace(-2, 3, 2000), -torch.logspace(-2, 3, 2000)])
    error = (private(torch.reciprocal, x) - 1 / x).abs()
    assert bool((error <= 1.6e-5 + 5e-4 * (1 / x).abs()).all())


def test_a_small_public_factor_keeps_its_digits() -> None:
    x = torch.tensor([1e5, -2e5, 3.0])
    for factor in (1e-6, 3.3e-5, 1 / 3, 7e-4):
        for function in (lambda t, f=factor: t * f, lambda t, f=factor: t / (1 / f)):
            error = (private(function, x) - x * factor).abs()
            assert bool((error <= 2e-5 + 1e-5 * (x * factor).abs()).all())


def test_a_sum_after_small_factors_keeps_both() -> None:
    """Every small factor adds fractional bits; the next sum must not push its other operand out of the ring."""
    x, z = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([100.0, 1000.0, TOP])
    for k in (10, 20, 25, 30, 35, 40, 44, 60):
        for function in (
            lambda a, b, k=k: a * 2.0**-k + b,
            lambda a, b, k=k: (a * a) * 2.0**-k + b,
            lambda a, b, k=k: torch.cat([a * 2.0**-k, b])[3:],
        ):
            assert float((private(function, x, z) - function(x, z)).abs().max()) <= 0.04  # float32 of 2^18
        assert float((private(lambda a, k=k: a * 2.0**-k + z, x) - z).abs().max()) <= 0.04


@pytest.mark.parametrize("public", [1e30, torch.finfo(torch.float32).min, 2.0**50])
@pytest.mark.parametrize("op", ["add", "mul", "masked_fill", "where", "matmul"])
def test_a_public_operand_that_has_no_fixed_point_form_is_refused(public: float, op: str) -> None:
    x = torch.ones(2, 2)
    other = torch.full((2, 2), public)
    mask = torch.eye(2) > 0
    run: dict[str, Callable[[Tensor], Tensor]] = {
        "add": lambda t: t + other,
        "mul": lambda t: t * other,
        "masked_fill": lambda t: t.masked_fill(mask, public),
        "where": lambda t: torch.where(mask, t, other),
        "matmul": lambda t: t @ other,
    }
    with pytest.raises(PrivTensorsError):
        private(run[op], x)


@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4)])
def test_fused_blocks_of_nothing(shape: tuple[int, ...]) -> None:
    for function in (lambda t: t.softmax(-1), lambda t: torch.nn.functional.layer_norm(t, [4]), torch.nn.functional.gelu, torch.relu):
        got = private(function, torch.zeros(shape))
        assert got.shape == shape


@pytest.mark.parametrize("bounds", [(0.0, math.inf), (-math.inf, 1.0), (-math.inf, math.inf), (None, 1.0)])
def test_an_infinite_bound_is_none(bounds: tuple[float | None, float | None]) -> None:
    lab = Lab()
    x = torch.linspace(-3, 3, 25)
    got = value(lab.kernel("clamp", "A", lab.share(x), *bounds))
    assert worst(got, x.clamp(*bounds)) <= 2**-11


@pytest.mark.parametrize("bounds", [(math.nan, 1.0), (-1e30, 1.0), (0.0, 2.0**18), (math.inf, math.inf), (-math.inf, -math.inf)])
def test_bounds_out_of_range_are_refused(bounds: tuple[float, float]) -> None:
    lab = Lab()
    with pytest.raises(OutOfRange, match="bounds"):
        lab.kernel("clamp", "A", lab.share(torch.ones(2)), *bounds)


def test_division_by_the_number_zero_is_refused() -> None:
    lab = Lab()
    with pytest.raises(ParameterError, match="division by zero"):
        lab.kernel("div", "A", lab.share(torch.ones(2)), 0)


def test_square_roots_of_large_numbers_are_as_right_as_those_of_small_ones() -> None:
    lab = Lab()
    x = torch.logspace(-1, 4, 300)
    assert worst(value(lab.kernel("sqrt", "A", lab.share(x))), x.double().sqrt()) <= 2e-3


def test_bools_count_as_whole_numbers() -> None:
    with pt.Session(recorder=MemoryRecorder()):
        flags = pt.protect(torch.tensor([True, False]), "mpc")
        total = pt.reveal(flags + torch.tensor([1, 2]))
    assert total.dtype == torch.int64 and total.tolist() == [2, 2]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_attention_mask_that_is_no_mask_is_refused(bad: float) -> None:
    lab = Lab()
    q = lab.share(torch.randn(1, 1, 4, 16))
    mask = torch.zeros(4, 4)
    mask[1, 2] = bad
    with pytest.raises(InvalidInput, match="attention mask"):
        lab.kernel("attention", "AAA", q, q, q, attn_mask=mask)


def test_biases_that_the_scores_have_no_room_for_are_refused() -> None:
    lab = Lab()
    q = lab.share(torch.randn(1, 1, 4, 16), 36)
    mask = torch.zeros(4, 4)
    mask[0, 0] = -9000.0  # too small to mean "not attended", too large to add
    with pytest.raises(OutOfRange, match="attention biases"):
        lab.kernel("attention", "AAA", q, q, q, attn_mask=mask)


@pytest.mark.parametrize("scale", [0.0, -0.5, 1e-9, math.nan, math.inf])
def test_scales_that_are_none_are_refused(scale: float) -> None:
    lab = Lab()
    q = lab.share(torch.randn(1, 1, 4, 16))
    with pytest.raises(ParameterError, match="softmax of scores times"):
        lab.kernel("attention", "AAA", q, q, q, scale=scale)
