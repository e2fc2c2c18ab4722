"""What the client of a keyed ViT does to an image: patches change places, and each patch's values are rotated. Guarantee: heuristic.

A server that holds the transformed weights of an open model undoes both. The number and size of the patches stay visible.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from privtensors.errors import InvalidInput, ParameterError
from privtensors.obfuscation.equivariant.spaces import patch_map, pixel_map
from privtensors.obfuscation.equivariant.transforms import BlockMap

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from privtensors.obfuscation.keys import ObfuscationKey


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PatchKey:
    """How one key rewrites images for a ViT.

    Attributes:
        channels: Channels of an image.
        size: Height and width of an image, in pixels.
        patch: Height and width of a patch, in pixels.
        tokens: What the tokens go through, the class token first.
        pixels: What the values of one patch go through, in the order channel, row, column.
    """

    channels: int
    size: tuple[int, int]
    patch: tuple[int, int]
    tokens: BlockMap
    pixels: BlockMap

    @classmethod
    def from_key(cls, key: ObfuscationKey, *, channels: int, size: tuple[int, int], patch: tuple[int, int]) -> PatchKey:
        """The patch key of a key.

        Raises:
            ParameterError: The patches do not tile the image.
        """
        if min(channels, *size, *patch) < 1 or size[0] % patch[0] or size[1] % patch[1]:
            what = f"patches of {patch[0]} x {patch[1]} do not tile an image of {size[0]} x {size[1]} with {channels} channels"
            raise ParameterError(what, where="PatchKey", fix="Take an image size that is a multiple of the patch size")
        count = (size[0] // patch[0]) * (size[1] // patch[1])
        return cls(channels, size, patch, patch_map(key, count), pixel_map(key, channels * patch[0] * patch[1]))

    @classmethod
    def from_config(cls, key: ObfuscationKey, config: PreTrainedConfig) -> PatchKey:
        """The patch key for a ViT's configuration, plain or keyed.

        Raises:
            ParameterError: The patches do not tile the image.
        """
        of: Any = config
        return cls.from_key(key, channels=int(of.num_channels), size=_pair(of.image_size), patch=_pair(of.patch_size))

    def __repr__(self) -> str:
        return f"PatchKey(channels={self.channels}, size={self.size}, patch={self.patch})"

    def key_pixels(self, pixel_values: Tensor) -> Tensor:
        """Keyed pixels of images.

        Args:
            pixel_values: Floating (batch, channels, height, width), as the image processor gives them.

        Returns:
            The same shape and dtype; the rotation is done in float64.

        Raises:
            InvalidInput: Another shape, not floating, or NaN or infinite.
        """
        shape = (self.channels, *self.size)
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != shape or not pixel_values.is_floating_point():
            what = f"wants floating images (batch, {', '.join(map(str, shape))}), got {pixel_values.dtype} {tuple(pixel_values.shape)}"
            raise InvalidInput(what, where="PatchKey.key_pixels", fix="Resize and normalise with the model's image processor")
        if not bool(torch.isfinite(pixel_values).all()):
            raise InvalidInput("some pixel is NaN or infinite", where="PatchKey.key_pixels")
        (high, wide), rows, columns = self.patch, self.size[0] // self.patch[0], self.size[1] // self.patch[1]
        cut = pixel_values.double().reshape(-1, self.channels, rows, high, columns, wide).permute(0, 2, 4, 1, 3, 5)
        patches = cut.reshape(len(pixel_values), rows * columns, -1)
        order = self.tokens.order[1:].to(patches.device) - 1
        moved = self.pixels.apply(patches).index_select(1, order)
        grid = moved.reshape(-1, rows, columns, self.channels, high, wide).permute(0, 3, 1, 4, 2, 5)
        return grid.reshape(pixel_values.shape).to(pixel_values.dtype)

    def plain_tokens(self, values: Tensor) -> Tensor:
        """Per-token values of the keyed model (batch, 1 + patches, width), with the patches back in their places."""
        return self.tokens.inverse.apply(values, 1)


def _pair(value: Any) -> tuple[int, int]:
    high, wide = value if isinstance(value, list | tuple) else (value, value)
    return int(high), int(wide)
