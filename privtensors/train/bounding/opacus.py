"""Opacus as the reference to compare with: its per-sample gradient hooks, put on a model that stays what it is.

Two repairs make Hugging Face's default calls run and right (position ids come as one row for all examples; the padding row has no
gradient); what else Opacus 1.6 gets wrong or cannot do is refused.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from privtensors.errors import MissingExtra, ParameterError, UnboundedParameter
from privtensors.train.bounding.engine import Choice
from privtensors.train.bounding.sums import RunningSum
from privtensors.train.bounding.weighted import clipping_factors
from privtensors.train.roles import Batch, Loss

_FIX = 'Use engine="bookkeeping" or "loop".'
_TOLERANCE = 1e-3


class OpacusReference:
    """Clips by Opacus's hooks: per-example gradients of every layer, or ghost norms and a second backward pass.

    Args:
        model: The model.
        parameters: Its trainable parameters by name.
        mode: ``"hooks"`` or ``"ghost"``.
        losses: The examples' losses ``(B,)``, which ghost clipping weights before its second backward pass; ``bound`` then calls it in
            place of the mean loss.

    Raises:
        MissingExtra: Opacus is not installed.
        UnboundedParameter: Opacus gets this model wrong or cannot run it.
    """

    name = "opacus"

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        *,
        mode: Literal["hooks", "ghost"] = "hooks",
        losses: Callable[[Batch], Tensor] | None = None,
    ) -> None:
        if (mode == "ghost") != (losses is not None):
            raise ParameterError("the examples' losses go with ghost clipping, which needs them", where="OpacusReference")
        _refuse(model, parameters, ghost=mode == "ghost")
        try:
            from opacus.grad_sample import (  # type: ignore[import-untyped]
                GradSampleHooks,
                GradSampleHooksFastGradientClipping,
            )
        except ImportError as error:
            raise MissingExtra("Opacus is not installed", where="engine='opacus'", fix="pip install 'privtensors[dp]'") from error
        self._model, self._parameters, self._losses = model, dict(parameters), losses
        self._examples = 0
        self._handles: list[Any] = []
        self._padding: dict[nn.Parameter, int] = {}
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                self._handles.append(module.register_forward_pre_hook(self._expand, with_kwargs=True))
                if module.padding_idx is not None and module.weight.requires_grad and isinstance(module.weight, nn.Parameter):
                    self._padding[module.weight] = module.padding_idx
                    if mode == "ghost":
                        self._handles.append(module.register_forward_hook(self._watch_padding))
        make: Any = GradSampleHooksFastGradientClipping if mode == "ghost" else GradSampleHooks
        try:
            self._hooks = make(model, strict=True, loss_reduction="mean")
        except NotImplementedError as error:
            self._remove()
            for parameter in model.parameters():
                for name in [n for n in vars(parameter) if n in ("grad_sample", "_forward_counter")]:
                    delattr(parameter, name)
            raise UnboundedParameter("Opacus refuses a trainable layer with buffers", where=type(model).__name__, fix=_FIX) from error
        self._hooks.disable_hooks()

    def bound(self, batch: Batch, loss: Loss, examples: int, clipping_norm: float, sums: RunningSum) -> None:
        """Add the clipped gradients of a batch; the model must be in training mode, in which alone Opacus's hooks run."""
        self._examples = examples
        self._hooks.enable_hooks()
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Full backward hook is firing")  # as it should, at modules that take no gradient
                if self._losses is None:
                    self._by_samples(loss(batch), examples, clipping_norm, sums)
                else:
                    self._by_ghost_norms(self._losses(batch), clipping_norm, sums)
        except (NotImplementedError, ValueError, AttributeError, RuntimeError, TypeError, KeyError) as error:
            if isinstance(error, UnboundedParameter):
                raise
            raise UnboundedParameter(f"Opacus fails on it ({type(error).__name__})", where=type(self._model).__name__, fix=_FIX) from error
        finally:
            self._hooks.disable_hooks()
            self._clean()

    def _by_samples(self, value: Tensor, examples: int, clipping_norm: float, sums: RunningSum) -> None:
        value.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            squares = torch.zeros(examples)
            # Of the whole gradient: that of a key's bias, for one, is nothing but rounding.
            scale = examples * max((float(p.grad.abs().amax()) for p in self._parameters.values() if p.grad is not None), default=0.0)
            for name, parameter in self._parameters.items():
                rows = getattr(parameter, "grad_sample", None)
                if parameter.grad is None and rows is None:
                    continue
                if isinstance(rows, Tensor) and parameter in self._padding:
                    rows[:, self._padding[parameter]] = 0  # as in torch; Opacus trains it
                if not isinstance(rows, Tensor) or parameter.grad is None or not _adds_up(rows, parameter.grad * examples, scale):
                    raise UnboundedParameter(
                        "Opacus's per-sample gradients do not add up to the batch's", where=name, fix=_FIX, parameter=name
                    )
                squares += rows.flatten(1).square().sum(1).cpu()
            factors, finite = clipping_factors(squares, clipping_norm)
            with sums.adding():
                for parameter in self._parameters.values():
                    if isinstance(rows := getattr(parameter, "grad_sample", None), Tensor):
                        kept = rows.flatten(1).masked_fill(~finite.to(rows.device)[:, None], 0)
                        sums.add(parameter, (factors.to(rows) @ kept).view(parameter.shape))

    def _by_ghost_norms(self, losses: Tensor, clipping_norm: float, sums: RunningSum) -> None:
        losses.mean().backward(retain_graph=True)  # type: ignore[no-untyped-call]
        factors, finite = clipping_factors(self._hooks.get_norm_sample().square(), clipping_norm)
        if not bool(finite.all()):
            raise UnboundedParameter("ghost clipping cannot leave out an example that is not finite", where="loss", fix=_FIX)
        self._hooks.disable_hooks()
        for parameter in self._parameters.values():
            parameter.grad = None
        (factors.to(losses) * losses).sum().backward()  # type: ignore[no-untyped-call]
        with sums.adding():
            for parameter in self._parameters.values():
                if parameter.grad is not None:
                    sums.add(parameter, parameter.grad)
                    parameter.grad = None

    def _expand(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A row of ids per example where all share one; contiguous, or Opacus's ghost norms fail."""
        if not self._hooks.hooks_enabled:
            return None
        ids = args[0] if args else kwargs["input"]
        ids = ids[None] if ids.dim() == 1 else ids
        ids = ids.expand(self._examples, *ids.shape[1:]) if ids.shape[0] == 1 else ids
        return (ids.contiguous(),), {}

    def _watch_padding(self, module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        """Ghost norms count the padding row's gradient, which is not one; right only where it is zero anyway."""
        if not (self._hooks.hooks_enabled and out.requires_grad):
            return
        padded = args[0] == cast(nn.Embedding, module).padding_idx

        def zero(grad: Tensor) -> None:
            if bool(grad[padded].any()):
                raise UnboundedParameter("Opacus's ghost norm counts the padding row", where="Embedding", fix=_FIX)

        out.register_hook(zero)  # type: ignore[no-untyped-call]

    def describe(self) -> tuple[Choice, ...]:
        """One row: Opacus treats every layer alike."""
        method = "per-sample gradients of every layer" if self._losses is None else "ghost norms, two backward passes"
        return (Choice("", sum(p.numel() for p in self._parameters.values()), "opacus", method),)

    def close(self) -> None:
        """Take Opacus's hooks and attributes off the model."""
        self._hooks.cleanup()
        self._remove()

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _clean(self) -> None:
        for module in self._model.modules():
            for name in ("activations", "max_batch_len"):
                if name in vars(module):
                    delattr(module, name)
        for parameter in self._parameters.values():
            parameter.grad = None
            for name in ("_current_grad_sample", "_norm_sample"):
                if hasattr(parameter, name):
                    delattr(parameter, name)
            parameter.grad_sample = None  # type: ignore[attr-defined]
            parameter._forward_counter = 0  # type: ignore[attr-defined]


def _adds_up(rows: Tensor, whole: Tensor, scale: float) -> bool:
    return torch.allclose(rows.sum(0), whole, rtol=_TOLERANCE, atol=_TOLERANCE * scale, equal_nan=True)


def _refuse(model: nn.Module, parameters: Mapping[str, nn.Parameter], *, ghost: bool) -> None:
    trainable = {id(p) for p in parameters.values()}
    owned = {module: [p for p in module._parameters.values() if p is not None and id(p) in trainable] for module in model.modules()}
    uses = Counter(id(p) for own in owned.values() for p in own)
    for name, module in model.named_modules():
        tied = any(uses[id(p)] > 1 for p in owned[module])
        what = ""
        if tied and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            what = "Opacus trains the padding row of an embedding, which cannot be told from the head it is tied to"
        elif tied and ghost:
            what = "Opacus's ghost clipping refuses tied parameters"
        elif owned[module] and isinstance(module, nn.LayerNorm) and module.bias is None:
            what = "Opacus fails on a LayerNorm without bias"
        elif getattr(module, "gradient_checkpointing", False) is True:
            what = "Opacus fails under gradient checkpointing"
        if what:
            raise UnboundedParameter(what, where=name or type(module).__name__, fix=_FIX, parameter=name)
