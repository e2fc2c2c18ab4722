"""Per-example gradients of a module that is not known by its kind: its forward is run again for every example on its own.

The examples' runs are one vectorised run (``vmap``) and their gradients its vector-Jacobian product (``vjp``). The outputs must be those
of the forward pass, which shows that the module treats examples independently and that its random draws were repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from privtensors.errors import UnboundedParameter
from privtensors.train.bounding.sites import Site
from privtensors.train.bounding.uses import wide

_LOOP = 'Use engine="loop", or "auto", which finds this out by itself.'
_FINE, _COARSE = 1e-4, 3e-2


class _Forward(nn.Module):
    """A module's forward without its hooks, which have already had their say on the input."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.forward(*args, **kwargs)


class Call:
    """One call of a unit: its input, its output, and the state that its forward depends on."""

    def __init__(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.site = site
        leaves, self.spec = pytree.tree_flatten((args, kwargs))
        self.inputs = [v.detach() if isinstance(v, Tensor) else v for v in leaves]
        self._versions = [v._version if isinstance(v, Tensor) else 0 for v in self.inputs]
        self.device = next((v.device for v in self.inputs if isinstance(v, Tensor)), torch.device("cpu"))
        self.autocast = torch.is_autocast_enabled(self.device.type), torch.get_autocast_dtype(self.device.type)
        self.random = _random_state(self.device) if site.module.training else None
        self.outputs: list[Tensor] = []

    def watch(self, out: Any, watched: Callable[[Tensor], Tensor], arrived: Callable[[Call, Sequence[Tensor | None]], None]) -> Any:
        """Call ``arrived`` once the gradients at all outputs are there; returns the output to go on with."""
        leaves, spec = pytree.tree_flatten(out)
        self.positions = [i for i, v in enumerate(leaves) if isinstance(v, Tensor) and v.is_floating_point()]
        for position in self.positions:
            leaves[position] = watched(leaves[position])
            self.outputs.append(leaves[position].detach())
        self._versions += [v._version for v in self.outputs]
        outputs = [leaves[position] for position in self.positions]
        torch.autograd.graph.register_multi_grad_hook(outputs, lambda grads: arrived(self, grads))
        return pytree.tree_unflatten(leaves, spec)

    def check(self) -> None:
        """Refuse inputs and outputs that were changed in place since: they are no longer what the module computed with."""
        now = [v._version if isinstance(v, Tensor) else 0 for v in (*self.inputs, *self.outputs)]
        if now != self._versions:
            raise self.refusal("its input or output was changed in place after it ran", "Write the operation out of place.")

    def refusal(self, what: str, fix: str = _LOOP) -> UnboundedParameter:
        where = f"{self.site.label} ({type(self.site.module).__name__})"
        return UnboundedParameter(what, where=where, fix=fix, parameter=self.site.name)


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


@contextmanager
def _repeating(call: Call) -> Any:
    """The random numbers and autocast of the call, and attention in operations that can be vectorised."""
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if call.random is not None:
            stack.enter_context(torch.random.fork_rng([call.device] if call.device.type == "cuda" else []))
            if call.device.type == "cuda":
                torch.cuda.set_rng_state(call.random, call.device)
            else:
                torch.set_rng_state(call.random)
        enabled, dtype = call.autocast
        casting: AbstractContextManager[Any] = torch.autocast(call.device.type, dtype=dtype, enabled=enabled) if enabled else nullcontext()
        stack.enter_context(casting)
        yield


def replay(call: Call, grads: Sequence[Tensor | None], examples: int) -> dict[nn.Parameter, Tensor]:
    """The per-example gradients ``(B, *parameter.shape)`` of the trainable parameters of a unit, float32 or wider.

    Args:
        call: The call.
        grads: The gradient of the summed loss at each floating-point output; None where the loss does not depend on it.
        examples: B.

    Raises:
        UnboundedParameter: The forward cannot be vectorised, or gives something else example by example.
    """
    call.check()
    module = call.site.module
    trainable = {id(p) for p in call.site.owned}
    names = {name: p for name, p in module.named_parameters() if id(p) in trainable}
    forward = _Forward(module)
    batched = [isinstance(v, Tensor) and v.dim() > 0 and v.shape[0] == examples for v in call.inputs]
    moving = [v for v, b in zip(call.inputs, batched, strict=True) if b]
    cotangents = [torch.zeros_like(o) if g is None else g.detach() for g, o in zip(grads, call.outputs, strict=True)]
    if any(o.dim() == 0 or o.shape[0] != examples for o in call.outputs):
        raise call.refusal(f"an output's first axis does not run over the {examples} examples")

    def one(cotangent: list[Tensor], own: list[Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
        parts = iter(own)
        leaves = [next(parts).unsqueeze(0) if b else v for v, b in zip(call.inputs, batched, strict=True)]
        args, kwargs = pytree.tree_unflatten(leaves, call.spec)

        def outputs(values: dict[str, Tensor]) -> list[Tensor]:
            out, _ = pytree.tree_flatten(functional_call(forward, {f"module.{n}": v for n, v in values.items()}, args, kwargs))
            return [out[position].squeeze(0) for position in call.positions]

        result, pull, *_ = vjp(outputs, {name: p.detach() for name, p in names.items()})
        return cast(list[Tensor], result), cast(tuple[dict[str, Tensor]], pull(cotangent))[0]

    try:
        with _repeating(call):
            outputs, gradients = vmap(one, randomness="different")(cotangents, moving)
    except Exception as error:  # whatever its code raises when run in another way than it was written for
        raise call.refusal(f"its forward cannot be run example by example ({type(error).__name__})") from error
    for ours, theirs in zip(outputs, call.outputs, strict=True):
        if not _same(ours, theirs):
            raise call.refusal("its output for an example is another on its own: it mixes examples, or draws random numbers differently")
    return {p: wide(gradients[name]) for name, p in names.items()}


def _same(ours: Tensor, theirs: Tensor) -> bool:
    scale = torch.nan_to_num(theirs.detach().float(), 0.0, 0.0, 0.0).abs().amax().item() if theirs.numel() else 0.0
    tolerance = _FINE if theirs.dtype.itemsize >= 4 else _COARSE
    ours, theirs = ours.float(), theirs.float()
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
