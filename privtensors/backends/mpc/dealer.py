"""Correlated randomness, made without seeing any input, and the dealer that makes it for both parties of one process.

Party 0 expands everything from its seed. Party 1 expands its share of a plain mask from its own seed, and receives a
correction for everything that depends on a mask. The dealer sees shapes and the masks it makes, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from privtensors.backends.mpc.hidden import Hidden, Make
from privtensors.backends.mpc.randomness import WIDTH, Prg
from privtensors.core.meter import Meter
from privtensors.errors import ParameterError
from privtensors.transport.base import packed_size

# Writes ``value - base`` into ``out``, block by block: for tables too large to be made whole before they are shared.
Fill = Callable[[Tensor, Tensor, Tensor], None]


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """A uniform mask: shares of shape ``(parties held here, *shape)``, and the dealer's node of their sum (or XOR)."""

    shares: Tensor
    hidden: Hidden

    def __repr__(self) -> str:
        return f"Mask(shape={tuple(self.shares.shape[1:])})"


class Correlations(Protocol):
    """Where a protocol gets its randomness. In one process, at a computing party and at the dealer alike, calls come in
    the same order with the same shapes, or the parties do not go on."""

    def mask(self, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> Mask:
        """A fresh uniform additive mask; no dealer traffic, both shares come from seeds."""

    def xor_mask(self, shape: tuple[int, ...], dtype: torch.dtype = torch.int64, bits: int | None = None) -> Mask:
        """A fresh uniform boolean mask of the low ``bits`` bits; zero above them."""

    def mask_of(self, party: int, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> Mask:
        """Fresh uniform words that ``party`` and the dealer know and the other party does not: the other's share is zero."""

    def share(
        self, make: Make, *parents: Hidden, shape: tuple[int, ...], dtype: torch.dtype = torch.int64, bits: int | None = None
    ) -> Tensor:
        """Additive shares of ``make(*parents)``, a tensor of ``shape`` and ``dtype``; valid modulo ``2^bits``."""

    def xor_share(
        self, make: Make, *parents: Hidden, shape: tuple[int, ...], dtype: torch.dtype = torch.int64, bits: int | None = None
    ) -> Tensor:
        """Boolean shares of ``make(*parents)``; bits at and above ``bits`` are junk."""

    def filled(self, fill: Fill, parent: Hidden, *, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Additive shares of a large table; ``fill(value of parent, base, out)`` writes the table minus ``base`` into ``out``."""

    def input_shares(self, words: Tensor, owner: int) -> Tensor:
        """Shares of an input that party ``owner`` holds: the other's from the owner's generator, the owner's the rest.

        Args:
            words: The fixed-point words; at the other party and at the dealer only the shape counts.
        """


class Dealer:
    """Makes correlated randomness for both parties of this process; its time is counted as offline.

    Args:
        meter: Counts dealer bytes and offline seconds.
        seeds: The two parties' 32-byte seeds, for tests only; default fresh from the operating system.
        input_seeds: The two input owners' 32-byte seeds, for tests only; default fresh from the operating system.
        device: Where the shares are wanted; None for the CPU.

    Raises:
        ParameterError: Two seeds are equal.
    """

    def __init__(
        self,
        meter: Meter,
        seeds: tuple[bytes, bytes] | None = None,
        input_seeds: tuple[bytes, bytes] | None = None,
        device: torch.device | None = None,
    ) -> None:
        for pair in (seeds, input_seeds):
            if pair is not None and pair[0] == pair[1]:
                raise ParameterError("both parties have the same seed, so their masks cancel", where="Dealer", fix="give different seeds")
        self.meter = meter
        first, second = seeds or (None, None)
        self._streams = (Prg(first, device), Prg(second, device))
        # They stand for the owners' own generators.
        first, second = input_seeds or (None, None)
        self._inputs = (Prg(first, device), Prg(second, device))

    def __repr__(self) -> str:
        return "Dealer(seeds=hidden)"

    def mask(self, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> Mask:
        """See :class:`Correlations`."""
        with self.meter.offline():
            shares = self._streams[0].pair(self._streams[1], shape, dtype)
            return Mask(shares, Hidden(value=shares[0] + shares[1]))

    def xor_mask(self, shape: tuple[int, ...], dtype: torch.dtype = torch.int64, bits: int | None = None) -> Mask:
        """See :class:`Correlations`."""
        with self.meter.offline():
            shares = self._streams[0].pair(self._streams[1], shape, dtype)
            if bits is not None:
                shares.bitwise_and_((1 << bits) - 1)
            return Mask(shares, Hidden(value=shares[0] ^ shares[1]))

    def mask_of(self, party: int, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> Mask:
        """See :class:`Correlations`."""
        with self.meter.offline():
            shares = torch.zeros(2, *shape, dtype=dtype)
            shares[party] = self._streams[party].words(shape, dtype)
            return Mask(shares, Hidden(value=shares[party]))

    def share(
        self, make: Make, *parents: Hidden, shape: tuple[int, ...], dtype: torch.dtype = torch.int64, bits: int | None = None
    ) -> Tensor:
        """See :class:`Correlations`."""
        with self.meter.offline():
            value = make(*(parent.value() for parent in parents))
            shares = self._streams[0].first_of_pair(shape, dtype)
            torch.sub(value, shares[0], out=shares[1])
            self._count(shares[1], bits)
            return shares

    def xor_share(
        self, make: Make, *parents: Hidden, shape: tuple[int, ...], dtype: torch.dtype = torch.int64, bits: int | None = None
    ) -> Tensor:
        """See :class:`Correlations`."""
        with self.meter.offline():
            value = make(*(parent.value() for parent in parents))
            shares = self._streams[0].first_of_pair(shape, dtype)
            torch.bitwise_xor(value, shares[0], out=shares[1])
            self._count(shares[1], bits)
            return shares

    def filled(self, fill: Fill, parent: Hidden, *, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """See :class:`Correlations`."""
        with self.meter.offline():
            shares = self._streams[0].first_of_pair(shape, dtype)
            fill(parent.value(), shares[0], shares[1])
            self._count(shares[1], None)
            return shares

    def input_shares(self, words: Tensor, owner: int) -> Tensor:
        """See :class:`Correlations`."""
        given = self._inputs[owner].words(tuple(words.shape), words.dtype)
        rows = (words - given, given) if owner == 0 else (given, words - given)
        return torch.stack(rows)

    def _count(self, words: Tensor, bits: int | None) -> None:
        self.meter.dealer_bytes += packed_size(words.numel(), 8 * WIDTH[words.dtype] if bits is None else bits)
