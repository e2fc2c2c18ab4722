"""Which engine bounds a model's gradients."""

from __future__ import annotations

from typing import Literal, get_args

from torch import nn

from privtensors.errors import ParameterError, UnboundedParameter
from privtensors.train.bounding.bookkeeping import BookKeeping
from privtensors.train.bounding.bounder import GradientBounder
from privtensors.train.bounding.engine import Engine
from privtensors.train.bounding.loop import Loop
from privtensors.train.bounding.opacus import OpacusReference
from privtensors.train.bounding.refusals import refuse_model, trainable_parameters

EngineName = Literal["auto", "bookkeeping", "loop", "opacus"]


def make_bounder(model: nn.Module, clipping_norm: float, *, engine: EngineName = "auto") -> GradientBounder:
    """A bounder of a model's per-example gradients.

    Args:
        model: Any module; its trainable parameters are those that require gradients now. Its class stays what it is.
        clipping_norm: C, in the L2 norm over all trainable parameters.
        engine: ``"auto"`` takes book-keeping and goes over to the loop for good at the first use that it cannot observe;
            ``"bookkeeping"`` refuses there; ``"loop"`` takes one backward pass per example; ``"opacus"`` is the reference.

    Raises:
        BoundingError: Nothing is trainable, or the model is wrapped in a way that hides it.
        CrossExample: A layer mixes examples.
        UnboundedParameter: ``engine`` cannot bound the model.
        ParameterError: Not a clipping norm, or no engine of that name.
    """
    if engine not in get_args(EngineName):
        raise ParameterError(f"there is no engine {engine!r}", where="make_bounder", fix=f"Choose from {', '.join(get_args(EngineName))}.")
    parameters = trainable_parameters(model)
    refuse_model(model, parameters)

    def loop(error: UnboundedParameter) -> Engine:
        return Loop(parameters, reason=f"{error.where}: {error.what}" if error.where else error.what)

    if engine == "loop":
        return GradientBounder(model, parameters, clipping_norm, Loop(parameters))
    if engine == "opacus":
        return GradientBounder(model, parameters, clipping_norm, OpacusReference(model, parameters))
    try:
        chosen: Engine = BookKeeping(model, parameters)
    except UnboundedParameter as error:
        if engine == "bookkeeping":
            raise
        chosen = loop(error)
    return GradientBounder(model, parameters, clipping_norm, chosen, loop if engine == "auto" else None)
