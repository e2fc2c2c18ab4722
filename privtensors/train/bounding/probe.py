"""What a model's first batch is used for before anything is bounded: do its modules and its loss treat examples one by one?

Three forward passes without gradients, in eval mode so that dropout does not blur them: some examples, one example twice, and all n of
these. A loss that is the mean over examples of what each determines alone satisfies n · L(all) = (n - 2) · L(some) + 2 · L(twice); a
contrastive loss, or one averaged over the tokens of the whole batch, does not. The last pass runs under the engine's hooks, which must
not change the loss, on another number of examples than the batch's: a module's first axis runs over the examples only if it has both
numbers, and holds the same at the example's two places.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor, nn

from privtensors.errors import CrossExample, PrivTensorsError, UnboundedParameter
from privtensors.train.bounding.batches import rows
from privtensors.train.bounding.capture import LOOP, Capture, Layout
from privtensors.train.bounding.sites import Site
from privtensors.train.roles import Batch, Loss

_TWO = 2
_OTHERS: Final = MappingProxyType({2: (0, 2), 3: (1, 3), 4: (1, 2), 5: (1, 3)})
"""Which examples are taken beside the one that is taken twice, by the batch's size where it is small."""
_FINE, _COARSE = 1e-3, 3e-2


def _value(loss: Loss, batch: Batch, order: Tensor) -> float:
    value = loss(rows(batch, order))
    if value.dim() != 0:
        raise CrossExample(f"it has shape {tuple(value.shape)}", where="loss", fix="Return the mean over examples, 0-dimensional.")
    return float(value)


class Finding(Enum):
    """What came of checking a loss."""

    MEAN = "a mean over examples"
    RANDOM = "random even in eval mode, so that it cannot be checked"
    NOT_FINITE = "not finite on this batch"


@contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients; modes and random numbers as before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    try:
        model.eval()
        with torch.random.fork_rng(devices), torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def probe(model: nn.Module, sites: Sequence[Site], batch: Batch, loss: Loss, examples: int, layout: Layout) -> Finding:
    """Learn how the modules are used and check the loss.

    Args:
        model: The model.
        sites: The modules whose axes are learnt.
        batch: A batch of at least two examples.
        loss: Its loss.
        examples: How many.
        layout: Added to.

    Raises:
        UnboundedParameter: A module's first axis does not run over examples, or the model does not run under the hooks.
        CrossExample: The loss is not a mean over examples that each determine alone.
    """
    device = next((v.device for v in batch.values() if isinstance(v, Tensor)), torch.device("cpu"))
    # One example twice: that its weight is by chance the mean of the others' is less likely than for two; and far apart, so that an
    # order other than the batch's shows. Not as many examples as the batch has: an axis of fixed length cannot be both numbers.
    # Few, so that this takes less memory than a step.
    others = torch.arange(*_OTHERS.get(examples, (1, 4)), device=device)
    twice = torch.zeros_like(others[:1])
    order = torch.cat([twice, others[:-1], twice, others[-1:]])
    total = len(order)
    with _quiet(model):
        two = _value(loss, batch, twice.expand(_TWO))
        rest = _value(loss, batch, others)
        capture = Capture(sites, total, layout, probing=True)
        try:
            with capture.observing():
                whole = _value(loss, batch, order)
        except PrivTensorsError:
            raise
        except Exception as error:
            raise UnboundedParameter(
                f"it does not run with a row of positions per example ({type(error).__name__})", where=type(model).__name__, fix=LOOP
            ) from error
        if not all(math.isfinite(value) for value in (two, rest, whole)):
            return Finding.NOT_FINITE
        tolerance = (_COARSE if layout.coarse else _FINE) * max(abs(value) for value in (two, rest, whole))
        mean = abs(whole - ((total - _TWO) * rest + _TWO * two) / total) <= tolerance
        if mean and not capture.apart:
            return Finding.MEAN
        torch.rand(1)  # other random numbers than before
        if abs(_value(loss, batch, others) - rest) > tolerance / 10:
            return Finding.RANDOM
    if mean:
        site = capture.apart[0]
        raise UnboundedParameter("it is not given the examples in the batch's order", where=site.label, fix=LOOP, parameter=site.name)
    raise CrossExample(
        "it is not a mean over examples of what each determines alone: adding two examples changes what the others contribute",
        where="loss",
        fix="Average over each example's own tokens first, then over examples; take nothing from the rest of the batch.",
    )
