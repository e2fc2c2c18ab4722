"""A stock Hugging Face model rewritten in a keyed basis: same class, names, shapes and function, other numbers.

STIP (Yuan et al., 2023) permutes; SliceGPT (Ashkboos et al., 2024) rotates the residual stream of models with RMSNorm and, after folding,
LayerNorm. Guarantee class: heuristic. A server that holds the result and knows the open model it came from recovers the key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from privtensors.errors import ObfuscationError
from privtensors.obfuscation.equivariant.families import Basis
from privtensors.obfuscation.equivariant.layout import Layout, Place, layout_of
from privtensors.obfuscation.equivariant.spaces import KeyedMaps, Maps
from privtensors.obfuscation.equivariant.transforms import fold_norm
from privtensors.obfuscation.vocabulary import Labels, Vocabulary, fixed_ids, keyed_config, keyed_generation_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from privtensors.obfuscation.keys import ObfuscationKey

Progress = Callable[[int, int], None]
"""Called with the number of parameters done and their total."""


def basis_of(model: PreTrainedModel) -> Basis:
    """What the residual stream of this model goes through under a key; plain and transformed model say the same.

    Raises:
        UnknownFamily, ObfuscationError, InvalidInput: As :func:`transform`.
    """
    return layout_of(model).basis


def maps_of(model: PreTrainedModel, key: ObfuscationKey) -> tuple[Vocabulary | None, Labels | None]:
    """The bijections of token ids and class labels that belong to a model and a key; None for what it does not have.

    Raises:
        UnknownFamily, ObfuscationError, InvalidInput: As :func:`transform`.
    """
    return bijections_of(model, layout_of(model), key)


def transform(
    model: PreTrainedModel,
    key: ObfuscationKey,
    *,
    vocabulary: Vocabulary | None,
    labels: Labels | None,
    progress: Progress | None = None,
) -> PreTrainedModel:
    """The model in the basis of a key: with keyed ids in, it gives the same logits, at keyed places.

    Exact in real arithmetic. The algebra is float64, and the result is cast back to each parameter's own type, so in float32 logits
    agree to about 1e-5 of their size. Guarantee class: heuristic; a server that knows the open model recovers the key.

    Args:
        model: A stock class of a known family, on any device, in float16, bfloat16, float32 or float64. It is left untouched.
        key: The key.
        vocabulary: Bijection of all rows of the token embedding; None for a model that takes pixels.
        labels: Bijection of the class labels; None for a model without. Outputs that are no labels (start and end of an answer, whether
            a sentence is the next, one score per choice) keep their order.
        progress: Called as parameters are done.

    Returns:
        A new model of the same class, with keyed ids in its configurations, in evaluation mode, on the same device.

    Raises:
        UnknownFamily: The family or class has no table.
        ObfuscationError: A parameter or buffer is not understood, weights are quantised or adapters not merged, the bijections are missing
            or of another size, an id that must keep its place does not, or a result leaves the range of its type.
        InvalidInput: A weight is NaN or infinite.
    """
    layout = layout_of(model)
    if "labels" not in layout.spaces:
        labels = None
    _check_fixed(model, layout, vocabulary)
    return rebuilt(model, layout, KeyedMaps(layout, key, vocabulary, labels), vocabulary, labels, progress)


def rebuilt(
    model: PreTrainedModel,
    layout: Layout,
    maps: Maps,
    vocabulary: Vocabulary | None,
    labels: Labels | None,
    progress: Progress | None,
) -> PreTrainedModel:
    """A fresh model of the same class whose parameters are those of ``model`` under ``maps``; nothing else of ``model`` is carried over."""
    built: PreTrainedModel = _fresh(model, vocabulary, labels)
    # state_dict(keep_vars=True) gives a tied parameter the same object under each of its names.
    targets: dict[str, Tensor] = built.state_dict(keep_vars=True)
    _check_twins(layout, targets)
    state: dict[str, Tensor] = dict(model.state_dict())
    for fold in layout.folds:
        for part in (fold.norm, *fold.consumers):
            for name in (f"{part}.weight", f"{part}.bias"):
                if name in state:
                    state[name] = state[name].double().cpu()
        fold_norm(state, fold)
    for done, names in enumerate(layout.twins, 1):
        first = names[0]
        for name in names[1:]:
            if not _same_place(layout.places[name], layout.places[first]):
                raise ObfuscationError(f"{name} and {first} are one parameter in two roles", where="equivariant", fix="Untie them first")
        plain = model.get_parameter(first)
        moved = _moved(state[first], layout.places[first], maps).to(plain.device, plain.dtype)
        if not bool(torch.isfinite(moved).all()):
            fix = "Convert the model in float32 or bfloat16"
            raise ObfuscationError(f"{first} leaves the range of {plain.dtype}", where="equivariant", fix=fix)
        targets[first].data = moved
        for name in names:
            del state[name]
        if progress is not None:
            progress(done, len(layout.twins))
    if state:
        raise ObfuscationError(f"{next(iter(state))} was not transformed", where="equivariant", fix="This is a defect: report it")
    nn.Module.eval(built)
    return built


def bijections_between(old: Vocabulary | Labels | None, new: Vocabulary | Labels | None) -> Tensor | None:
    """Keyed ids under ``new`` of keyed ids under ``old``, int64 (size,); None where there is none."""
    return None if old is None or new is None else new.keyed[old.plain]


def bijections_of(model: PreTrainedModel, layout: Layout, key: ObfuscationKey) -> tuple[Vocabulary | None, Labels | None]:
    """As :func:`maps_of`, for a layout at hand."""
    config: Any = model.config
    table: Any = None if layout.family.pixels else model.get_input_embeddings()
    vocabulary = None if table is None else Vocabulary.from_key(key, len(table.weight), fixed=fixed_ids(config))
    labels = Labels.from_key(key, int(config.num_labels)) if "labels" in layout.spaces else None
    return vocabulary, labels


def _check_fixed(model: PreTrainedModel, layout: Layout, vocabulary: Vocabulary | None) -> None:
    if vocabulary is None:
        return
    for number in fixed_ids(model.config):
        if not number < vocabulary.size or int(vocabulary.keyed[number]) != number:
            fix = "Vocabulary.from_key(key, size, fixed=fixed_ids(model.config)) keeps it"
            what = f"{layout.family.model_type} counts positions from the padding id, so that id must keep its place"
            raise ObfuscationError(what, where="equivariant", fix=fix)


def _fresh(model: PreTrainedModel, vocabulary: Vocabulary | None, labels: Labels | None) -> PreTrainedModel:
    kind: Any = type(model)
    config = keyed_config(model.config, vocabulary, labels)
    options: dict[str, object] = {}
    if model.base_model is model and hasattr(model, "pooler"):
        options["add_pooling_layer"] = model.pooler is not None
    if getattr(getattr(model, "embeddings", None), "mask_token", None) is not None:
        options["use_mask_token"] = True
    with torch.random.fork_rng(devices=[]):  # initial values are drawn and thrown away; the caller's generator stays where it is
        built: PreTrainedModel = kind._from_config(
            config, dtype=model.dtype, attn_implementation=model.config._attn_implementation, **options
        )
    built.to(model.device)  # type: ignore[arg-type]
    if model.can_generate() and model.generation_config is not None and vocabulary is not None:
        built.generation_config = keyed_generation_config(model.generation_config, vocabulary)
    return built


def _check_twins(layout: Layout, targets: dict[str, Tensor]) -> None:
    names: dict[int, set[str]] = {}
    for name, tensor in targets.items():
        names.setdefault(id(tensor), set()).add(name)
    if {frozenset(group) for group in names.values()} != {frozenset(group) for group in layout.twins}:
        fix = "Set config.tie_word_embeddings to what the weights are, or call model.tie_weights()"
        what = "the model's parameters are not those its configuration builds, or are tied otherwise"
        raise ObfuscationError(what, where="equivariant", fix=fix)


def _same_place(one: Place, other: Place) -> bool:
    """Whether two axes tables move a parameter alike: stars do not matter where a map is its own dual, as vocab and hidden are."""
    return [a.rstrip("*") for a in one.axes] == [a.rstrip("*") for a in other.axes] and one.layer == other.layer


def _moved(tensor: Tensor, place: Place, maps: Maps) -> Tensor:
    axes = place.axes
    shape = tensor.shape
    values = tensor.detach().double().cpu().reshape(*shape[: len(axes) - 1], -1)
    for axis, spaces in enumerate(axes):
        parts = spaces.split("|")
        moved = []
        for part, chunk in zip(parts, values.chunk(len(parts), axis), strict=True):
            found = maps.of(part.rstrip("*"), place.layer, chunk.shape[axis])
            moved.append((found.dual if part.endswith("*") else found).apply(chunk, axis))
        values = torch.cat(moved, axis) if len(moved) > 1 else moved[0]
    return values.reshape(shape)
