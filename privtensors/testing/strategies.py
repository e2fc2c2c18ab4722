"""Hypothesis strategies for tensors: small shapes with zero-size and broadcast axes, in every memory layout."""

from __future__ import annotations

from typing import Final

import torch
from hypothesis import strategies as st
from torch import Tensor

LAYOUTS: Final = ("contiguous", "transposed", "strided", "reversed axes", "offset")


def shapes(*, min_dims: int = 0, max_dims: int = 3, max_side: int = 5) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes of up to ``max_dims`` axes of 0 to ``max_side`` elements."""
    return st.lists(st.integers(0, max_side), min_size=min_dims, max_size=max_dims).map(tuple)


@st.composite
def broadcast_pairs(draw: st.DrawFn, max_dims: int = 3) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two shapes that broadcast: axes set to one, or leading axes dropped, in either."""
    full = draw(shapes(max_dims=max_dims))

    def reduced() -> tuple[int, ...]:
        kept = full[draw(st.integers(0, len(full))) :]
        return tuple(1 if draw(st.booleans()) else n for n in kept)

    return (full, reduced()) if draw(st.booleans()) else (reduced(), full)


@st.composite
def tensors(draw: st.DrawFn, shape: tuple[int, ...], scale: float = 3.0) -> Tensor:
    """A float32 tensor of ``shape``: normal values times ``scale``, in one of :data:`LAYOUTS`."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    layout = draw(st.sampled_from(LAYOUTS))
    x = torch.randn(shape, generator=generator) * scale
    if layout == "transposed" and x.dim() >= 2:
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "reversed axes":
        axes = tuple(reversed(range(x.dim())))
        return x.permute(axes).contiguous().permute(axes)
    if layout == "strided" and x.dim():
        wide = torch.randn((*shape[:-1], 2 * shape[-1]), generator=generator)
        wide[..., ::2] = x
        return wide[..., ::2]
    if layout == "offset":
        store = torch.randn(x.numel() + 3, generator=generator)
        store[3:] = x.flatten()
        return store[3:].view(shape)
    return x
