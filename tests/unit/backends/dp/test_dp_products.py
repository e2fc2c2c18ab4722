"""Products of several matrices at once, vectors times matrices, addcmul: values and norms."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import privtensors as pt
from privtensors.backends.dp.payload import Aggregate, Rows
from privtensors.errors import UnsupportedOp

QUIET = pt.Gaussian(std=1e-6)
PLAIN = torch.rand(50, 2, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def x(tmp_path: Path) -> Iterator[Tensor]:
    with pt.Session(recorder=pt.Ledger(tmp_path / "ledger.sqlite")):
        yield pt.protect(PLAIN, pt.DP(unit="row", dataset="table", bounds=(0, 1)))


def test_values(x: Tensor) -> None:
    w, three = torch.linspace(-1, 2, 50), torch.linspace(-2, 1, 12).view(2, 2, 3)

    def statistics(x: Tensor) -> tuple[Tensor, ...]:
        return (
            w @ x,
            x.sum(0) @ three[0],
            x.T @ w,
            torch.bmm(torch.stack([x, x * x]), three).sum(1),
            torch.bmm(torch.stack([x.T, x.T.relu()]), torch.stack([x, x])),
            torch.bmm(torch.stack([x.T @ x, x.T @ x]), three),
            torch.einsum("bi,bj->ij", x, x),
            torch.addcmul(x.sum(0), x.mean(0), torch.tensor([2.0, -3.0]), value=0.5),
            torch.addcmul(torch.ones(2), x, x, value=-0.5).sum(0),
            torch.bmm(x.unsqueeze(2), x.unsqueeze(1)).sum(0),
        )

    for ours, theirs in zip(statistics(x), statistics(PLAIN), strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        torch.testing.assert_close(pt.reveal(ours, release=QUIET), theirs, rtol=1e-5, atol=1e-4)
    sums = x.sum(0)
    sums.addcmul_(torch.ones(2), torch.ones(2), value=3)
    torch.testing.assert_close(pt.reveal(sums, release=QUIET), PLAIN.sum(0) + 3, rtol=1e-5, atol=1e-4)


def test_the_largest_of_several_matrices_bounds_all(x: Tensor) -> None:
    both = torch.stack([torch.eye(2), 10 * torch.eye(2)])
    unit = torch.renorm(x, 2, 0, 1.0)
    rows = torch.bmm(torch.stack([unit, unit]), both)._state.payload
    total = unit.sum(0).unsqueeze(0)
    sums = torch.bmm(torch.stack([total, total]), both)._state.payload
    over = torch.bmm(torch.stack([unit.T, unit.T]), torch.stack([torch.ones(50, 1), 10 * torch.ones(50, 1)]))._state.payload
    assert isinstance(rows, Rows) and isinstance(sums, Aggregate) and isinstance(over, Aggregate)
    for held in (rows, sums, over):  # (x, 10 x) for a row of norm 1
        assert math.sqrt(101) <= held.l2 <= 10 * math.sqrt(2) * (1 + 1e-6)
        assert 11 <= held.l1 <= 20 * math.sqrt(2) * (1 + 1e-6)


def test_a_rows_own_product_is_bounded_by_its_norms(x: Tensor) -> None:
    unit = torch.renorm(x, 2, 0, 1.0)
    held = torch.bmm(unit.unsqueeze(2), unit.unsqueeze(1))._state.payload
    assert isinstance(held, Rows) and held.axis == 0 and held.l2 == pytest.approx(1.0)
    free = torch.bmm(x.unsqueeze(2), (x * math.inf).unsqueeze(1))._state.payload
    assert not free.bounded


def test_different_units_are_not_multiplied(x: Tensor) -> None:
    for job in (
        lambda: torch.bmm(x.unsqueeze(0), x.T.unsqueeze(0)),
        lambda: torch.bmm(x.unsqueeze(2), x.flip(0).unsqueeze(1)),
        lambda: torch.addcmul(x, x.flip(0), x),
        lambda: torch.bmm((x.T @ x).unsqueeze(0), (x.T @ x).unsqueeze(0)),
        lambda: torch.addcmul(x.sum(0), x.sum(0), x.sum(0)),
    ):
        with pytest.raises(UnsupportedOp):
            job()
