"""What checked ranges keep between operations: one 64-bit word per forward, shared, that is zero while every value was in range.

A range check gives XOR-shared words that are zero for a value inside and not zero outside. They are never kept: a random
GF(2)-linear map takes the words of an operation to 64 bits, so that a word that is not zero stays so but for a chance of
2^-40 (Toeplitz hashing: Krawczyk, CRYPTO 1994). The map is expanded from words that were opened under masks, which both
parties have; linear maps of XOR shares are local, so this costs no byte.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from privtensors.backends.mpc.randomness import Prg
from privtensors.backends.mpc.shares import low_bits

_Words = npt.NDArray[np.int64]
_STRENGTH: Final = 40  # a value outside goes unnoticed with probability 2^-40
_BLOCK: Final = 1 << 14  # words per pass: they stay in cache
_SAMPLE: Final = 64  # opened words that a map is expanded from: at least 128 uniform bits where there are as many


@dataclass(frozen=True, slots=True, eq=False)
class Finding:
    """Shares of one operation's word: zero if none of its values left its range.

    Attributes:
        label: Which operation, e.g. ``"activate, encoder.layer.3.intermediate"``.
        word: int64, ``(parties held here,)``, XOR-shared.
    """

    label: str
    word: Tensor

    def __repr__(self) -> str:
        return f"Finding({self.label!r})"


class Watch:
    """Collects range checks of one backend.

    Args:
        diagnose: Keep one word per operation instead of one for all, to tell which of them left its range.

    Attributes:
        findings: Since the last reveal: one per operation that checked anything, or one in all.
        layer: Name of the layer that runs, for labels; the model's hooks set it.
    """

    def __init__(self, diagnose: bool) -> None:
        self.diagnose = diagnose
        self.findings: list[Finding] = []
        self.layer = ""
        self._step = ""
        self._fresh = True
        self._seed = b""
        self._calls = 0  # since the last reveal

    def __repr__(self) -> str:
        return f"Watch(diagnose={self.diagnose}, findings={len(self.findings)})"

    def begin(self, step: str) -> None:
        """The next operation runs; ``step`` is the name of its protocol."""
        self._step, self._fresh = step.split(".")[0], True

    def take(self) -> list[Finding]:
        """The findings, which the next forward starts without."""
        taken, self.findings, self._fresh, self._calls = self.findings, [], True, 0
        return taken

    def stir(self, public: Tensor, ring: int) -> None:
        """Expand the next maps from these opened words, of which the low ``ring`` bits are the same at both parties."""
        words = public.reshape(-1)[:_SAMPLE].to(torch.int64)
        words = low_bits(words, ring) if ring < 64 else words
        self._seed = hashlib.sha256(words.cpu().contiguous().numpy().tobytes()).digest()

    def absorb(self, flags: Tensor, bits: int) -> None:
        """Take in XOR-shared words that are all zero inside the range.

        Args:
            flags: int8, int32 or int64, ``(parties held here, *shape)``; only the low ``bits`` count.
            bits: 1 or 2 for int8; any width for the others, whose words must be zero above it.
        """
        self._calls += 1  # a map of its own for every call: one opening may be looked at twice
        seed = hashlib.sha256(self._seed + self._calls.to_bytes(8, "big")).digest()
        with torch.device("cpu"):
            word = _compressed(_packed(flags, bits).cpu(), Prg(seed))
        self._add(word.to(flags.device))

    def _add(self, word: Tensor) -> None:
        if not self.findings or (self.diagnose and self._fresh):
            place = ", ".join(part for part in (self._step, self.layer) if part)
            self.findings.append(Finding(place if self.diagnose else "", word))
        else:
            last = self.findings[-1]
            self.findings[-1] = Finding(last.label, last.word ^ word)
        self._fresh = False


def _packed(flags: Tensor, bits: int) -> Tensor:
    """``flags`` as int64 words ``(parties, n)``, padded with zeros."""
    flat = flags.unsqueeze(-1).flatten(1)
    if flat.dtype == torch.int64:
        return flat.contiguous()
    if flat.dtype == torch.int32:
        return torch.nn.functional.pad(flat, [0, flat.shape[1] % 2]).contiguous().view(torch.int64)
    flat = torch.nn.functional.pad(flat & ((1 << bits) - 1), [0, -flat.shape[1] % 32]).contiguous()
    wide = flat.view(torch.int64).view(len(flat), flat.shape[1] // 32, 4)  # bytes of one or two bits: four words fit one
    return wide[..., 0] | wide[..., 1] << 2 | wide[..., 2] << 4 | wide[..., 3] << 6


def _compressed(words: Tensor, stream: Prg) -> Tensor:
    """A random GF(2)-linear map to one word per party, ``(parties,)``. Toeplitz to 40 words bit by bit, then dense to 64 bits."""
    parties, count = words.shape
    if not parties:
        return torch.zeros(0, dtype=torch.int64)
    diagonal: _Words = stream.words((count + _STRENGTH,)).numpy()
    dense: _Words = stream.words((64, _STRENGTH)).numpy()
    out = torch.zeros(parties, dtype=torch.int64)
    free = np.empty(min(count, _BLOCK), dtype=np.int64)
    for party in range(parties):
        row: _Words = words[party].numpy()
        lanes = np.zeros(_STRENGTH, dtype=np.int64)
        for start in range(0, count, _BLOCK):
            block = row[start : start + _BLOCK]
            product = free[: len(block)]
            for j in range(_STRENGTH):
                np.bitwise_and(block, diagonal[start + j : start + j + len(block)], out=product)
                lanes[j] ^= np.bitwise_xor.reduce(product)
        mixed: Any = np.bitwise_xor.reduce(dense & lanes, axis=1)
        bits = parity(torch.from_numpy(mixed))
        out[party] = (bits.to(torch.int64) << torch.arange(64)).sum()
    return out


def parity(words: Tensor) -> Tensor:
    """Exclusive or of the bits of each int64 word: int8."""
    for step in (32, 16, 8, 4, 2, 1):
        words = words ^ (words >> step)
    return (words & 1).to(torch.int8)
