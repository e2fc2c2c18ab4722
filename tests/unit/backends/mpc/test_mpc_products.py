"""Ring products by limbs are the ring's own products, whatever the words."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from privtensors.backends.mpc.protocols.products import matmul_by_limbs

EDGES = [-(1 << 63), (1 << 63) - 1, -1, 0, 1, (1 << 21) - 1, 1 << 21, -(1 << 21), (1 << 43) - 1, 1 << 43, (1 << 62) + (1 << 21)]


@given(st.integers(0, 4), st.integers(1, 5), st.integers(0, 40), st.integers(1, 5), st.integers(0, 2**32))
def test_limbs_multiply_in_the_ring(batch: int, n: int, k: int, m: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    lead = (batch,) if batch else ()
    x, y = (torch.randint(-(1 << 63), (1 << 63) - 1, (*lead, *shape), generator=generator) for shape in ((n, k), (k, m)))
    assert torch.equal(matmul_by_limbs(x, y), torch.matmul(x, y))


@pytest.mark.parametrize("depth", [1023, 1024, 1025, 3000])
def test_the_largest_limbs_add_up_exactly(depth: int) -> None:
    """All limbs at their extremes: the float64 sums reach the bound that was computed for them."""
    for word in (-((1 << 21) | (1 << 43) | (1 << 63)), *EDGES):
        word = (word + (1 << 63)) % (1 << 64) - (1 << 63)
        x, y = torch.full((2, depth), word), torch.full((depth, 2), word)
        assert torch.equal(matmul_by_limbs(x, y), torch.matmul(x, y))


def test_edges_and_broadcast_batches() -> None:
    x = torch.tensor(EDGES).view(1, 1, -1).expand(3, 2, -1)
    y = torch.tensor(EDGES[::-1]).view(-1, 1).expand(-1, 4)
    assert torch.equal(matmul_by_limbs(x, y), torch.matmul(x, y))
