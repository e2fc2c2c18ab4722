"""Permutations and matrices expanded from a key: AES-256 in counter mode, one stream per purpose.

Integers are the same on every machine. Matrices go through logarithms, cosines and QR decompositions in float64, so another machine
may differ in the last digits: 1e-15, far below what float32 weights keep.
"""

from __future__ import annotations

import math
from typing import Any, Final, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privtensors.core.randomness import ByteStream
from privtensors.errors import ObfuscationError, ParameterError

_Float = NDArray[np.float64]
_UNIT: Final = 2.0**-53


class Stream:
    """A deterministic stream of uniform bits; every call goes on where the last one ended. Not for several threads at once.

    Args:
        seed: 32 secret bytes, from ``ObfuscationKey.stream``.
    """

    __slots__ = ("_bytes",)

    def __init__(self, seed: bytes) -> None:
        self._bytes = ByteStream(seed)

    def __repr__(self) -> str:
        return "Stream(seed=hidden)"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise ObfuscationError(
            "a key stream cannot be copied: its copy would repeat it", where="Stream", fix="key.stream(purpose) starts one"
        )

    def permutation(self, n: int) -> Tensor:
        """A uniform permutation of 0..n-1, int64 ``(n,)``.

        Raises:
            ParameterError: ``n`` is negative.
        """
        _check_size(n)
        while True:  # ranks of distinct 64-bit words are uniform; two equal words (1e-10 at n = 100,000) are drawn anew
            words = self._words(n)
            order = np.argsort(words, kind="stable")
            if n < 2 or bool(np.all(np.diff(words[order]) > 0)):
                return torch.from_numpy(order.astype(np.int64))

    def signs(self, n: int) -> Tensor:
        """Uniform signs, float64 ``(n,)`` of -1 and 1."""
        _check_size(n)
        bits = (self._bytes.fill(self._bytes.buffer(n)) & 1).astype(np.float64)
        return torch.from_numpy(1.0 - 2.0 * bits)

    def uniform(self, shape: int | tuple[int, ...]) -> Tensor:
        """Uniform on [0, 1), multiples of 2^-53, float64 of ``shape``."""
        shape = _shape(shape)
        return torch.from_numpy(self._fractions(math.prod(shape)).reshape(shape))

    def normal(self, shape: int | tuple[int, ...]) -> Tensor:
        """Standard normal, float64 of ``shape`` (Box and Muller, 1958)."""
        shape = _shape(shape)
        return torch.from_numpy(self._normal(math.prod(shape)).reshape(shape))

    def orthogonal(self, n: int) -> Tensor:
        """An orthogonal matrix, uniform in the Haar measure (Mezzadri, 2007), float64 ``(n, n)``."""
        _check_size(n)
        return torch.from_numpy(self._orthogonal(n))

    def mean_fixing_orthogonal(self, n: int) -> Tensor:
        """An orthogonal Q with Q 1 = 1, uniform among those, float64 ``(n, n)``: x Q has the mean and variance of x."""
        _check_size(n)
        matrix = np.eye(n)
        if n > 1:
            matrix[1:, 1:] = self._orthogonal(n - 1)
            # The reflection that exchanges the first axis and the direction of 1, on both sides.
            mirror = np.full(n, -1 / math.sqrt(n))
            mirror[0] += 1.0
            mirror /= np.linalg.norm(mirror)
            matrix -= 2 * np.outer(mirror, mirror @ matrix)
            matrix -= 2 * np.outer(matrix @ mirror, mirror)
        return torch.from_numpy(matrix)

    def invertible(self, n: int, *, condition: float = 4.0) -> Tensor:
        """An invertible matrix whose condition number is at most ``condition``, float64 ``(n, n)``.

        Two Haar orthogonal factors around singular values that are log-uniform in [condition^-1/2, condition^1/2].

        Raises:
            ParameterError: ``condition`` is below 1 or not finite.
        """
        _check_size(n)
        _check_ratio(condition, "Stream.invertible: condition")
        left, values, right = self._orthogonal(n), self._scales(n, math.sqrt(condition)), self._orthogonal(n)
        return torch.from_numpy((left * values) @ right)

    def scales(self, n: int, *, largest: float = 2.0) -> Tensor:
        """Positive factors, log-uniform in [1 / largest, largest], float64 ``(n,)``.

        Raises:
            ParameterError: ``largest`` is below 1 or not finite.
        """
        _check_size(n)
        _check_ratio(largest, "Stream.scales: largest")
        return torch.from_numpy(self._scales(n, largest))

    def _words(self, count: int) -> NDArray[np.uint64]:
        raw = self._bytes.fill(self._bytes.buffer(8 * count))
        return raw.view(np.dtype("<u8")).astype(np.uint64, copy=False)

    def _fractions(self, count: int) -> _Float:
        return (self._words(count) >> np.uint64(11)).astype(np.float64) * _UNIT

    def _normal(self, count: int) -> _Float:
        half = (count + 1) // 2
        radius = np.sqrt(-2.0 * np.log(1.0 - self._fractions(half)))  # 1 - u is never 0
        angle = 2.0 * math.pi * self._fractions(half)
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]

    def _orthogonal(self, n: int) -> _Float:
        factor, triangle = np.linalg.qr(self._normal(n * n).reshape(n, n))
        return np.ascontiguousarray(factor * np.where(np.diagonal(triangle) < 0, -1.0, 1.0), dtype=np.float64)

    def _scales(self, n: int, largest: float) -> _Float:
        return np.clip(np.exp((2.0 * self._fractions(n) - 1.0) * math.log(largest)), 1.0 / largest, largest)


def _check_size(n: int) -> None:
    if n < 0:
        raise ParameterError(f"a size must not be negative, got {n}", where="Stream")


def _check_ratio(value: float, where: str) -> None:
    if not 1.0 <= value < math.inf:
        raise ParameterError(f"must be at least 1 and finite, got {value}", where=where)


def _shape(shape: int | tuple[int, ...]) -> tuple[int, ...]:
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    for size in sizes:
        _check_size(size)
    return sizes
