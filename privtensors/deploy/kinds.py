"""Kinds of requests: which later ones a correlation that was dealt ahead can serve."""

from __future__ import annotations

import dataclasses
from typing import Any

from privtensors.deploy.descriptor import Descriptor
from privtensors.errors import InvalidInput


def kind_of(view: Descriptor) -> str:
    """Digest of what decides which randomness a request needs, from the dealer's view of it.

    Arguments that only the client's submodules read (token types, position numbers) do not count.
    """
    main = tuple((name, shape) for name, shape in view.shapes if name in ("input_ids", "pixel_values"))
    return dataclasses.replace(view, shapes=main, positions=None).key()


def expected(
    model: Any, *, causal: bool, tokens: int | None = None, batch: int = 1, masked: bool = False, image_size: int | None = None
) -> Descriptor:
    """The dealer's view of a request to come, without a key-value cache.

    Args:
        model: The Hugging Face model; its configuration bounds the request.
        causal: Whether it is a decoder.
        tokens: Length of the texts, padding included; None for images.
        batch: Texts or images.
        masked: Whether the attention mask leaves anything out.
        image_size: Side of the images; default the configuration's.

    Raises:
        InvalidInput: Not a request that the model takes.
    """
    config = model.config
    if batch < 1:
        raise InvalidInput(f"a batch of {batch}", where="batch", fix="give 1 or more")
    if model.main_input_name == "pixel_values":
        side = image_size if image_size is not None else getattr(config, "image_size", None)
        if tokens is not None or masked:
            raise InvalidInput("images have no tokens", where="tokens", fix="leave tokens and masked out")
        if type(side) is not int or side < 1:
            raise InvalidInput("the size of the images is not known", where="image_size", fix="give it")
        return Descriptor((("pixel_values", (batch, config.num_channels, side, side)),))
    longest = getattr(config, "max_position_embeddings", None) or 1 << 20
    if tokens is None or image_size is not None or not 1 <= tokens <= longest:
        raise InvalidInput(f"texts of {tokens} tokens", where="tokens", fix=f"give 1 to {longest} tokens, and no image size")
    if masked and tokens < 2:
        raise InvalidInput("one token cannot be masked", where="masked", fix="leave it out")
    mask = ("1" * (tokens - 1) + "0",) * batch if masked else None
    return Descriptor((("input_ids", (batch, tokens)),), mask).for_dealer(causal=causal)
