"""Random bytes in bulk: AES-256 in counter mode, keyed by the operating system's generator."""

from __future__ import annotations

import secrets
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

_SLACK: Final = 16  # update_into wants room for one more block
_CHUNK: Final = 1 << 20
_ZEROS: Final = memoryview(bytes(_CHUNK))


class ByteStream:
    """A stream of uniform bytes expanded from a 256-bit seed (AES-CTR, NIST SP 800-38A). Not safe for several threads at once.

    Args:
        seed: 32 bytes; default fresh from the operating system. Fixed seeds are for tests only.
    """

    def __init__(self, seed: bytes | None = None) -> None:
        key = secrets.token_bytes(32) if seed is None else seed
        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def __repr__(self) -> str:
        return "ByteStream(seed=hidden)"

    def __reduce__(self) -> Any:
        raise TypeError("a stream that was copied would repeat its bytes")

    def __deepcopy__(self, memo: Any) -> Any:
        return self.__reduce__()

    @staticmethod
    def buffer(count: int) -> NDArray[np.uint8]:
        """Room for ``count`` bytes, to be filled by :meth:`fill` any number of times; its last 16 bytes are no part of them."""
        return np.empty(count + _SLACK, dtype=np.uint8)

    def fill(self, buffer: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Fill a :meth:`buffer`; returns the view of its random bytes."""
        count = len(buffer) - _SLACK
        for start in range(0, count, _CHUNK):
            step = min(count - start, _CHUNK)
            self._stream.update_into(_ZEROS[:step], buffer[start : start + step + _SLACK].data)
        return buffer[:count]

    def words(self, count: int) -> NDArray[np.uint64]:
        """``count`` uniform words of 64 bits."""
        return self.fill(self.buffer(8 * count)).view(np.uint64)
