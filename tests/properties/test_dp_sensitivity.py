"""The tracked sensitivity bounds what one unit really changes, for random chains of operations on random tables.

Neighbours are made by brute force: every row in turn is replaced by NaN, which is the record that contributes zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from privtensors import DP, Gaussian, Session, protect, reveal
from privtensors.backends.dp.payload import Aggregate, Rows
from privtensors.core.recorder import MemoryRecorder
from privtensors.errors import InvalidInput, LedgerError, UnboundedSensitivity, UnsupportedOp

Op = Callable[[Tensor], Tensor]


def cube(*shape: int) -> Tensor:
    """Public numbers of both signs."""
    return torch.linspace(-1.7, 2.1, math.prod(shape)).view(shape)


# What stays within rows, for a matrix with rows on axis 0; W and V are public.
W = torch.tensor([[0.5, -2.0, 1.0], [3.0, 0.0, -0.25], [1.0, 1.0, 1.0], [0.0, -1.5, 2.0]])
ROWS: dict[str, Op] = {
    "clamp": lambda x: x.clamp(-1.5, 2.0),
    "clamp away from 0": lambda x: x.clamp(min=0.25),
    "renorm": lambda x: torch.renorm(x, 2, 0, 1.25),
    "renorm L1": lambda x: torch.renorm(x, 1, 0, 0.75),
    "relu": torch.relu,
    "abs": torch.abs,
    "tanh": torch.tanh,
    "gelu": torch.nn.functional.gelu,
    "silu": torch.nn.functional.silu,
    "exp": lambda x: x.clamp(max=3).exp(),
    "log": lambda x: x.clamp(min=0.5).log(),
    "square": lambda x: x**2,
    "cube": lambda x: x**3,
    "root": torch.sqrt,
    "scale": lambda x: x * -2.5,
    "weights": lambda x: x * torch.linspace(-1, 2, x.shape[-1]),
    "shift": lambda x: x + 1.5,
    "one minus": lambda x: 1 - x,
    "itself": lambda x: x - 0.5 * x,
    "product": lambda x: x * x.tanh(),
    "quotient": lambda x: x / x.abs().clamp(min=0.5),
    "linear": lambda x: torch.nn.functional.linear(x, W[:, : x.shape[-1]] if x.shape[-1] <= 3 else W.T),
    "addcmul": lambda x: torch.addcmul(x, x.tanh(), torch.linspace(-1, 2, x.shape[-1]), value=-0.7),
    "addcmul to public": lambda x: torch.addcmul(torch.linspace(-1, 1, x.shape[-1]), x, x.sigmoid()),
    "a matrix per row": lambda x: torch.bmm(x.unsqueeze(1), cube(x.shape[0], x.shape[-1], x.shape[-1])).squeeze(1),
    "a matrix per row, left": lambda x: torch.bmm(cube(x.shape[0], x.shape[-1], x.shape[-1]), x.unsqueeze(2)).squeeze(2),
    "several matrices": lambda x: torch.bmm(torch.stack([x, x.tanh()]), cube(2, x.shape[-1], 2)).transpose(0, 1).flatten(1)[:, :3],
    "times itself": lambda x: torch.bmm(x.unsqueeze(2), x.tanh().unsqueeze(1)).sum(-1),
    "softmax": lambda x: x.softmax(-1),
    "cumsum": lambda x: x.cumsum(-1),
    "largest": lambda x: torch.cat([x, x.amax(-1, keepdim=True)], -1)[:, 1:],
    "sum of row": lambda x: torch.cat([x[:, :1], x.sum(-1, keepdim=True)], -1),
    "mean of row": lambda x: torch.cat([x[:, :2], x.mean(-1, keepdim=True)], -1),
    "compare": lambda x: (x > 0.3).float(),
    "choose": lambda x: torch.where(x > 0, x, torch.tensor(0.75)),
    "fill": lambda x: x.masked_fill(x < -0.5, 0.1),
    "flip columns": lambda x: x.flip([1]),
    "intercept": lambda x: torch.cat([x[:, :2], torch.ones(x.shape[0], 1)], 1),
    "pad": lambda x: torch.nn.functional.pad(x[:, :2], [1, 0], value=2.0),
    "reorder rows": lambda x: x.flip([0]),
    "repeat rows": lambda x: torch.cat([x, x[:1]], 0),
    "rows twice": lambda x: x[torch.arange(x.shape[0]).repeat_interleave(2)],
    "drop a row": lambda x: x[1:] if x.shape[0] > 2 else x,
    "whole": lambda x: x.clamp(-50, 50).long().float(),
}
# What makes aggregates.
SUMS: dict[str, Op] = {
    "sum": lambda x: x.sum(0),
    "mean": lambda x: x.mean(0),
    "all": lambda x: x.sum(),
    "mean of all": lambda x: x.mean(),
    "running": lambda x: x.cumsum(0),
    "public groups": lambda x: torch.tensor([[1.0, -1.0]]).repeat(x.shape[0], 1).T @ x,
    "public weights": lambda x: torch.mv(x.T, torch.linspace(-1.5, 1, x.shape[0]).to(x.dtype)),
    "moments": lambda x: x.T @ x,
    "mixed moments": lambda x: x.T @ x.tanh(),
    "groups": lambda x: (x[:, :1].clamp(0, 2.5).long() == torch.arange(3)).float().T @ x,
    "histogram": lambda x: torch.histc(x, 4, -1.0, 1.0),
    "bins": lambda x: torch.bincount(x[:, 0].clamp(-3, 9).long(), minlength=4),
    "weighted bins": lambda x: torch.bincount(x[:, 0].clamp(-3, 9).long(), x[:, -1], minlength=4),
    "count": lambda x: (x > 0.2).sum(),
    "flat": lambda x: x.reshape(-1).sum(0),
    "dot": lambda x: torch.dot(x[:, 0], x[:, -1]),
    "vector times rows": lambda x: torch.linspace(-2, 1, x.shape[0]) @ x,
    "several weights": lambda x: torch.bmm(torch.stack([x.T, x.T.abs()]), cube(2, x.shape[0], 3)),
    "several whole weights": lambda x: torch.bmm(cube(2, 2, x.shape[0]).round(), torch.stack([x, -x])),
    "several moments": lambda x: torch.bmm(torch.stack([x.T, x.T.tanh()]), torch.stack([x, x.abs()])),
    "einsum": lambda x: torch.einsum("bi,bj->ij", x, x.clamp(-1, 1)),
    "mv": lambda x: torch.mv(x.T, torch.linspace(0.1, 3, x.shape[0])),
    "none": lambda x: x,
}
# What goes on from aggregates.
AFTER: dict[str, Op] = {
    "scale": lambda a: a * -3.1,
    "weights": lambda a: a * torch.linspace(0.3, 2, a.shape[-1]) if a.dim() else a * 0.1,
    "divide": lambda a: a / 7.3,
    "shift": lambda a: a + 1e6,
    "negative": lambda a: 2 - a,
    "twice": lambda a: a + a,
    "difference": lambda a: a - a.flip([0]) if a.dim() else a,
    "sum": lambda a: a.sum(-1) if a.dim() else a,
    "mean": lambda a: a.mean() if a.dtype.is_floating_point else a,
    "running": lambda a: a.cumsum(0) if a.dim() else a,
    "relu": torch.relu,
    "abs": torch.abs,
    "clamp": lambda a: a.clamp(-0.75, 1.25) if a.dtype.is_floating_point else a,
    "sigmoid": lambda a: a.sigmoid() if a.dtype.is_floating_point else a,
    "gelu": lambda a: torch.nn.functional.gelu(a) if a.dtype.is_floating_point else a,
    "larger": lambda a: torch.maximum(a, -a),
    "part": lambda a: a[:1] if a.dim() else a,
    "columns": lambda a: a.reshape(-1)[::2] if a.dim() else a,
    "twice over": lambda a: torch.cat([a, a]) if a.dim() else torch.stack([a, a]),
    "expand": lambda a: a.unsqueeze(0).expand(3, *a.shape),
    "linear": lambda a: a @ torch.linspace(-2, 3, 2 * a.shape[-1]).view(a.shape[-1], 2) if a.dim() == 2 and a.is_floating_point() else a,
    "vector": lambda a: torch.mv(torch.ones(2, a.shape[0]) / 3, a) if a.dim() == 1 and a.is_floating_point() else a,
    "row vector": lambda a: a @ cube(1, a.shape[0], 3)[0] if a.dim() == 1 and a.is_floating_point() else a,
    "several": lambda a: torch.bmm(torch.stack([a, -a]), cube(2, a.shape[-1], 2)) if a.dim() == 2 and a.is_floating_point() else a,
    "addcmul": lambda a: torch.addcmul(a, a, torch.full((1,), 0.3), value=-2) if a.is_floating_point() else a,
    "addcmul to public": lambda a: torch.addcmul(torch.ones(1), torch.full((1,), -1.1), a) if a.is_floating_point() else a,
    "addcmul of public": lambda a: torch.addcmul(a, torch.full((1,), 1 / 3), torch.full((1,), 3.0)) if a.is_floating_point() else a,
    "choose": lambda a: torch.where(torch.tensor(True), a, -a),
    "fill": lambda a: a.masked_fill(torch.tensor(False), 3.0),
}


@st.composite
def tables(draw: st.DrawFn) -> Tensor:
    """Rows that are ordinary, large, at the bounds, or nothing."""
    rows, columns = draw(st.integers(2, 6)), draw(st.integers(3, 4))
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(draw(st.integers(0, 2**16))))
    row_scale = draw(st.lists(st.sampled_from([0.0, 0.01, 1.0, 3.0, 1e4]), min_size=rows, max_size=rows))
    return x * torch.tensor(row_scale).unsqueeze(1)


def run(table: Tensor, steps: list[Op], bounds: tuple[float, float] | None) -> Rows | Aggregate:
    """What the chain makes of the table, as the backend holds it. Steps that it refuses are left out: by public facts, the same for all."""
    with Session(recorder=MemoryRecorder()):
        x: Any = protect(table, DP(unit="row", dataset="t", bounds=bounds))
        for step in steps:
            try:
                x = step(x)
            except (UnsupportedOp, InvalidInput):
                continue
        payload = x._state.payload
        assert isinstance(payload, (Rows, Aggregate))
        return payload


def check(table: Tensor, steps: list[Op], bounds: tuple[float, float] | None) -> None:
    base = run(table, steps, bounds)
    if isinstance(base, Rows):
        finite = torch.isfinite(base.value)
        slack = 1e-9 * (1 + base.value[finite].abs().max()) if finite.any() else 0.0
        low, high = (b.expand(base.shape)[finite] for b in base.range)
        assert (base.value[finite] >= low - slack).all() and (base.value[finite] <= high + slack).all(), "a value outside its range"
        return
    assert torch.isfinite(base.value).all() and (base.value.abs() <= base.peak * (1 + 1e-9) + 1e-9).all()
    for row in range(len(table)):
        other = table.clone()
        other[row] = math.nan
        there = run(other, steps, bounds)
        assert isinstance(there, Aggregate) and (there.l1, there.l2) == (base.l1, base.l2), "a sensitivity that depends on the data"
        change = (there.value - base.value).abs()
        assert (change <= base.each).all(), f"row {row}: {change} above {base.each}"
        assert float(change.sum()) <= base.l1 * (1 + 1e-12) and float(torch.linalg.vector_norm(change)) <= base.l2 * (1 + 1e-12)


@settings(max_examples=300)
@given(
    table=tables(),
    bounds=st.sampled_from([None, (-2.0, 2.0), (0.5, 3.0), (-1e4, 1e4)]),
    rows=st.lists(st.sampled_from(sorted(ROWS)), max_size=4),
    total=st.sampled_from(sorted(SUMS)),
    after=st.lists(st.sampled_from(sorted(AFTER)), max_size=3),
)
def test_a_unit_changes_no_more_than_is_tracked(
    table: Tensor, bounds: tuple[float, float] | None, rows: list[str], total: str, after: list[str]
) -> None:
    check(table, [*(ROWS[r] for r in rows), SUMS[total], *(AFTER[a] for a in after)], bounds)


@pytest.mark.parametrize("total", sorted(SUMS))
@pytest.mark.parametrize("row", sorted(ROWS))
def test_every_pair(row: str, total: str) -> None:
    table = torch.tensor([[3.0, -1.0, 0.25], [-40.0, 2.0, 1.0], [0.5, 0.5, -7.0], [1e4, 0.0, 1.0]])
    check(table, [ROWS[row], SUMS[total]], (-8.0, 8.0))
    check(table, [lambda x: torch.renorm(x, 2, 0, 2.0), ROWS[row], SUMS[total]], None)


@pytest.mark.parametrize("after", sorted(AFTER))
@pytest.mark.parametrize("total", ["sum", "moments", "count", "all"])
def test_every_map_of_an_aggregate(total: str, after: str) -> None:
    table = torch.tensor([[3.0, -1.0, 0.25], [-4.0, 2.0, 1.0], [0.5, 0.5, -7.0]])
    check(table, [SUMS[total], AFTER[after]], (-8.0, 8.0))


def test_the_chains_are_mostly_taken() -> None:
    """The tests above leave out what is refused: it must not be everything."""
    table, taken = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)), 0
    with Session(recorder=MemoryRecorder()):
        x = protect(table, DP(unit="row", dataset="t", bounds=(-2, 2)))
        for step in (*ROWS.values(), *SUMS.values()):
            try:
                step(x)
                taken += 1
            except (UnsupportedOp, InvalidInput):
                continue
    assert taken >= len(ROWS) + len(SUMS) - 2


def at_its_bounds(rows: int) -> Tensor:
    """Rows that use their range up to its end, beside rows of every size: rounding errors then have nothing to hide behind."""
    generator = torch.Generator().manual_seed(rows)
    table = torch.randn(rows, 2, generator=generator, dtype=torch.float64) * torch.logspace(-9, 0, rows, dtype=torch.float64).unsqueeze(1)
    table[::3] *= 1e12
    return table


@pytest.mark.parametrize("rows", [10, 1000, 30_000])
@pytest.mark.parametrize("total", ["sum", "mean", "moments", "public weights", "public groups", "groups", "running"])
def test_rounding_errors_of_all_rows_do_not_count_for_one(rows: int, total: str) -> None:
    table = at_its_bounds(rows)
    base = run(table, [SUMS[total]], (-0.3, 0.3))
    assert isinstance(base, Aggregate)
    for row in range(0, rows, 3 * max(1, rows // 60)):
        other = table.clone()
        other[row] = math.nan
        change = (run(other, [SUMS[total]], (-0.3, 0.3)).value - base.value).abs()
        assert (change <= base.each).all() and float(torch.linalg.vector_norm(change)) <= base.l2


@pytest.mark.parametrize("after", sorted(AFTER))
def test_rounding_of_what_follows_is_in_the_sensitivity(after: str) -> None:
    table, steps = at_its_bounds(30), [SUMS["sum"], AFTER[after]]
    check(table, steps, (-0.3, 0.3))
    check(table, [SUMS["mean"], AFTER["shift"], AFTER[after]], (-0.3, 0.3))


def test_sums_are_right() -> None:
    table = at_its_bounds(1000)
    for total, exact in (("sum", table.clamp(-0.3, 0.3).sum(0)), ("mean", table.clamp(-0.3, 0.3).mean(0))):
        torch.testing.assert_close(run(table, [SUMS[total]], (-0.3, 0.3)).value, exact, rtol=0, atol=1e-9)


def test_what_is_unbounded_is_not_released() -> None:
    with Session(recorder=MemoryRecorder()), pytest.raises((UnboundedSensitivity, LedgerError)):
        reveal(protect(torch.zeros(3, 2), DP(unit="row", dataset="t")), release=Gaussian(std=1.0))
