"""The book-keeping engine: one backward pass, no per-example gradients but where they are small (Bu et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from types import MappingProxyType
from typing import Final

import torch
from torch import nn

from privtensors.errors import UnboundedParameter
from privtensors.train.bounding.capture import LOOP, Capture, Layout, Unseen
from privtensors.train.bounding.engine import Choice
from privtensors.train.bounding.loop import Loop
from privtensors.train.bounding.norms import squared_norms
from privtensors.train.bounding.probe import Finding, probe
from privtensors.train.bounding.sites import Kind, Site, find_sites
from privtensors.train.bounding.sums import RunningSum, sum_dtype
from privtensors.train.bounding.uses import Observed
from privtensors.train.bounding.weighted import add_weighted, clipping_factors
from privtensors.train.roles import Batch, Loss

_REASONS: Final = MappingProxyType(
    {
        "instantiate": "its per-example gradients are hardly larger than what they are formed from",
        "gram": "T x T products cost less than its gradient per example",
        "outer": "one row per example: the norm is a product of two norms",
        "replay": "unknown forward: run again per example, vectorised",
    }
)


class BookKeeping:
    """Clips by one backward pass that is observed (Bu et al. 2023), with ghost norms (Li et al. 2022) or instantiated gradients per layer.

    Known: Linear, Conv2d, Embedding, LayerNorm, GroupNorm, transformers' Conv1D, shared and tied in any way; every other module that
    owns trainable parameters is replayed. What it cannot observe it refuses.

    Args:
        model: The model.
        parameters: Its trainable parameters by name.
    """

    name = "bookkeeping"

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        self._model, self._parameters = model, dict(parameters)
        self._sites = find_sites(model, self._parameters)
        self._layout = Layout()
        self._calls = 0
        self._checked = False
        self._loop = Loop(self._parameters)
        self._methods: dict[Site, tuple[str, int]] = {}
        dtype = reduce(torch.promote_types, (sum_dtype(p.dtype) for p in self._parameters.values()))
        self._like = torch.empty(0, dtype=dtype, device=next(iter(self._parameters.values())).device)  # of norms
        for name, parameter in self._parameters.items():
            if parameter._backward_hooks:
                raise UnboundedParameter("a hook on it would change its gradient unseen", where=name, fix=LOOP, parameter=name)

    def bound(self, batch: Batch, loss: Loss, examples: int, clipping_norm: float, sums: RunningSum) -> None:
        """Add the clipped gradients of at least two examples.

        The loss is called a few times more on the first batch, and on the 2nd, 4th, 8th and so on, to check it.

        Raises:
            UnboundedParameter: A parameter is used where it is not observed.
            CrossExample: The loss mixes examples.
        """
        self._calls += 1
        if not self._checked or self._calls & (self._calls - 1) == 0:
            finding = probe(self._model, self._sites, batch, loss, examples, self._layout)
            self._checked |= finding is not Finding.NOT_FINITE
        if not self._checked:  # nothing is known of this loss yet, and the loop needs to know nothing
            self._loop.bound(batch, loss, examples, clipping_norm, sums)
            return
        try:
            observed = self._observe(batch, loss, examples)
        except Unseen:
            probe(self._model, self._sites, batch, loss, examples, self._layout)
            try:
                observed = self._observe(batch, loss, examples)
            except Unseen as unseen:
                raise UnboundedParameter(unseen.what, where=unseen.where, fix=LOOP, parameter=unseen.where) from None
        with torch.no_grad(), _full_precision(self._like.device):
            squares = squared_norms(observed, self._like)
            self._methods.update(observed.methods)
            factors, finite = clipping_factors(squares, clipping_norm)
            with sums.adding():
                add_weighted(observed, factors, finite, sums)

    def _observe(self, batch: Batch, loss: Loss, examples: int) -> Observed:
        """One forward and backward pass; every use of a site, and no gradient anywhere."""
        capture = Capture(self._sites, examples, self._layout)
        with capture.observing():
            value = loss(batch)
            if value.requires_grad:
                capture.backward = True
                with torch.autocast(self._like.device.type, enabled=False):
                    # Times n: gradients of the sum are the examples' own, and do not shrink towards underflow.
                    value.backward(torch.full_like(value, examples))  # type: ignore[no-untyped-call]
        for name, parameter in self._parameters.items():
            if parameter.grad is not None:
                raise UnboundedParameter("it is used outside the forward of the module that owns it", where=name, fix=LOOP, parameter=name)
        return capture.observed

    def describe(self) -> tuple[Choice, ...]:
        """A row per module; methods that depend on the length of examples are those of the last batch."""
        rows = []
        for site in self._sites:
            count = sum(p.numel() for p in site.owned)
            if site.kind is Kind.UNIT:
                method, reason = "replay", _REASONS["replay"]
            elif site in self._methods:
                method, length = self._methods[site]
                reason = _REASONS[method] + (f" (T = {length})" if length > 1 else "")
            else:
                method, reason = "by length", "chosen when a batch is seen"
            rows.append(Choice(site.name, count, method, reason))
        return tuple(rows)

    def close(self) -> None:
        """Nothing to give back: hooks are in place only while a batch is bounded."""


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Products in float32 whatever the TF32 setting: a norm that is too small is a bound that does not hold."""
    before = torch.get_float32_matmul_precision() if device.type == "cuda" else "highest"
    try:
        if before != "highest":
            torch.set_float32_matmul_precision("highest")
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if before != "highest":
            torch.set_float32_matmul_precision(before)
