"""Observing one forward and backward pass: each module's input and the gradient at its output.

While a module runs, its own parameters do not require gradients, so autograd never forms their batch gradient: one backward pass
gives the gradients at the outputs and costs less than an ordinary one (book-keeping; Bu et al. 2023). A parameter used anywhere else
still gets a ``.grad``, which is how such a use is found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from privtensors.errors import BoundingError, UnboundedParameter
from privtensors.train.bounding.instantiate import arrived
from privtensors.train.bounding.replay import Call, replay
from privtensors.train.bounding.sites import Kind, Site
from privtensors.train.bounding.uses import Observed, Use

_FINE, _COARSE = 1e-3, 3e-2
_ROWWISE = (Kind.LINEAR, Kind.CONV1D, Kind.LAYER_NORM)
LOOP = 'Use engine="loop", or "auto", which finds this out by itself.'


class _Watch(torch.autograd.Function):
    """The identity, which hands over the gradient that passes and lets one start at a tensor that needs none.

    A hook on the output itself would be lost where the output is a view and is changed in place, as residual connections do.
    """

    @staticmethod
    def forward(ctx: Any, out: Tensor, anchor: Tensor, arrived: Callable[[Tensor], None] | None) -> Tensor:
        ctx.arrived = arrived
        ctx.set_materialize_grads(False)
        return out.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None, None]:
        grad = grads[0]
        arrived, ctx.arrived = ctx.arrived, None  # it holds the input, which may be large and is done with
        if grad is not None and arrived is not None:
            arrived(grad)
        return grad if ctx.needs_input_grad[0] else None, None, None


@dataclass
class Layout:
    """What the first batch taught about a model's use of its modules.

    Attributes:
        seen: The sites whose first axis was seen to run over the examples.
        blocks: The sites whose first axis runs over several rows of the first example, then of the second, and so on.
        shared_rows: Per embedding site that takes one-dimensional ids, whether they are one row that every example shares.
        coarse: Whether some output was of half precision.
    """

    seen: set[Site] = field(default_factory=set)
    blocks: set[Site] = field(default_factory=set)
    shared_rows: dict[Site, bool] = field(default_factory=dict)
    coarse: bool = False


class Unseen(BoundingError):
    """A module runs that the probe did not see, so its axes are not known."""


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The input of a module of one input, however it was passed."""
    value = args[0] if args else next(iter(kwargs.values()))
    assert isinstance(value, Tensor)
    return value


def _close(one: Tensor, other: Tensor) -> bool:
    """Whether two examples' rows are the same up to rounding."""
    if not one.is_floating_point():
        return torch.equal(one, other)
    tolerance = _FINE if one.dtype.itemsize >= 4 else _COARSE
    one, other = one.float(), other.float()
    scale = float(one.nan_to_num(0.0, 0.0, 0.0).abs().amax()) if one.numel() else 0.0
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


