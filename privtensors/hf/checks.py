"""Checks of a request's plain inputs, at the client, before anything is protected. No message holds an id or a pixel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from privtensors.core.checks import check_finite
from privtensors.core.safetensor import SafeTensor
from privtensors.errors import InvalidInput, OutOfRange
from privtensors.hf.families import Family

_COMMON = ("output_attentions", "output_hidden_states", "return_dict")
_TEXT = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "past_key_values", "use_cache", "logits_to_keep")
_PIXELS = ("pixel_values", "interpolate_pos_encoding")


def check_inputs(model: Any, family: Family, inputs: Mapping[str, Any]) -> None:
    """Refuse a request that the stock model would misread, or that would need a value in plain where it must not be.

    Args:
        model: The private copy.
        family: Its family.
        inputs: The request by argument name; ``None`` means absent.

    Raises:
        InvalidInput: An argument is unknown or malformed; the message says what, where and what to do.
        OutOfRange: An id outside its table, or more tokens than there are positions.
    """
    given = {name: value for name, value in inputs.items() if value is not None}
    accepted = _COMMON + (_TEXT if family.vocabulary else _PIXELS)
    for name in given:
        if name not in accepted:
            raise InvalidInput("this argument is not supported on a private model", where=name, fix=f"Supported: {', '.join(accepted)}")
    if given.get("return_dict") is False:
        fix = "use the returned object, or its to_tuple()"
        raise InvalidInput("a tuple does not say which outputs were revealed", where="return_dict=False", fix=fix)
    if family.vocabulary:
        _check_text(model, family, given)
    else:
        _check_pixels(model, given)


def _tensor(given: Mapping[str, Any], name: str) -> Tensor:
    value = given.get(name)
    if not isinstance(value, Tensor):
        what = "is missing" if value is None else f"expected a torch.Tensor, got {type(value).__name__}"
        raise InvalidInput(what, where=name, fix='pass what the tokenizer or image processor returns with return_tensors="pt"')
    if isinstance(value, SafeTensor):
        raise InvalidInput("it is protected already", where=name, fix="pass the plain tensor: the model protects what leaves the client")
    if value.numel() == 0:
        raise InvalidInput(f"it is empty, shape {tuple(value.shape)}", where=name, fix="pass at least one example")
    if value.device.type != "cpu":
        raise InvalidInput(f"it is on {value.device}", where=name, fix="call .cpu() first")
    return value


def _integers(x: Tensor, name: str, shape: tuple[int, ...] | None, size: int, table: str) -> None:
    """``x`` indexes a table of ``size`` rows. Says where a wrong one is, not which it is."""
    if x.dtype not in (torch.int64, torch.int32):
        raise InvalidInput(f"expected dtype int64, got {str(x.dtype).removeprefix('torch.')}", where=name, fix=f"pass {name}.long()")
    if shape is not None and tuple(x.shape) != shape:
        what = f"its shape {tuple(x.shape)} is not that of input_ids, {shape}"
        raise InvalidInput(what, where=name, fix="pass both from one tokenizer call")
    bad = (x < 0) | (x >= size)
    if bool(bad.any()):
        place = tuple(bad.nonzero()[0].tolist())
        raise OutOfRange(
            f"{int(bad.sum())} values lie outside 0..{size - 1} ({table}), the first at index {place}",
            where=name,
            fix="use the tokenizer that belongs to this model",
        )


def _check_text(model: Any, family: Family, given: Mapping[str, Any]) -> None:
    config = model.config
    ids = _tensor(given, "input_ids")
    if ids.dim() != 2:
        what = f"expected shape (batch, tokens), got {tuple(ids.shape)}"
        raise InvalidInput(what, where="input_ids", fix="add a batch dimension: ids.unsqueeze(0)")
    shape = (ids.shape[0], ids.shape[1])
    _integers(ids, "input_ids", None, model.base_model.get_submodule(family.vocabulary).num_embeddings, "the vocabulary")
    past = given["past_key_values"].get_seq_length() if "past_key_values" in given else 0
    positions = config.max_position_embeddings - (config.pad_token_id + 1 if family.padded_positions else 0)
    if past + shape[1] > positions:
        what = f"{past + shape[1]} tokens, but the model has {positions} positions"
        raise OutOfRange(what, where="input_ids", fix="truncate: tokenizer(..., truncation=True)")
    if "token_type_ids" in given:
        size = getattr(config, "type_vocab_size", config.vocab_size)
        _integers(_tensor(given, "token_type_ids"), "token_type_ids", shape, size, "the token types")
    if "position_ids" in given and family.tables and family.positions and not family.decoder:
        what = "a table of the server is indexed by positions that are public, hence counted from zero"
        raise InvalidInput(what, where="position_ids", fix='drop the argument, or use MPC(embeddings="client")')
    if "position_ids" in given:
        _integers(_tensor(given, "position_ids"), "position_ids", None, config.max_position_embeddings, "the positions")
    mask = None
    if "attention_mask" in given:
        mask = _tensor(given, "attention_mask")
        _check_mask(mask, (shape[0], past + shape[1]))
    if family.decoder and type(model).__name__.endswith("ForSequenceClassification"):
        _check_last_token(ids, mask, config.pad_token_id)


def _check_mask(mask: Tensor, shape: tuple[int, int]) -> None:
    where = "attention_mask"
    if tuple(mask.shape) != shape:
        raise InvalidInput(f"its shape is {tuple(mask.shape)}, not {shape}", where=where, fix="pass the mask of the same tokenizer call")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise InvalidInput("it holds values other than 0 and 1", where=where, fix="1 for tokens to attend to, 0 for padding")
    empty = ~mask.bool().any(-1)
    if bool(empty.any()):
        raise InvalidInput(f"row {int(empty.nonzero()[0])} attends to nothing", where=where, fix="drop empty texts")


def _check_last_token(ids: Tensor, mask: Tensor | None, pad: int | None) -> None:
    """A causal classifier reads the logits of the last token that is not padding, found from the ids.

    The server learns which place that is, so it must follow from the public mask alone.
    """
    if pad is None:
        return
    places = torch.arange(ids.shape[1])
    last = (places * (ids != pad)).argmax(-1)
    public = torch.full_like(last, ids.shape[1] - 1) if mask is None else (places * mask.bool()).argmax(-1)
    if not bool((last == public).all()):
        raise InvalidInput(
            "the last token that is not padding is not the last that is attended to, so its place would tell the server about the ids",
            where="input_ids",
            fix="pass attention_mask, and use a padding token that occurs nowhere else",
        )


def _check_pixels(model: Any, given: Mapping[str, Any]) -> None:
    config = model.config
    pixels = _tensor(given, "pixel_values")
    if pixels.dim() != 4 or pixels.shape[1] != config.num_channels:
        what = f"expected shape (batch, {config.num_channels}, height, width), got {tuple(pixels.shape)}"
        raise InvalidInput(what, where="pixel_values", fix="pass what the image processor returns")
    if not pixels.is_floating_point():
        what = f"expected a float tensor, got {pixels.dtype}"
        raise InvalidInput(what, where="pixel_values", fix="normalise it: use the image processor")
    if given.get("interpolate_pos_encoding"):
        fix = "resize the images to the model's size"
        raise InvalidInput("bicubic interpolation has no kernel", where="interpolate_pos_encoding", fix=fix)
    size = config.image_size if hasattr(config, "patch_size") else None
    size = (size, size) if isinstance(size, int) else tuple(size) if size is not None else None
    if size is not None and tuple(pixels.shape[2:]) != size:
        what = f"images are {tuple(pixels.shape[2:])}, the model takes {size}"
        raise InvalidInput(what, where="pixel_values", fix="resize with the image processor")
    check_finite(pixels, "pixel_values")
