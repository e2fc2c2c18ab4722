"""The dealer: correlated randomness, made without seeing any input.

Party 0 expands everything from its seed. Party 1 expands its share of a plain mask from its own seed, and receives a
correction for everything that depends on a mask. The dealer sees shapes and the masks it makes, nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from privtensors.backends.mpc.randomness import Prg
from privtensors.core.meter import Meter
from privtensors.errors import ParameterError

_BYTES: Final = {torch.int64: 8, torch.int32: 4, torch.int16: 2, torch.int8: 1}


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """A uniform mask: shares of shape ``(parties, *shape)`` and the dealer's view of their sum (or XOR)."""

    shares: Tensor
    value: Tensor

    def __repr__(self) -> str:
        return f"Mask(shape={tuple(self.value.shape)})"


class Dealer:
    """Makes correlated randomness for both parties of this process; its time is counted as offline.

    Args:
        meter: Counts dealer bytes and offline seconds.
        seeds: The two parties' 32-byte seeds, for tests only; default fresh from the operating system.
        input_seed: The input owner's 32-byte seed, for tests only; default fresh from the operating system.

    Raises:
        ParameterError: The two seeds are equal.
    """

    def __init__(self, meter: Meter, seeds: tuple[bytes, bytes] | None = None, input_seed: bytes | None = None) -> None:
        if seeds is not None and seeds[0] == seeds[1]:
            raise ParameterError("both parties have the same seed, so their masks cancel", where="Dealer", fix="give two different seeds")
        self.meter = meter
        self._streams = (Prg(seeds[0]), Prg(seeds[1])) if seeds else (Prg(), Prg())
        self._inputs = Prg(input_seed)  # stands for the input owner's own generator

    def __repr__(self) -> str:
        return "Dealer(seeds=hidden)"

    def mask(self, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> Mask:
        """A fresh uniform additive mask; no dealer traffic, both shares come from seeds."""
        with self.meter.offline():
            shares = self._streams[0].pair(self._streams[1], shape, dtype)
            return Mask(shares, shares[0] + shares[1])

    def xor_mask(self, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> Mask:
        """A fresh uniform boolean mask."""
        with self.meter.offline():
            shares = self._streams[0].pair(self._streams[1], shape, dtype)
            return Mask(shares, shares[0] ^ shares[1])

    def share(self, value: Tensor, bits: int | None = None) -> Tensor:
        """Additive shares of a value the dealer knows; party 1 receives a correction of ``bits`` bits per word."""
        with self.meter.offline():
            shares = self._streams[0].first_of_pair(tuple(value.shape), value.dtype)
            torch.sub(value, shares[0], out=shares[1])
            self._count(value, bits)
            return shares

    def xor_share(self, value: Tensor, bits: int | None = None) -> Tensor:
        """Boolean shares of a value the dealer knows."""
        with self.meter.offline():
            shares = self._streams[0].first_of_pair(tuple(value.shape), value.dtype)
            torch.bitwise_xor(value, shares[0], out=shares[1])
            self._count(value, bits)
            return shares

    def input_shares(self, words: Tensor) -> Tensor:
        """Shares of an input: one uniform from a generator seeded by the operating system, the other its complement."""
        shares = self._inputs.first_of_pair(tuple(words.shape), words.dtype)
        torch.sub(words, shares[0], out=shares[1])
        return shares

    def correction(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Shares of shape ``(2, *shape)`` whose row 1 the caller fills with ``value - row 0``; counted as dealer traffic."""
        with self.meter.offline():
            shares = self._streams[0].first_of_pair(shape, dtype)
            self.meter.dealer_bytes += math.prod(shape) * _BYTES[dtype]
            return shares

    def _count(self, value: Tensor, bits: int | None) -> None:
        width = 8 * _BYTES[value.dtype] if bits is None else bits
        self.meter.dealer_bytes += (value.numel() * width + 7) // 8
