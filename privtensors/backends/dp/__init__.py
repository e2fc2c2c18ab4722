"""Differential privacy: the ``DP`` technique, its release mechanisms, its noise, and tensors whose sensitivity is tracked."""

from __future__ import annotations

from privtensors.backends.dp.release import Gaussian, Laplace
from privtensors.backends.dp.technique import DP

__all__ = ["DP", "Gaussian", "Laplace"]
