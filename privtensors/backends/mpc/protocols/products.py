"""Matrix products in Z_2^64 on any device.

torch multiplies int64 matrices on the CPU only. Elsewhere each operand is cut into three balanced limbs of 22, 22 and 20
bits, whose products are whole numbers that float64 holds exactly; what would only reach 2^64 and above is left out, so
three float64 products are enough. (Exact products by error-free splitting: Ozaki, Ogita, Oishi and Rump, 2012.)
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

_LIMB: Final = 22
_TOP: Final = 64 - 2 * _LIMB
# |limb| <= 2^21, the top one's 2^19: the sum of the third product stays below 1.5 · 2^42 · 1024 < 2^53.
_DEPTH: Final = 1024


def matmul(x: Tensor, y: Tensor) -> Tensor:
    """``x @ y`` modulo 2^64 for int64 matrices and batches of them, as ``torch.matmul``."""
    if x.device.type == "cpu":
        return torch.matmul(x, y)
    return matmul_by_limbs(x, y)


def matmul_by_limbs(x: Tensor, y: Tensor) -> Tensor:
    """:func:`matmul` by float64 products of limbs; the same result on every device.

    Args:
        x: int64, ``(…, n, k)``.
        y: int64, ``(…, k, m)``.
    """
    out: Tensor | None = None
    for start in range(0, max(x.shape[-1], 1), _DEPTH):
        part = _block(x[..., start : start + _DEPTH], y[..., start : start + _DEPTH, :])
        out = part if out is None else out.add_(part)
    assert out is not None
    return out


def _block(x: Tensor, y: Tensor) -> Tensor:
    (a, b, c), (d, e, f) = _limbs(x), _limbs(y)
    out = torch.matmul(torch.cat([a, b, c], -1), torch.cat([f, e, d], -2)).to(torch.int64) << _LIMB
    out += torch.matmul(torch.cat([a, b], -1), torch.cat([e, d], -2)).to(torch.int64)
    out <<= _LIMB
    out += torch.matmul(a, d).to(torch.int64)
    return out


def _limbs(words: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Signed limbs, lowest first, float64: ``words = a + b · 2^22 + c · 2^44`` modulo 2^64."""
    low = _signed(words, _LIMB)
    rest = (words - low) >> _LIMB
    middle = _signed(rest, _LIMB)
    high = _signed((rest - middle) >> _LIMB, _TOP)
    return low.to(torch.float64), middle.to(torch.float64), high.to(torch.float64)


def _signed(words: Tensor, bits: int) -> Tensor:
    half = 1 << (bits - 1)
    return ((words + half) & ((1 << bits) - 1)) - half
