"""The Noiser of DP-SGD: normal noise from a CSPRNG on the sum of clipped gradients.

What is sound about its floating point, and what is not proved, stands in :mod:`privtensors.backends.dp.noise.gaussian`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from privtensors.backends.dp.noise.gaussian import GaussianNoise
from privtensors.errors import ParameterError


class NoiseSource(Protocol):
    """Where normal noise comes from; ``backends.dp.noise`` has the one of training."""

    def add_(self, tensor: Tensor, std: float) -> None:
        """Add independent normal noise of standard deviation ``std`` to every entry, in place."""


class GaussianNoiser:
    """Normal noise of standard deviation sigma · C on every entry of a sum whose units are clipped to C (Abadi et al. 2016).

    Every call draws afresh from a stream that no other object shares, so no two entries, steps or runs share noise.

    Args:
        noise_multiplier: sigma, the standard deviation over the clipping norm; 0 adds nothing and protects nothing.
        source: The stream; default a new one from the operating system's entropy.

    Raises:
        ParameterError: sigma is negative or not finite.
    """

    def __init__(self, noise_multiplier: float, source: NoiseSource | None = None) -> None:
        if not (math.isfinite(noise_multiplier) and noise_multiplier >= 0):
            what = f"noise_multiplier is {noise_multiplier}"
            raise ParameterError(what, where="GaussianNoiser", fix="Give a finite number of at least 0")
        self.noise_multiplier = float(noise_multiplier)
        self._source: NoiseSource = GaussianNoise() if source is None else source

    def add(self, sums: Mapping[str, Tensor], clipping_norm: float) -> None:
        """See :meth:`~privtensors.train.roles.Noiser.add`."""
        if self.noise_multiplier == 0:
            return
        for total in sums.values():
            self._source.add_(total, self.noise_multiplier * clipping_norm)
