"""The algebra of equivariant transforms, in float64: block maps on the axes of weights, and the folding of norms.

Activations are rows. A space (the residual stream, the heads of a layer, the token ids, ...) is transformed by an invertible matrix T,
y' = y T. A weight whose axis *produces* values of the space is multiplied by T along that axis; one whose axis *consumes* them by T's
dual, T^-T, so that the two cancel. Every T used is a permutation of equal blocks with one small matrix per block.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

import torch
from torch import Tensor

from privtensors.errors import ParameterError


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class BlockMap:
    """y -> y' with y'[j] = y[order[j]] blocks[order[j]], where y is cut into n blocks of b values.

    b = 1 without blocks is a permutation; b = 1 with blocks of -1 and 1 a signed one; n = 1 any matrix; otherwise heads.
    Its values are as secret as the key: no repr shows them.

    Attributes:
        order: int64 (n,), a permutation: which block comes j-th.
        blocks: float64 (n, b, b), invertible, in the order of the plain blocks; None for a pure permutation of n values.
        orthogonal: Every block is orthogonal, so the map is its own dual.
    """

    order: Tensor
    blocks: Tensor | None = None
    orthogonal: bool = False

    def __repr__(self) -> str:
        return f"BlockMap(size={self.size})"

    @property
    def size(self) -> int:
        """How many values the space has: n b."""
        return int(self.order.numel()) * (1 if self.blocks is None else int(self.blocks.shape[-1]))

    def apply(self, values: Tensor, axis: int = -1) -> Tensor:
        """``values`` with T on one axis; floating, any shape whose ``axis`` has ``size`` values. A permutation copies exactly.

        Raises:
            ParameterError: The axis has another length.
        """
        if values.shape[axis] != self.size:
            raise ParameterError(f"an axis of {values.shape[axis]} values under a map of {self.size}", where="BlockMap.apply")
        order = self.order.to(values.device)
        if self.blocks is None:
            return values.index_select(axis, order)
        blocks = self.blocks.to(values.device, values.dtype)
        rows = values.movedim(axis, -1)
        cut = rows.reshape(*rows.shape[:-1], len(order), blocks.shape[-1])
        turned = torch.einsum("...nb,nbc->...nc", cut, blocks).index_select(-2, order)
        return turned.reshape(rows.shape).movedim(-1, axis)

    @property
    def dual(self) -> BlockMap:
        """T^-T, for axes that consume the space."""
        return self if self.blocks is None or self.orthogonal else BlockMap(self.order, torch.linalg.inv(self.blocks).mT)

    @property
    def inverse(self) -> BlockMap:
        """T^-1: plain values of transformed ones."""
        back = torch.argsort(self.order)
        if self.blocks is None:
            return BlockMap(back)
        inverted = self.blocks.mT if self.orthogonal else torch.linalg.inv(self.blocks)
        return BlockMap(back, inverted[self.order], self.orthogonal)

    @property
    def places(self) -> BlockMap:
        """The permutation of a map of single values, without its signs or scales: what a gain follows."""
        if self.blocks is not None and self.blocks.shape[-1] != 1:
            raise ParameterError("a gain cannot follow a map that mixes coordinates", where="BlockMap.places", fix="Fold the gain first")
        return BlockMap(self.order)

    def then(self, after: BlockMap) -> BlockMap:
        """First this map, then ``after``, as one; both cut the space into the same blocks.

        Raises:
            ParameterError: They do not.
        """
        order = self.order[after.order]
        if self.blocks is None and after.blocks is None:
            return BlockMap(order)
        first, second = self._full_blocks(), after._full_blocks()
        if first.shape != second.shape:
            raise ParameterError(f"maps of blocks {tuple(first.shape)} and {tuple(second.shape)}", where="BlockMap.then")
        return BlockMap(order, first @ second[torch.argsort(self.order)], self._isometric and after._isometric)

    @property
    def _isometric(self) -> bool:
        return self.blocks is None or self.orthogonal

    def _full_blocks(self) -> Tensor:
        return torch.ones(self.size, 1, 1, dtype=torch.float64) if self.blocks is None else self.blocks


def identity(size: int) -> BlockMap:
    """The map that changes nothing."""
    return BlockMap(torch.arange(size))


def rotary_blocks(angles: Tensor, scales: Tensor) -> Tensor:
    """Matrices that commute with rotary position embeddings in the half-split layout of Hugging Face.

    There, coordinate j of a head of width b is rotated together with j + b / 2. What commutes with a rotation of the plane is a
    rotation with a scale, one per pair.

    Args:
        angles: float64 (n, b / 2), radians.
        scales: float64 (n, b / 2), positive.

    Returns:
        float64 (n, b, b).
    """
    cos, sin = (scales * angles.cos()).diag_embed(), (scales * angles.sin()).diag_embed()
    return torch.cat([torch.cat([cos, sin], -1), torch.cat([-sin, cos], -1)], -2)


@dataclass(frozen=True, slots=True)
class Fold:
    """A norm and the linear maps that alone consume its output; names without ``.weight`` and ``.bias``.

    Attributes:
        norm: A LayerNorm or RMSNorm.
        consumers: Its consumers; none means that the output leaves the model, so the gain has to stay.
        transposed: The consumers' weights are (in, out), as in Conv1D, not (out, in).
    """

    norm: str
    consumers: tuple[str, ...]
    transposed: bool = False


_SMALLEST_GAIN = 1e-4
"""Gains below this part of the largest are not divided by: the quotient would need more digits than float32 has."""


def _weight(name: str) -> str:
    return f"{name}.weight"


def _bias(name: str) -> str:
    return f"{name}.bias"


def _moves_whole(state: Mapping[str, Tensor], fold: Fold) -> bool:
    """Whether every consumer has a bias to take the norm's bias."""
    return _bias(fold.norm) not in state or all(_bias(name) in state for name in fold.consumers)


def can_fold(state: Mapping[str, Tensor], fold: Fold, tied: frozenset[str] = frozenset()) -> bool:
    """Whether the norm's gain can move into its consumers.

    There have to be some, none tied or missing, and a bias that must stay has to be divisible by the gain.

    A tied consumer cannot take the gain: the same matrix is also the embedding, whose rows the residual stream starts from.
    """
    if not fold.consumers or any(_weight(name) in tied or _weight(name) not in state for name in fold.consumers):
        return False
    gain = state[_weight(fold.norm)].abs()
    return _moves_whole(state, fold) or bool(gain.min() >= _SMALLEST_GAIN * gain.max())


def fold_norm(state: MutableMapping[str, Tensor], fold: Fold) -> None:
    """Move the gain of a norm into its consumers, in place: x g W^T + c becomes x (W g)^T + c, and the gain becomes 1.

    The bias b moves too, as W b, where every consumer has a bias. Where one has none, b / g stays in the norm: the consumers' new
    weights undo the division.

    Args:
        state: float64 tensors by name.
        fold: One for which :func:`can_fold` holds.
    """
    gain, bias = state[_weight(fold.norm)], state.get(_bias(fold.norm))
    whole = _moves_whole(state, fold)
    for name in fold.consumers:
        weight = state[_weight(name)]
        if bias is not None and whole:
            state[_bias(name)] = state[_bias(name)] + (bias @ weight if fold.transposed else weight @ bias)
        state[_weight(name)] = weight * (gain.unsqueeze(1) if fold.transposed else gain)
    state[_weight(fold.norm)] = torch.ones_like(gain)
    if bias is not None:
        state[_bias(fold.norm)] = torch.zeros_like(bias) if whole else bias / gain
