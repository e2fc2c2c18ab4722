"""A model matched with its family's table: every parameter has its axes, or the model is refused. Nothing is ever left in plain."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from privtensors.errors import InvalidInput, ObfuscationError, UnknownFamily
from privtensors.obfuscation.equivariant.families import Axes, Basis, Family, Head, family_of
from privtensors.obfuscation.equivariant.families.base import LAYER
from privtensors.obfuscation.equivariant.transforms import Fold, can_fold

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NUMBER: Final = re.compile(r"(?<=\.)\d+(?=\.)")
_DTYPES: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Place:
    """Where one parameter belongs.

    Attributes:
        axes: Its axes, in the words of ``families.base``.
        layer: The number of its layer; -1 outside the layers.
    """

    axes: Axes
    layer: int


@dataclass(frozen=True)
class Layout:
    """What a transform needs to know about one model; holds names and sizes, no weights.

    Attributes:
        family: Its family.
        head: Its class.
        places: By parameter name, ties included: several names may be one parameter.
        twins: For each parameter its names in the model; more than one where tied.
        folds: Norms whose gain and bias move into their consumers.
        basis: What the residual stream goes through.
        width: Values per token of the residual stream.
        heads: Attention heads, of queries.
        key_heads: Attention heads, of keys and values.
        head_width: Values per head.
    """

    family: Family
    head: Head
    places: dict[str, Place]
    twins: tuple[tuple[str, ...], ...]
    folds: tuple[Fold, ...]
    basis: Basis
    width: int
    heads: int
    key_heads: int
    head_width: int

    @property
    def spaces(self) -> frozenset[str]:
        """Every space that some parameter has an axis in."""
        return frozenset(part.rstrip("*") for place in self.places.values() for axis in place.axes for part in axis.split("|"))


def layout_of(model: PreTrainedModel) -> Layout:
    """Match a model with its family's table.

    Raises:
        UnknownFamily: Its family or class is not known, or the class is not the stock one.
        ObfuscationError: It holds adapters, quantised weights, or a parameter or buffer the table does not know.
        InvalidInput: A weight is NaN, infinite or not on a device.
    """
    family, head = _class_of(model)
    state: dict[str, Tensor] = model.state_dict(keep_vars=True)
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    places = {name: _place(name, prefix, family, head, model) for name in state}
    _check_state(model, state, prefix, family)
    twins = _twins(state)
    tied = frozenset(name for names in twins if len(names) > 1 for name in names)
    folds, whole = _folds(state, prefix, family, head, tied)
    config: Any = model.config
    heads = int(config.num_attention_heads)
    head_width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    _check_rotary(model, family, head_width)
    return Layout(
        family=family,
        head=head,
        places=places,
        twins=twins,
        folds=folds,
        basis=family.mixes if whole else family.keeps,
        width=int(config.hidden_size),
        heads=heads,
        key_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_width=head_width,
    )


def _class_of(model: PreTrainedModel) -> tuple[Family, Head]:
    where = f"equivariant: {type(model).__name__}"
    if hasattr(model, "peft_config") or getattr(model, "_hf_peft_config_loaded", False):
        fix = "Call model.merge_and_unload() and convert the model it returns"
        raise ObfuscationError("the model holds adapters that are not merged into its weights", where=where, fix=fix)
    config = getattr(model, "config", None)
    if not isinstance(model, nn.Module) or not isinstance(getattr(config, "model_type", None), str):
        fix = "Give a stock Hugging Face model, without compile, DataParallel or another wrapper"
        raise UnknownFamily("this is no Hugging Face model", where=where, fix=fix)
    assert config is not None
    family = family_of(config.model_type)
    name = type(model).__name__
    stock = f"transformers.models.{family.model_type}.modeling_{family.model_type}"
    if type(model).__module__ != stock or name not in family.heads:
        known = ", ".join(sorted(family.heads))
        fix = f"Known classes of this family: {known}. A subclass may compute something else than its weights' names say"
        raise UnknownFamily(f"not a known stock class of the family {family.model_type}", where=where, fix=fix)
    if getattr(model, "is_quantized", False) or getattr(config, "quantization_config", None) is not None:
        fix = "Load it without quantisation, or dequantise it (model.dequantize()), then convert, then quantise the result"
        raise ObfuscationError("quantised weights cannot be transformed exactly", where=where, fix=fix)
    return family, family.heads[name]


def _place(name: str, prefix: str, family: Family, head: Head, model: PreTrainedModel) -> Place:
    if name in head.parameters:
        return Place(head.parameters[name], -1)
    if name.startswith(prefix):
        local = f".{name.removeprefix(prefix)}"  # the dot lets a layer's number come first
        number = _NUMBER.search(local)
        pattern = _NUMBER.sub(LAYER, local, count=1)[1:]
        if pattern in family.parameters:
            return Place(family.parameters[pattern], int(number[0]) if number else -1)
    raise ObfuscationError(
        f"the table of {family.model_type} does not know {name!r}, so it would stay in plain",
        where=f"equivariant: {type(model).__name__}",
        fix="Take a stock architecture without added parameters (adapters, cross-attention, parametrisations), or extend the table",
    )


def _check_state(model: PreTrainedModel, state: dict[str, Tensor], prefix: str, family: Family) -> None:
    where = f"equivariant: {type(model).__name__}"
    for name, tensor in state.items():
        if tensor.dtype not in _DTYPES:
            fix = "Load the model in a floating type (float32, bfloat16, float16 or float64)"
            raise ObfuscationError(f"{name} holds {tensor.dtype}, which no orthogonal matrix leaves exact", where=where, fix=fix)
        if tensor.is_meta:
            raise InvalidInput(f"{name} is not loaded", where=where, fix="Load the model without device_map and offloading")
        if not bool(torch.isfinite(tensor.detach()).all()):
            raise InvalidInput(f"{name} holds NaN or infinite values", where=where, fix="Take an intact checkpoint")
    public = {f"{prefix}{name}" for name in family.buffers}
    for name, _ in model.named_buffers():
        if name not in state and name not in public:
            fix = "Take a stock architecture without added buffers"
            raise ObfuscationError(f"the buffer {name!r} is unknown, so it may hold something in plain", where=where, fix=fix)
    missing = [name for name, _ in model.named_parameters() if name not in state]
    if missing:
        raise ObfuscationError(f"{missing[0]} is kept out of the state dict", where=where, fix="Remove the hooks that change it")


def _twins(state: dict[str, Tensor]) -> tuple[tuple[str, ...], ...]:
    names: dict[int, list[str]] = {}
    for name, tensor in state.items():
        names.setdefault(id(tensor), []).append(name)
    return tuple(tuple(group) for group in names.values())


def _folds(state: dict[str, Tensor], prefix: str, family: Family, head: Head, tied: frozenset[str]) -> tuple[tuple[Fold, ...], bool]:
    """Every norm that can be folded, and whether that is all of them."""
    wanted = []
    for fold in family.folds:
        last = fold.norm.partition(LAYER)
        found = re.compile(re.escape(f"{prefix}{last[0]}") + r"(\d+)" + re.escape(f"{last[2]}.weight"))
        for number in (match[1] for match in map(found.fullmatch, state) if match):
            names = tuple(prefix + name.replace(LAYER, number) for name in fold.consumers)
            wanted.append(replace(fold, norm=prefix + fold.norm.replace(LAYER, number), consumers=names))
    if family.last:
        wanted.append(Fold(prefix + family.last, head.readers))
    folds = tuple(fold for fold in wanted if can_fold(state, fold, tied))
    return folds, len(folds) == len(wanted)


def _check_rotary(model: PreTrainedModel, family: Family, head_width: int) -> None:
    frequencies = getattr(getattr(model.base_model, "rotary_emb", None), "inv_freq", None)
    if family.rotary and (not isinstance(frequencies, Tensor) or 2 * frequencies.numel() != head_width):
        fix = "Take a model whose rotary positions cover whole heads"
        raise ObfuscationError("rotary positions cover a part of each head", where=f"equivariant: {type(model).__name__}", fix=fix)
