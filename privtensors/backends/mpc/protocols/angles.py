"""cos and sin of public words, the same to the last bit on every host.

Both parties multiply shares by numbers made of these: where they differ in one bit, what their shares add up to is random.
A library's cos follows the processor (vector width, fused multiply-add, CPU or GPU), so here every step is one operation
that IEEE 754 rounds in one way only: a table at 1024 points of the circle, a short series beyond them, and products and
sums that torch computes apart, never fused (``addcmul``, ``alpha=``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from privtensors.backends.mpc.fits import precise

TABLE_BITS: Final = 10


def _circle() -> tuple[Tensor, Tensor]:
    mp, count = precise(), 1 << TABLE_BITS
    points = [mp.cos_sin(2 * mp.pi * j / count) for j in range(count)]
    return tuple(torch.tensor([float(p[i]) for p in points], dtype=torch.float64) for i in (0, 1))  # type: ignore[return-value]


_COSINES, _SINES = _circle()


def cos_sin(words: Tensor, period_bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of ``2π · words / 2^period_bits``, right to two units in the last place of ``dtype``.

    Args:
        words: int32 or int64, any shape; only the low ``period_bits`` count.
        period_bits: 10 to 62.
        dtype: float32 or float64.
    """
    fine = period_bits - TABLE_BITS
    coarse = (words >> fine) & ((1 << TABLE_BITS) - 1)
    rest = (words & ((1 << fine) - 1)).to(dtype)
    return _beyond(coarse, rest.mul_(2 * math.pi / 2.0**period_bits))


def cos_sin_by_row(words: Tensor, period_bits: Sequence[int]) -> tuple[Tensor, Tensor]:
    """As :func:`cos_sin`, float64, over several periods of 1 to 62 bits: one for each row of ``words``, which may be one row for all."""
    shape = (len(period_bits), *[1] * (words.dim() - 1))
    fine = torch.tensor([max(0, bits - TABLE_BITS) for bits in period_bits]).view(shape)
    up = torch.tensor([max(0, TABLE_BITS - bits) for bits in period_bits]).view(shape)
    unit = torch.tensor([2 * math.pi / 2.0**bits for bits in period_bits], dtype=torch.float64).view(shape)
    coarse = ((words << up) >> fine) & ((1 << TABLE_BITS) - 1)
    rest = (words & ((torch.ones_like(fine) << fine) - 1)).to(torch.float64)
    return _beyond(coarse, rest.mul_(unit))


def _beyond(coarse: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of ``2π · coarse / 1024 + y``, for y from 0 to 2π / 1024; y is written over."""
    cos, sin = (_looked_up(t, coarse, y.dtype) for t in (_COSINES, _SINES))
    square = y * y
    # Taylor: the first term left out is below 2^-26 of the result in float32, 2^-60 in float64.
    if y.dtype == torch.float32:
        sin_y = square.mul(-1 / 6).add_(1.0).mul_(y)
        cos_y = square.mul_(-0.5).add_(1.0)
    else:
        sin_y = square.mul(1 / 120).add_(-1 / 6).mul_(square).add_(1.0).mul_(y)
        cos_y = square.mul(-1 / 720).add_(1 / 24).mul_(square).add_(-0.5).mul_(square).add_(1.0)
    first, second = cos * sin_y, sin * sin_y
    return cos.mul_(cos_y).sub_(second), sin.mul_(cos_y).add_(first)


def _looked_up(table: Tensor, index: Tensor, dtype: torch.dtype) -> Tensor:
    return table.to(index.device, dtype).index_select(0, index.reshape(-1)).view(index.shape)


def turn(cos: Tensor, sin: Tensor, by_cos: Tensor, by_sin: Tensor, out: tuple[Tensor, Tensor], spare: Tensor) -> None:
    """cos and sin of the sum of two angles, into ``out``, in six operations that round in one way only."""
    torch.mul(cos, by_cos, out=out[0])
    torch.mul(sin, by_sin, out=spare)
    out[0].sub_(spare)
    torch.mul(cos, by_sin, out=out[1])
    torch.mul(sin, by_cos, out=spare)
    out[1].add_(spare)
