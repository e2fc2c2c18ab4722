"""Normal noise for training: as fast as ``torch.normal_``, from AES-CTR, hardened against floating-point attacks.

**What is added.** With the grid g = std · 2^-20, an entry v becomes g · round(v / g + N), where N = 2^20 · a · Z + W: Z is a normal
variable by Box and Muller in float32 from 63 random bits (the outermost 2^-21 of the radii from 84 bits in float64: the
tail ends at 10.8 standard deviations), W is uniform on [-2^15, 2^15) in steps of 2^-16, and a makes the standard deviation ``std``.

**Guarantee.** Rounding comes after the noise, so it is post-processing: the result is as private as v / g + N, whatever v is.
Every result is a whole multiple of g, whatever v is, so which floating-point numbers can occur tells nothing about v: the
attack of Mironov (2012), and of Jin et al. (2022) on normal noise. Float32 arithmetic makes the law of Z uneven at scales near
2^-21 standard deviations. W is 2^-4 standard deviations wide and averages that out: moving v by t standard deviations changes the
density of N by a factor whose logarithm differs from that of exact normal noise by at most 2^-8 |t| x^2 + 2^-17 at x standard
deviations. Holohan and Braghin (2021) average several normal samples to the same end, at several times the cost.

What is *not* claimed: a proof of (ε, δ) down to the last bit, as :mod:`~privtensors.backends.dp.noise.discrete` has. Z is
computed in float32, W has steps of 2^-16, and v / g is rounded to 2^-21 grid steps: the last two add at most
sqrt(d) · 2^-36 standard deviations to the sensitivity of d entries.
"""

from __future__ import annotations

import math
import threading
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privtensors.core.randomness import ByteStream
from privtensors.errors import InvalidInput, ParameterError

STEPS: Final = 2.0**20
"""Grid steps per standard deviation."""

_CHUNK: Final = 1 << 16  # entries: the buffers stay in a core's cache
_HALF: Final = _CHUNK // 2
_WIDTH: Final = 2.0**16  # of W, in grid steps
_SCALE: Final = STEPS * math.sqrt(1 - (_WIDTH / STEPS) ** 2 / 12)
_RARE: Final = 2.0**10  # words this close to the tail, 2^-21 of them, get more bits

_Wide = NDArray[np.float64]


