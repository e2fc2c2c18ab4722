"""Pseudo-random words from AES-256 in counter mode, keyed by the operating system's generator."""

from __future__ import annotations

import math
import secrets
from typing import Final

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

_SLACK: Final = 16  # update_into wants room for one more block
_CHUNK: Final = 1 << 24
_ZEROS: Final = memoryview(bytes(_CHUNK))  # shared: 16 MiB to be cleared for every stream cost more than a small request

# Bytes per word.
WIDTH: Final = {torch.int64: 8, torch.int32: 4, torch.int16: 2, torch.int8: 1}


class Prg:
    """A stream of uniform words expanded from a 256-bit seed (AES-CTR, NIST SP 800-38A).

    Args:
        seed: 32 bytes; default fresh from the operating system. Fixed seeds are for tests only.
        device: Where the words are wanted; they are made on the CPU.
    """

    def __init__(self, seed: bytes | None = None, device: torch.device | None = None) -> None:
        self._device = device
        key = secrets.token_bytes(32) if seed is None else seed
        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def __repr__(self) -> str:
        return "Prg(seed=hidden)"

    def _fill(self, raw: np.ndarray[tuple[int], np.dtype[np.uint8]], count: int) -> None:
        done = 0
        while done < count:
            step = min(count - done, _CHUNK)
            self._stream.update_into(_ZEROS[:step], raw[done : done + step + _SLACK - 1].data)
            done += step

    def words(self, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> Tensor:
        """Uniform words of ``dtype`` (int8 to int64)."""
        count = math.prod(shape) * WIDTH[dtype]
        raw = torch.empty(count + _SLACK, dtype=torch.uint8, device="cpu")
        self._fill(raw.numpy(), count)
        return self._placed(raw[:count].view(dtype).view(shape))

    def pair(self, other: Prg, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> Tensor:
        """Words of shape ``(2, *shape)``: row 0 from this stream, row 1 from ``other``."""
        count = math.prod(shape) * WIDTH[dtype]
        raw = torch.empty(2 * count + _SLACK, dtype=torch.uint8, device="cpu")
        array = raw.numpy()
        # Row 0 first: its slack lies in row 1, which is written afterwards.
        self._fill(array, count)
        other._fill(array[count:], count)
        return self._placed(raw[: 2 * count].view(dtype).view(2, *shape))

    def first_of_pair(self, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> Tensor:
        """A tensor of shape ``(2, *shape)`` whose row 0 comes from this stream and whose row 1 is yet to be written."""
        count = math.prod(shape) * WIDTH[dtype]
        if self._device is not None:
            both = torch.empty(2, *shape, dtype=dtype, device=self._device)
            both[0] = self.words(shape, dtype)
            return both
        raw = torch.empty(2 * count + _SLACK, dtype=torch.uint8, device="cpu")
        self._fill(raw.numpy(), count)
        return raw[: 2 * count].view(dtype).view(2, *shape)

    def _placed(self, words: Tensor) -> Tensor:
        return words if self._device is None else words.to(self._device)
