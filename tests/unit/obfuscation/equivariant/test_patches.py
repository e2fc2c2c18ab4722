"""What the client of a ViT does to an image."""

from __future__ import annotations

import pytest
import torch

from privtensors.errors import InvalidInput, ParameterError
from privtensors.obfuscation.equivariant import PatchKey
from tests.unit.obfuscation.equivariant.tiny import CONFIGS, KEY, OTHER


def patches(images: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.unfold(images, 4, stride=4).mT


def test_patches_change_places_and_are_rotated() -> None:
    keys = PatchKey.from_key(KEY, channels=2, size=(8, 12), patch=(4, 4))
    images = torch.randn(3, 2, 8, 12, dtype=torch.float64)
    plain, keyed = patches(images), patches(keys.key_pixels(images))
    assert not torch.isclose(keyed, plain).any()
    # Norms survive a rotation; they come in the order of the key.
    torch.testing.assert_close(keyed.norm(dim=-1), plain.norm(dim=-1)[:, keys.tokens.order[1:] - 1])
    torch.testing.assert_close(keyed, keys.pixels.apply(plain)[:, keys.tokens.order[1:] - 1])


def test_it_follows_the_key_and_the_configuration() -> None:
    images = torch.randn(1, 2, 8, 12)
    one = PatchKey.from_config(KEY, CONFIGS["ViT"]()).key_pixels(images)
    assert torch.equal(one, PatchKey.from_key(KEY, channels=2, size=(8, 12), patch=(4, 4)).key_pixels(images))
    assert one.dtype == torch.float32 and one.shape == images.shape
    assert not torch.isclose(one, PatchKey.from_config(OTHER, CONFIGS["ViT"]()).key_pixels(images)).any()
    assert repr(PatchKey.from_config(KEY, CONFIGS["ViT"]())) == "PatchKey(channels=2, size=(8, 12), patch=(4, 4))"


@pytest.mark.parametrize(
    "images",
    [torch.zeros(1, 2, 8, 8), torch.zeros(2, 8, 12), torch.zeros(1, 3, 8, 12), torch.zeros(1, 2, 8, 12, dtype=torch.uint8)],
)
def test_images_that_do_not_fit(images: torch.Tensor) -> None:
    with pytest.raises(InvalidInput, match="wants floating images"):
        PatchKey.from_config(KEY, CONFIGS["ViT"]()).key_pixels(images)


def test_pixels_that_are_not_finite() -> None:
    with pytest.raises(InvalidInput, match="NaN"):
        PatchKey.from_config(KEY, CONFIGS["ViT"]()).key_pixels(torch.full((1, 2, 8, 12), float("nan")))


def test_patches_that_do_not_tile() -> None:
    with pytest.raises(ParameterError, match="do not tile"):
        PatchKey.from_key(KEY, channels=2, size=(8, 12), patch=(3, 4))
