"""The options of a private run, apart from what it promises. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from privtensors.errors import ParameterError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from privtensors.train.data import Collate
    from privtensors.train.preparation import OnBudget
    from privtensors.train.roles import Batch


@dataclass(frozen=True)
class FitOptions:
    """The arguments of ``PrivateModel.fit``; see there. None of them changes the promise."""

    epochs: float | None = None
    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None
    schedule: Literal["constant", "linear"] = "linear"
    warmup: float = 0.0
    microbatch: int = 32
    engine: Literal["auto", "bookkeeping", "loop", "opacus"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    on_budget: OnBudget = "refuse"
    collate: Collate | None = None
    loss: Callable[[nn.Module, Batch], Tensor] | None = None
    public: Batch | None = None
    eval_dataset: Any = None
    evaluate_every: int | None = None
    progress: bool | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("schedule", ("constant", "linear")), ("precision", ("float32", "bfloat16"))):
            if getattr(self, name) not in allowed:
                raise ParameterError(f"{name} is {getattr(self, name)!r}", where="fit", fix=f"Allowed: {', '.join(allowed)}")
        for name, low, high in (("learning_rate", 0.0, math.inf), ("weight_decay", 0.0, math.inf), ("warmup", 0.0, 1.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high or value == math.inf:
                raise ParameterError(f"{name} is {value!r}", where="fit", fix=f"Give a number from {low:g} to {high:g}")
        if self.evaluate_every is not None and (type(self.evaluate_every) is not int or self.evaluate_every < 1):
            raise ParameterError(f"evaluate_every is {self.evaluate_every!r}", where="fit", fix="Give a number of steps, at least 1")
