"""The map of every space of a model, expanded from a key: one key stream per purpose."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from privtensors.errors import ObfuscationError
from privtensors.obfuscation.equivariant.families.base import LAYER_SPACES, Basis
from privtensors.obfuscation.equivariant.layout import Layout
from privtensors.obfuscation.equivariant.transforms import BlockMap, identity, rotary_blocks

if TYPE_CHECKING:
    from privtensors.obfuscation.keys import ObfuscationKey
    from privtensors.obfuscation.vocabulary import Labels, Vocabulary

_CONDITION = 4.0
_LARGEST_SCALE = 2.0


class Maps(Protocol):
    """Gives the map of a space."""

    def of(self, space: str, layer: int, size: int) -> BlockMap:
        """The map of ``space`` in ``layer`` (-1 outside the layers), whose axis has ``size`` values."""
        ...


def hidden_map(key: ObfuscationKey, width: int, basis: Basis) -> BlockMap:
    """What the residual stream of a model under ``key`` goes through; its ``inverse.apply`` gives plain hidden states to the key's owner.

    Args:
        key: The key.
        width: Values per token.
        basis: As ``basis_of(model)`` says.
    """
    stream = key.stream("hidden")
    match basis:
        case "permutation":
            return BlockMap(stream.permutation(width))
        case "signed permutation":
            return BlockMap(stream.permutation(width), stream.signs(width).reshape(width, 1, 1), orthogonal=True)
        case "orthogonal":
            return _whole(stream.orthogonal(width))
        case "mean-fixing orthogonal":
            return _whole(stream.mean_fixing_orthogonal(width))


def pooler_map(key: ObfuscationKey, width: int) -> BlockMap:
    """What ``pooler_output`` goes through."""
    return BlockMap(key.stream("pooler").permutation(width))


def patch_map(key: ObfuscationKey, patches: int) -> BlockMap:
    """What the tokens of an image go through: the class token first, then the patches permuted."""
    return BlockMap(torch.cat([torch.zeros(1, dtype=torch.int64), 1 + key.stream("patches").permutation(patches)]))


def pixel_map(key: ObfuscationKey, values: int) -> BlockMap:
    """What the values of one patch (channels, height, width, flattened) go through."""
    return _whole(key.stream("pixels").orthogonal(values))


def _whole(matrix: Tensor) -> BlockMap:
    """One orthogonal matrix for the whole space."""
    return BlockMap(torch.zeros(1, dtype=torch.int64), matrix.unsqueeze(0), orthogonal=True)


class KeyedMaps:
    """The maps of one key for one model.

    Args:
        layout: The model's.
        key: The key.
        vocabulary: Token ids; None for a model without.
        labels: Class labels; None for a model without.
    """

    def __init__(self, layout: Layout, key: ObfuscationKey, vocabulary: Vocabulary | None, labels: Labels | None) -> None:
        self._layout, self._key, self._vocabulary, self._labels = layout, key, vocabulary, labels
        self._made: dict[tuple[str, int], BlockMap] = {}

    def __repr__(self) -> str:
        return f"KeyedMaps(key={self._key.id})"

    def of(self, space: str, layer: int, size: int) -> BlockMap:
        """The map of a space; see :class:`Maps`.

        Raises:
            ObfuscationError: The space has another size than the layout or an earlier axis says.
        """
        if space == "1":
            return identity(size)
        at = (space, layer if space in LAYER_SPACES else -1)
        if at not in self._made:
            self._made |= self._attention(layer) if space in ("q", "k", "v", "o") else {at: self._single(space, layer, size)}
        found = self._made[at]
        if found.size != size:
            fix = "Give the vocabulary, labels and weights of one model"
            raise ObfuscationError(f"{space} has {size} values here and {found.size} elsewhere", where="equivariant", fix=fix)
        return found

    def _single(self, space: str, layer: int, size: int) -> BlockMap:
        key, layout = self._key, self._layout
        match space:
            case "vocab":
                if self._vocabulary is not None:
                    return BlockMap(self._vocabulary.plain)
            case "labels":
                if self._labels is not None:
                    return BlockMap(self._labels.plain)
            case "hidden":
                return hidden_map(key, size, layout.basis)
            case "gain":  # folded gains are 1 and stay; the others follow the permutation of the stream
                return self.of("hidden", -1, size).places if layout.basis.endswith("permutation") else identity(size)
            case "pooler":
                return pooler_map(key, size)
            case "patches":
                return patch_map(key, size - 1)
            case "pixels":
                return pixel_map(key, size)
            case "ffn":
                return BlockMap(key.stream(f"layer {layer}/ffn").permutation(size))
            case "up":
                stream = key.stream(f"layer {layer}/up")
                scales = stream.signs(size) * stream.scales(size, largest=_LARGEST_SCALE)
                return BlockMap(self.of("ffn", layer, size).order, scales.reshape(size, 1, 1))
        fix = "Vocabulary.from_key and Labels.from_key make them; leave them out only for a model that has no such axis"
        raise ObfuscationError(f"the model has an axis of {space}, and no bijection for it was given", where="equivariant", fix=fix)

    def _attention(self, layer: int) -> dict[tuple[str, int], BlockMap]:
        """q goes through A and k through A^-T, so that q k^T stays; v goes through B and the output projection undoes it.

        The query heads of a group read one key head, so they share its matrices; groups change places, and query heads within them.
        """
        layout, key = self._layout, self._key
        groups, width, share = layout.key_heads, layout.head_width, layout.heads // layout.key_heads
        stream = key.stream(f"layer {layer}/heads")
        order = stream.permutation(groups)
        within = torch.stack([stream.permutation(share) for _ in range(groups)])
        query_order = (order.unsqueeze(1) * share + within).reshape(-1)
        stream = key.stream(f"layer {layer}/query key")
        if layout.family.rotary:
            pairs = (groups, width // 2)
            scales = stream.scales(math.prod(pairs), largest=_LARGEST_SCALE).reshape(pairs)
            query_key = rotary_blocks(2 * math.pi * stream.uniform(pairs), scales)
        else:
            query_key = torch.stack([stream.invertible(width, condition=_CONDITION) for _ in range(groups)])
        stream = key.stream(f"layer {layer}/value output")
        value = torch.stack([stream.invertible(width, condition=_CONDITION) for _ in range(groups)])
        return {
            ("q", layer): BlockMap(query_order, query_key.repeat_interleave(share, 0)),
            ("k", layer): BlockMap(order, query_key).dual,
            ("v", layer): BlockMap(order, value),
            ("o", layer): BlockMap(query_order, value.repeat_interleave(share, 0)),
        }


class Changed:
    """From the maps of one key to those of another, as one map per space: the plain weights are never formed."""

    def __init__(self, old: Maps, new: Maps) -> None:
        self._old, self._new = old, new
        self._made: dict[tuple[str, int, int], BlockMap] = {}

    def of(self, space: str, layer: int, size: int) -> BlockMap:
        """The map of a space; see :class:`Maps`."""
        at = (space, layer, size)
        if at not in self._made:
            self._made[at] = self._old.of(*at).inverse.then(self._new.of(*at))
        return self._made[at]
