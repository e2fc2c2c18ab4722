"""Stock Hugging Face models: computed on protected values (``wrap``, ``pipeline``), and trained privately (``DPTrainer``)."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from privtensors.errors import MissingExtra
from privtensors.hf.model import PrivateModel
from privtensors.hf.pipeline import pipeline
from privtensors.hf.wrap import wrap

if TYPE_CHECKING:
    from privtensors.hf.trainable import TrainableModel
    from privtensors.hf.trainer import DPTrainer

__all__ = ["DPTrainer", "PrivateModel", "TrainableModel", "pipeline", "wrap"]


def __getattr__(name: str) -> Any:
    # Lazy: the Trainer imports transformers whole, and inference needs no training loop.
    homes = {"DPTrainer": "privtensors.hf.trainer", "TrainableModel": "privtensors.hf.trainable"}
    if name == "DPTrainer" and importlib.util.find_spec("transformers") is None:
        raise MissingExtra("transformers is not installed", where="DPTrainer", fix="Run: pip install 'privtensors[hf,dp]'")
    if name in homes:
        return getattr(importlib.import_module(homes[name]), name)
    raise AttributeError(f"module 'privtensors.hf' has no attribute {name!r}")