class GaussianNoise:
    """Independent normal noise of any standard deviation. One object may be used from several threads, one at a time.

    It computes with numpy in one thread: chunks that fit a cache are too small to be worth torch's threads.

    Guarantee class: statistical, with the numerical limits that the module states.

    Args:
        seed: 32 bytes that determine everything drawn, for tests only; default fresh from the operating system.
    """

    def __init__(self, seed: bytes | None = None) -> None:
        self._stream = ByteStream(seed)
        self._lock = threading.Lock()
        self._bytes = ByteStream.buffer(8 * _CHUNK)
        self._words = self._bytes[: 8 * _CHUNK].view(np.int32)
        self._radius = np.empty(_HALF, dtype=np.float32)
        self._angle = np.empty(_HALF, dtype=np.float32)
        self._normal = np.empty(_CHUNK, dtype=np.float32)
        self._units = np.empty(_CHUNK)
        self._wide = np.empty(_CHUNK)
        self._ready: list[_Wide] = []

    def __repr__(self) -> str:
        return "GaussianNoise(seed=hidden)"

    def add_(self, tensor: Tensor, std: float) -> None:
        """Add noise of standard deviation ``std`` to every entry, in place.

        Args:
            tensor: Floating point, any shape and strides, on any device (noise is drawn on the CPU).
            std: Standard deviation, finite and above 0.

        Raises:
            ParameterError: ``std`` is no such number.
            InvalidInput: The tensor is not floating point.
        """
        grid = _grid(tensor, std)
        flat = tensor.detach().reshape(-1)  # a copy where the strides do not allow a view
        with self._lock:
            for start in range(0, flat.numel(), _CHUNK):
                self._add_to(flat[start : start + _CHUNK], grid)
        if flat.data_ptr() != tensor.data_ptr():
            tensor.detach().copy_(flat.view(tensor.shape))

    def _add_to(self, part: Tensor, grid: float) -> None:
        noise = self._take(part.numel())
        if part.device.type != "cpu" or part.dtype not in (torch.float32, torch.float64):
            sums = torch.from_numpy(noise).to(part.device).add_(part, alpha=1 / grid).round_().mul_(grid)
            part.copy_(sums)
            return
        values = part.numpy()
        wide = self._wide[: len(values)]
        np.multiply(values, 1 / grid, out=wide, dtype=np.float64)
        np.add(noise, wide, out=noise)
        np.rint(noise, out=noise)
        np.multiply(noise, grid, out=noise)
        np.copyto(values, noise, casting="same_kind")

    def fill_(self, tensor: Tensor, std: float) -> None:
        """Overwrite every entry with noise. Arguments and errors as :meth:`add_`."""
        _grid(tensor, std)
        tensor.detach().zero_()
        self.add_(tensor, std)

    def prepare(self, count: int) -> None:
        """Draw noise for the next ``count`` entries ahead of time; 8 bytes of memory per entry until it is used, once."""
        with self._lock:
            self._hold(count)

    def _hold(self, count: int) -> None:
        missing = count - sum(len(part) for part in self._ready)
        while missing > 0:
            self._ready.append(self._draw().copy())
            missing -= _CHUNK

    def _take(self, count: int) -> _Wide:
        """``count`` (at most a chunk) fresh values of N, the caller's to overwrite until the next call."""
        if count == _CHUNK and not self._ready:
            return self._draw()
        self._hold(count)
        parts: list[_Wide] = []
        while count > 0:
            part = self._ready.pop()
            if len(part) > count:
                self._ready.append(part[count:])
            parts.append(part[:count])
            count -= len(parts[-1])
        return np.concatenate(parts)

    def _draw(self) -> _Wide:
        """A chunk of N in grid steps, in a buffer that the next call overwrites."""
        self._stream.fill(self._bytes)
        radius, angle, normal, words, units = self._radius, self._angle, self._normal, self._words, self._units
        # |w + 1/2| is uniform on 1/2, 3/2, ... 2^31 - 1/2, and exact in float32 where the tail needs it.
        np.copyto(radius, words[:_HALF], casting="same_kind")
        radius += np.float32(0.5)
        np.abs(radius, out=radius)
        if float(radius.min()) < _RARE:
            self._refine(radius)
        radius *= np.float32(2.0**-31)
        np.log(radius, out=radius)
        radius *= np.float32(-2)
        np.sqrt(radius, out=radius)
        np.copyto(angle, words[_HALF:_CHUNK], casting="same_kind")
        angle *= np.float32(2 * math.pi * 2.0**-32)
        np.cos(angle, out=normal[:_HALF])
        np.sin(angle, out=normal[_HALF:])
        normal[:_HALF] *= radius
        normal[_HALF:] *= radius
        np.multiply(normal, _SCALE, out=units, dtype=np.float64)
        np.multiply(words[_CHUNK:], _WIDTH * 2.0**-32, out=self._wide)
        np.add(units, self._wide, out=units)
        return units

    def _refine(self, uniform: NDArray[np.float32]) -> None:
        """Give the smallest of ``uniform``, whole numbers and a half, 53 random bits below their step of one."""
        rare = np.flatnonzero(uniform < _RARE)
        fraction = (self._stream.words(len(rare)) >> np.uint64(11)).astype(np.float64) + 0.5
        uniform[rare] = uniform[rare].astype(np.float64) - 0.5 + fraction * 2.0**-53


def _grid(tensor: Tensor, std: float) -> float:
    if not tensor.is_floating_point():
        raise InvalidInput(f"dtype {tensor.dtype} cannot hold noise", where="GaussianNoise", fix="give a floating-point tensor")
    if not (isinstance(std, int | float) and not isinstance(std, bool) and 1e-30 <= std < math.inf):
        raise ParameterError(f"std is {std}", where="GaussianNoise", fix="give a finite number above 0")
    return float(std) / STEPS
