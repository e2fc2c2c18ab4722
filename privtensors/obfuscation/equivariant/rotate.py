"""Key rotation: a model under one key becomes one under another, and the plain model is not needed. Guarantee class: heuristic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from privtensors.obfuscation.equivariant.convert import Progress, bijections_between, bijections_of, rebuilt
from privtensors.obfuscation.equivariant.layout import layout_of
from privtensors.obfuscation.equivariant.spaces import Changed, KeyedMaps
from privtensors.obfuscation.vocabulary import Labels, Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from privtensors.obfuscation.keys import ObfuscationKey


def rekey(model: PreTrainedModel, old: ObfuscationKey, new: ObfuscationKey, *, progress: Progress | None = None) -> PreTrainedModel:
    """A model that :func:`transform` made under ``old``, now as it would have made it under ``new``, up to rounding.

    Each space goes from one basis to the other by one map, so the plain weights are never formed, and rounding does not add up with
    the number of rotations: a rotated matrix is as well conditioned as a fresh one. Ids and labels are afterwards those of ``new`` alone.

    A wrong ``old`` cannot be told from the weights and gives noise: check key ids first, as the folders' manifests do.

    Args:
        model: Under ``old``, with the bijections of ``maps_of(model, old)``. It is left untouched.
        old: The key it is under.
        new: The key it shall be under.
        progress: Called with the number of parameters done and their total.

    Raises:
        UnknownFamily, ObfuscationError, InvalidInput: As ``transform``.
    """
    layout = layout_of(model)
    (vocabulary, labels), (next_vocabulary, next_labels) = bijections_of(model, layout, old), bijections_of(model, layout, new)
    maps = Changed(KeyedMaps(layout, old, vocabulary, labels), KeyedMaps(layout, new, next_vocabulary, next_labels))
    ids, classes = bijections_between(vocabulary, next_vocabulary), bijections_between(labels, next_labels)
    return rebuilt(
        model,
        layout,
        maps,
        None if ids is None else Vocabulary(ids),
        None if classes is None else Labels(classes),
        progress,
    )
