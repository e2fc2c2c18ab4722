"""Models whose examples cannot be bounded by any engine, found by their modules and hooks."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parallel import DataParallel, DistributedDataParallel

from privtensors.errors import BoundingError, CrossExample, UnboundedParameter

_COMPILED = ("OptimizedModule", "ScriptModule", "RecursiveScriptModule", "FullyShardedDataParallel")


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters by name, a shared one once.

    Raises:
        BoundingError: There are none.
    """
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not found:
        raise BoundingError(
            "every parameter is frozen, so there is nothing to train", where=type(model).__name__, fix="Set requires_grad on some."
        )
    return found


def refuse_model(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
    """Refuse what no engine can bound and what does not change with a batch.

    Raises:
        BoundingError: A wrapper that runs the model elsewhere, or a parameter that is stepped inside the backward pass.
        CrossExample: An embedding whose gradient or weight depends on the other examples' ids.
    """
    for name, module in model.named_modules():
        where = name or type(module).__name__
        if isinstance(module, DataParallel | DistributedDataParallel) or type(module).__name__ in _COMPILED:
            raise BoundingError(
                f"gradients inside a {type(module).__name__} cannot be observed example by example",
                where=where,
                fix="Pass the model it wraps.",
            )
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and (module.max_norm is not None or module.scale_grad_by_freq):
            option = "max_norm rewrites its weight" if module.max_norm is not None else "scale_grad_by_freq scales its gradient"
            raise CrossExample(f"{option} by the ids of the whole batch, outside the noise", where=where, fix="Switch the option off.")
    for name, parameter in parameters.items():
        if getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise BoundingError(
                "a hook runs when its gradient is accumulated and would see it before it is bounded", where=name, fix="Remove the hook."
            )


def refuse_batch_statistics(model: nn.Module) -> None:
    """Refuse layers that normalise by, or keep, statistics over the batch. Called before each batch: ``model.train()`` switches them on.

    Raises:
        CrossExample: Such a layer is in training mode.
    """
    if not any(isinstance(module, _BatchNorm | _InstanceNorm) for module in model.modules()):
        return
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or not module.track_running_stats or module.running_mean is None):
            raise CrossExample(
                f"{type(module).__name__} normalises each example by the others of its batch and keeps their statistics without noise",
                where=name or type(module).__name__,
                fix="Put GroupNorm or LayerNorm in its place, or keep it in eval() after every model.train().",
            )
        if isinstance(module, _InstanceNorm) and module.training and module.track_running_stats:
            raise CrossExample(
                f"{type(module).__name__} keeps running statistics of the examples without noise",
                where=name or type(module).__name__,
                fix="Set track_running_stats=False, or keep it in eval() after every model.train().",
            )


def refuse_changes(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
    """Refuse a model whose trainable parameters are no longer those that the bounder was made for.

    Raises:
        UnboundedParameter: One was frozen, unfrozen, added, removed or replaced since.
    """
    known = {id(p) for p in parameters.values()}
    now = {id(p) for p in model.parameters() if p.requires_grad}
    if now == known:
        return
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in known:
            changed = name
            break
    else:
        changed = next(name for name, p in parameters.items() if id(p) not in now)
    raise UnboundedParameter(
        "it was frozen, unfrozen or replaced after the bounder was made", where=changed, fix="Make a new bounder.", parameter=changed
    )
