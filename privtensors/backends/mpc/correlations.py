"""Correlated randomness at one computing party: expanded from its seed; party 1 also reads the dealer's corrections."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from privtensors.backends.mpc.dealer import Fill, Mask
from privtensors.backends.mpc.hidden import UNKNOWN, Hidden, Make
from privtensors.backends.mpc.randomness import WIDTH, Prg
from privtensors.core.meter import Meter
from privtensors.errors import CorrelationError, ParameterError
from privtensors.transport.base import packed_size, unpack

ALIGN = 8  # every correction starts at a multiple of so many bytes


def padded(size: int) -> int:
    """``size`` bytes with what aligns the next correction."""
    return -(-size // ALIGN) * ALIGN


class Stream(Protocol):
    """Where party 1 reads the dealer's corrections."""

    def take(self, size: int) -> memoryview:
        """Exactly ``size`` bytes, writable, the caller's to keep.

        Raises:
            TransportError: They do not come.
            CorrelationError: There are no more.
        """

    def finish(self) -> None:
        """Raises CorrelationError where corrections are left over."""


class PartyCorrelations:
    """What a protocol draws from at party 0 or 1. Nothing can be drawn outside :meth:`begin` and :meth:`end`.

    Args:
        meter: Counts dealer bytes (at party 1) and offline seconds.
        party: Which party this is.
        input_seeds: The two owners' 32-byte seeds, party 0's and party 1's, known to both: an owner's input is masked
            with words expanded from its seed, which are the other party's share.
        device: Where the shares are wanted; None for the CPU.

    Raises:
        ParameterError: No such party, or equal seeds.
    """

    def __init__(self, meter: Meter, party: int, input_seeds: tuple[bytes, bytes], device: torch.device | None = None) -> None:
        if party not in (0, 1) or input_seeds[0] == input_seeds[1]:
            raise ParameterError("party must be 0 or 1, and the seeds differ", where="PartyCorrelations", fix="draw a fresh seed per owner")
        self.meter, self.party = meter, party
        self._inputs = (Prg(input_seeds[0], device), Prg(input_seeds[1], device))
        self._device = device
        self._prg: Prg | None = None
        self._stream: Stream | None = None

    def __repr__(self) -> str:
        return f"PartyCorrelations(party={self.party}, seeds=hidden)"

    def begin(self, seed: bytes, stream: Stream | None) -> None:
        """Start on fresh correlations.

        Args:
            seed: This party's 32-byte seed for them. Never the same twice: that would reuse every mask.
            stream: The corrections, at party 1; None at party 0.

        Raises:
            ParameterError: A stream at party 0, or none at party 1.
            CorrelationError: The last ones were not ended.
        """
        if (stream is None) != (self.party == 0):
            raise ParameterError("corrections are party 1's", where="PartyCorrelations.begin", fix="give a stream to party 1 only")
        if self._prg is not None:
            raise CorrelationError("the last correlations are still in use", where="mpc", fix="call end() first")
        self._prg, self._stream = Prg(seed, self._device), stream

    def end(self) -> None:
        """Done with them; what was not used is burnt.

        Raises:
            CorrelationError: Corrections are left over: the parties did not run the program that was dealt for.
        """
        stream, self._prg, self._stream = self._stream, None, None
        if stream is not None:
            stream.finish()

    def abandon(self) -> None:
        """Forget them after an error."""
        self._prg = self._stream = None

    def _words(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if self._prg is None:
            raise CorrelationError("no correlations were dealt for this", where="mpc", fix="run protocols inside a request")
        return self._prg.words((1, *shape), dtype)

    def _corrected(self, shape: tuple[int, ...], dtype: torch.dtype, bits: int | None) -> Tensor:
        with self.meter.offline():
            if self.party == 0:
                return self._words(shape, dtype)
            if self._stream is None:
                raise CorrelationError("no correlations were dealt for this", where="mpc", fix="run protocols inside a request")
            full = 8 * WIDTH[dtype]
            bits = full if bits is None else bits
            count = 1
            for n in shape:
                count *= n
            size = packed_size(count, bits)
            self.meter.dealer_bytes += size
            data = self._stream.take(padded(size))[:size]
            if bits == full and count:
                words = torch.frombuffer(data, dtype=dtype).view(1, *shape)
            else:
                words = unpack(data, bits, (1, *shape)).to(dtype)
            return words if self._device is None else words.to(self._device)

    def mask(self, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> Mask:
        """See :class:`~privtensors.backends.mpc.dealer.Correlations`."""
        with self.meter.offline():
            return Mask(self._words(shape, dtype), UNKNOWN)

    def xor_mask(self, shape: tuple[int, ...], dtype: torch.dtype = torch.int64, bits: int | None = None) -> Mask:
        """See :class:`~privtensors.backends.mpc.dealer.Correlations`."""
        with self.meter.offline():
            words = self._words(shape, dtype)
            return Mask(words if bits is None else words.bitwise_and_((1 << bits) - 1), UNKNOWN)

    def mask_of(self, party: int, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> Mask:
        """See :class:`~privtensors.backends.mpc.dealer.Correlations`."""
        with self.meter.offline():
            return Mask(self._words(shape, dtype) if party == self.party else torch.zeros(1, *shape, dtype=dtype), UNKNOWN)

    def share(
        self, make: Make, *parents: Hidden, shape: tuple[int, ...], dtype: torch.dtype = torch.int64, bits: int | None = None
    ) -> Tensor:
        """See :class:`~privtensors.backends.mpc.dealer.Correlations`."""
        return self._corrected(shape, dtype, bits)

    def xor_share(
        self, make: Make, *parents: Hidden, shape: tuple[int, ...], dtype: torch.dtype = torch.int64, bits: int | None = None
    ) -> Tensor:
        """See :class:`~privtensors.backends.mpc.dealer.Correlations`."""
        return self._corrected(shape, dtype, bits)

    def filled(self, fill: Fill, parent: Hidden, *, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """See :class:`~privtensors.backends.mpc.dealer.Correlations`."""
        return self._corrected(shape, dtype, None)

    def input_shares(self, words: Tensor, owner: int) -> Tensor:
        """See :class:`~privtensors.backends.mpc.dealer.Correlations`."""
        given = self._inputs[owner].words((1, *words.shape), words.dtype)
        return words - given if owner == self.party else given