class Capture:
    """The hooks of one pass over a batch.

    Args:
        sites: The modules to observe.
        examples: How many examples the batch holds.
        layout: What the probe learnt; filled where ``probing``.
        probing: Only learn the layout, in a forward pass without gradients, of a batch whose first example and last but one are the
            same and whose last is another.

    Attributes:
        observed: What the pass leaves.
        backward: Whether gradients may arrive: those of the loss's own differentiation are not the step's.
        apart: Sites for which those two were not the same.
    """

    def __init__(self, sites: Sequence[Site], examples: int, layout: Layout, *, probing: bool = False) -> None:
        self.observed = Observed(examples)
        self._sites, self._examples, self._layout, self._probing = sites, examples, layout, probing
        self.backward = False
        self.apart: list[Site] = []
        self._inside = 0
        self._anchor = torch.ones((), requires_grad=True)

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Hooks are in place inside; hooks and ``requires_grad`` flags are as before outside, whatever was raised."""
        handles: list[Any] = []
        try:
            for site in self._sites:
                before: Callable[..., Any] = self._enter_unit if site.kind is Kind.UNIT else self._enter
                after: Callable[..., Any] = self._leave_unit if site.kind is Kind.UNIT else self._leave
                # Ours is the last to see the input and the first to see the output: between them nothing but the module's own forward runs.
                handles.append(site.module.register_forward_pre_hook(partial(before, site), with_kwargs=True))
                handles.append(
                    # Also after an exception: checkpointing stops a recomputed forward by one as soon as it has what it needs.
                    site.module.register_forward_hook(partial(after, site), prepend=True, with_kwargs=True, always_call=True)
                )
            yield
        finally:
            for handle in handles:
                handle.remove()
            for site in self._sites:
                for parameter in site.owned:
                    parameter.requires_grad_(True)

    # Known kinds

    def _enter(self, site: Site, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._inside or not (self._probing or torch.is_grad_enabled()):
            return None
        for parameter in site.owned:
            parameter.requires_grad_(False)
        if site.kind is not Kind.EMBEDDING:
            return None
        ids = _first(args, kwargs)
        expanded = self._per_example(site, ids)
        if expanded is ids:
            return None
        return (expanded, *args[1:]) if args else (expanded,), kwargs if args else {}

    def _per_example(self, site: Site, ids: Tensor) -> Tensor:
        """Ids with a row per example: positions usually come as one row that all examples share."""
        count = self._examples
        if ids.dim() == 1:
            if self._probing:
                shared = ids.shape[0] != count
                if self._layout.shared_rows.setdefault(site, shared) != shared:
                    raise self._axes(site, ids)
            if site not in self._layout.shared_rows:
                raise Unseen("its one-dimensional ids may run over examples or not", where=site.label)
            return ids.expand(count, -1).contiguous() if self._layout.shared_rows[site] else ids
        if ids.dim() > 1 and ids.shape[0] == 1 and count > 1:
            return ids.expand(count, *ids.shape[1:]).contiguous()
        return ids

    def _leave(self, site: Site, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor | None) -> Any:
        if self._inside or not (self._probing or torch.is_grad_enabled()):
            return None
        for parameter in site.owned:
            parameter.requires_grad_(True)
        if out is None:
            return None
        given = _first(args, kwargs)
        if given.dim() == 0 or (given.dim() < 2 and site.kind is not Kind.EMBEDDING):
            raise self._axes(site, given)
        if self._probing:
            self._layout.coarse |= out.dtype.itemsize < 4
            self._learn(site, given)
            return None
        if site not in self._layout.seen:
            raise Unseen("it did not run when the model was examined", where=site.label)
        if given.shape[0] != self._examples and (site not in self._layout.blocks or given.shape[0] % self._examples):
            raise self._axes(site, given)
        return self._watched(out, partial(self._arrived, Use(site, given.detach())))

    def _learn(self, site: Site, given: Tensor) -> None:
        """Learn what a site's first axis runs over."""
        count = self._examples
        if given.shape[0] % count or not given.numel():
            raise self._axes(site, given)
        rows = given.reshape(count, -1)
        same = _close(rows[0], rows[-2])
        if given.shape[0] != count:
            if site.kind not in _ROWWISE or not same or _close(rows[0], rows[-1]):
                raise self._axes(site, given)
            self._layout.blocks.add(site)
        elif not same:
            self.apart.append(site)
        self._layout.seen.add(site)

    def _watched(self, out: Tensor, arrived: Callable[[Tensor], None] | None = None) -> Tensor:
        return cast(Tensor, _Watch.apply(out, self._anchor.to(out.device), arrived))  # type: ignore[no-untyped-call]

    def _arrived(self, use: Use, grad: Tensor) -> None:
        self._check_phase(use.site)
        use.check_input()
        use.set_grad(grad.detach())
        arrived(use, self.observed)

    def _check_phase(self, site: Site) -> None:
        if not self.backward:
            raise UnboundedParameter(
                "the loss differentiates through it, so that its gradient is of second order",
                where=site.label,
                fix=LOOP,
                parameter=site.name,
            )

    def _axes(self, site: Site, given: Tensor, side: str = "input") -> UnboundedParameter:
        return UnboundedParameter(
            f"its {side} has shape {tuple(given.shape)}, whose first axis does not run over the examples",
            where=site.label,
            fix=LOOP,
            parameter=site.name,
        )

    # Units

    def _enter_unit(self, site: Site, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not (self._probing or torch.is_grad_enabled()):
            return
        self._inside += 1
        if self._inside > 1:
            return
        for parameter in site.owned:
            parameter.requires_grad_(False)
        if not self._probing:
            self._call = Call(site, args, kwargs)

    def _leave_unit(self, site: Site, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        if not (self._probing or torch.is_grad_enabled()):
            return None
        self._inside -= 1
        if self._inside:
            return None
        for parameter in site.owned:
            parameter.requires_grad_(True)
        if out is None:
            return None
        if self._probing:
            for value in pytree.tree_leaves(out):
                if isinstance(value, Tensor) and value.is_floating_point():
                    if value.dim() == 0 or value.shape[0] != self._examples:
                        raise self._axes(site, value, "output")
                    if not _close(value[0], value[-2]):
                        self.apart.append(site)
            self._layout.seen.add(site)
            return None
        if site not in self._layout.seen:
            raise Unseen("it did not run when the model was examined", where=site.label)
        return self._call.watch(out, self._watched, self._replayed)

    def _replayed(self, call: Call, grads: Sequence[Tensor | None]) -> None:
        self._check_phase(call.site)
        self.observed.methods[call.site] = "replay", 1
        for parameter, rows in replay(call, grads, self._examples).items():
            self.observed.add_rows(parameter, rows)
