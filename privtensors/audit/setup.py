"""What is audited: the parts that a private step is made of. The defaults are those of ``PrivateModel.fit``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from privtensors.train.bounding import make_bounder
from privtensors.train.dp_sgd import DPSGD
from privtensors.train.noising import GaussianNoiser
from privtensors.train.roles import Bounder, Noiser
from privtensors.train.sampling import PoissonSampler


@dataclass(frozen=True)
class Setup:
    """How the parts of a private step are made. Give your own to check them.

    Attributes:
        bounder: Of a model and a clipping norm.
        sampler: Of a number of units and a rate; a subclass of PoissonSampler, as the loop accounts for no other.
        noiser: Of a noise multiplier.
        loop: What samples, bounds, adds noise and divides.
    """

    bounder: Callable[[nn.Module, float], Bounder] = make_bounder
    sampler: Callable[[int, float], PoissonSampler] = PoissonSampler
    noiser: Callable[[float], Noiser] = GaussianNoiser
    loop: type[DPSGD] = DPSGD
