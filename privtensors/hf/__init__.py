"""Stock Hugging Face models on protected values: ``wrap``, ``pipeline`` and ``PrivateModel``."""

from __future__ import annotations

from privtensors.hf.model import PrivateModel
from privtensors.hf.pipeline import pipeline
from privtensors.hf.wrap import wrap

__all__ = ["PrivateModel", "pipeline", "wrap"]
