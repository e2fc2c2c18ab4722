"""Engines that bound what one example adds to a training step: each clips per-example gradients to an L2 norm and sums them."""

from privtensors.train.bounding.bookkeeping import BookKeeping
from privtensors.train.bounding.bounder import GradientBounder
from privtensors.train.bounding.choice import EngineName, make_bounder
from privtensors.train.bounding.engine import Choice, Engine
from privtensors.train.bounding.loop import Loop
from privtensors.train.bounding.opacus import OpacusReference

__all__ = ["BookKeeping", "Choice", "Engine", "EngineName", "GradientBounder", "Loop", "OpacusReference", "make_bounder"]
