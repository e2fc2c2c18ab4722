"""What one example adds has at most norm C, also where its gradient has millions of entries: that norm is the noise's scale."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from privtensors.train.bounding import make_bounder
from privtensors.train.bounding.sums import row_squares

C = 0.5
# Output width, input width, length: which method bounds the layer follows from them.
SHAPES = {"outer": (3000, 4000, 1), "instantiate": (700, 900, 1500), "gram": (2000, 1500, 300)}


class Mean(nn.Module):
    def __init__(self, out: int, into: int) -> None:
        super().__init__()
        self.layer = nn.Linear(into, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).square().mean((1, 2))


@pytest.mark.parametrize("engine", ["bookkeeping", "loop"])
@pytest.mark.parametrize("method", SHAPES)
def test_what_one_example_adds_is_no_longer_than_the_clipping_norm(method: str, engine: str) -> None:
    torch.manual_seed(0)
    out, into, length = SHAPES[method]
    model = Mean(out, into)
    # The second example's gradient is not finite and adds nothing: what is left is the first one's, among others in the batch.
    x = torch.randn(2, length, into)
    x[1] = math.inf
    bounder = make_bounder(model, C, engine="loop" if engine == "loop" else "bookkeeping")
    bounder.accumulate({"x": torch.randn(2, length, into)}, lambda batch: 1e3 * model(batch["x"]).mean(), 2)  # examined here
    bounder.take()
    bounder.accumulate({"x": x}, lambda batch: 1e3 * model(batch["x"]).mean(), 2)
    total = math.sqrt(sum(float(t.double().square().sum()) for t in bounder.take().values()))
    assert C * (1 - 1e-5) < total <= C * (1 + 1e-6)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 3_000_001])
def test_squares_are_those_of_float64(size: int) -> None:
    rows = torch.randn(3, size, generator=torch.Generator().manual_seed(size))
    torch.testing.assert_close(row_squares(rows), rows.double().square().sum(1), rtol=5e-7, atol=0)


def test_rows_are_only_read() -> None:
    rows = torch.randn(2, 700, dtype=torch.float64)
    before = rows.clone()
    torch.testing.assert_close(row_squares(rows), before.square().sum(1), rtol=1e-14, atol=0)
    assert torch.equal(rows, before)
