"""Where a model's trainable parameters are used: the modules that the book-keeping engine observes, found once.

A module is known by the forward that runs, not by its name: a subclass or an instance with a forward of its own is not assumed to
compute what its base class computes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final

from torch import nn


class Kind(Enum):
    """What a module computes, as far as its per-example gradients are concerned."""

    LINEAR = "linear"
    CONV1D = "transposed linear"
    CONV2D = "convolution"
    EMBEDDING = "embedding"
    LAYER_NORM = "layer norm"
    GROUP_NORM = "group norm"
    UNIT = "unit"


@dataclass(frozen=True, eq=False)
class Site:
    """One module that owns trainable parameters.

    Attributes:
        name: Its dotted name; empty for the model itself.
        module: It.
        kind: What it computes; of a unit that is not known, and its whole subtree belongs to it.
        weight: The trainable weight of a known kind, or None.
        bias: The trainable bias of a known kind, or None.
        owned: Every trainable parameter used in its forward.
    """

    name: str
    module: nn.Module
    kind: Kind
    weight: nn.Parameter | None
    bias: nn.Parameter | None
    owned: tuple[nn.Parameter, ...]

    @property
    def label(self) -> str:
        """The name to show: the class where the site is the model itself."""
        return self.name or type(self.module).__name__


_KNOWN: Final = MappingProxyType(
    {
        nn.Linear.forward: Kind.LINEAR,
        nn.Embedding.forward: Kind.EMBEDDING,
        nn.LayerNorm.forward: Kind.LAYER_NORM,
        nn.GroupNorm.forward: Kind.GROUP_NORM,
    }
)


def known_kind(module: nn.Module) -> Kind | None:
    """What a module computes, or None where that is not known for certain."""
    if "forward" in vars(module) or "weight" not in module._parameters or any(n not in ("weight", "bias") for n in module._parameters):
        return None
    forward = type(module).forward
    kind = _KNOWN.get(forward)
    if kind is not None:
        return kind
    if isinstance(module, nn.Conv2d) and forward is nn.Conv2d.forward and type(module)._conv_forward is nn.Conv2d._conv_forward:
        return Kind.CONV2D if module.padding_mode == "zeros" and not isinstance(module.padding, str) else None
    hugging_face = sys.modules.get("transformers.pytorch_utils")  # a model that uses its Conv1D has imported it
    if hugging_face is not None and forward is hugging_face.Conv1D.forward:
        return Kind.CONV1D
    return None


def find_sites(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> tuple[Site, ...]:
    """The modules to observe, in the model's order.

    A module of unknown forward that owns trainable parameters becomes a unit with all it contains, so that whatever it does with
    its children's parameters is inside. Containers of parameters have no forward; their owner is the unit.
    """
    trainable = {id(p) for p in parameters.values()}
    sites: list[Site] = []
    seen: set[int] = set()

    def raw(module: nn.Module) -> bool:
        own = any(p is not None and id(p) in trainable for p in module._parameters.values())
        return own or any(isinstance(c, nn.ParameterList | nn.ParameterDict) and raw(c) for c in module.children())

    def visit(name: str, module: nn.Module) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        kind = known_kind(module)
        if kind is not None:
            weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
            weight = weight if weight is not None and id(weight) in trainable else None
            bias = bias if bias is not None and id(bias) in trainable else None
            owned = tuple(p for p in (weight, bias) if p is not None)
            if owned:
                sites.append(Site(name, module, kind, weight, bias, owned))
        elif raw(module) and not isinstance(module, nn.ParameterList | nn.ParameterDict):
            owned = tuple(p for p in module.parameters() if id(p) in trainable)
            sites.append(Site(name, module, Kind.UNIT, None, None, owned))
            return
        for child, inner in module.named_children():
            visit(f"{name}.{child}" if name else child, inner)

    visit("", model)
    return tuple(sites)
