"""The public description of one forward: all that the server learns of a request beside its shares.

It holds shapes, the attention mask, position numbers where a decoder gets them, and which cache goes on. The dealer gets
less: a mask of the same *class*, which needs the same randomness, so it sees whether something is padded but not what.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from privtensors.errors import FrameError, InvalidInput
from privtensors.hf.families import Family

FORMAT: Final = 1
DESCRIPTOR_LIMIT: Final = 1 << 24
_MAX_SIDE: Final = 1 << 20
_PATCH: Final = 16 * 16
_TEXT: Final = ("input_ids", "token_type_ids", "position_ids")
_SHAPED: Final = (*_TEXT, "pixel_values")
_KEYS: Final = frozenset({"format", "shapes", "mask", "positions", "logits_to_keep", "cache", "past"})


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What is public about one forward.

    Attributes:
        shapes: Shape of each argument whose values stay with the client: ``input_ids``, ``token_type_ids``,
            ``position_ids`` (where only the client's submodules read them), ``pixel_values``.
        mask: Rows of the attention mask as texts of ``0`` and ``1``, ``past`` entries included; None where it was not given.
        positions: Position numbers that a decoder's attention reads, row by row; None where they follow from the mask.
        logits_to_keep: Logits of how many last places are wanted; 0 for all.
        cache: Number of the key-value cache that this forward reads and extends; 0 for none.
        past: Tokens in that cache already.
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    mask: tuple[str, ...] | None = None
    positions: tuple[tuple[int, ...], ...] | None = None
    logits_to_keep: int = 0
    cache: int = 0
    past: int = 0

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of the argument ``name``, or None."""
        return dict(self.shapes).get(name)

    @property
    def tokens(self) -> int:
        """Batch times tokens, cached ones included; of images, batch times patches of 16 x 16."""
        ids = self.shape("input_ids")
        if ids is not None:
            return ids[0] * (ids[1] + self.past)
        batch, _channels, height, width = self.shape("pixel_values") or (1, 1, 1, 1)
        return batch * math.ceil(height * width / _PATCH)

    def encode(self) -> bytes:
        """Canonical JSON: equal descriptors give equal bytes."""
        body = {"format": FORMAT, "shapes": dict(self.shapes), "mask": self.mask, "positions": self.positions}
        rest = {"logits_to_keep": self.logits_to_keep, "cache": self.cache, "past": self.past}
        return json.dumps(body | rest, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, data: bytes | memoryview) -> Descriptor:
        """Inverse of :meth:`encode`; strict.

        Raises:
            FrameError: Malformed.
        """
        if len(data) > DESCRIPTOR_LIMIT:
            raise _malformed("it is too long")
        try:
            body = json.loads(bytes(data))
        except (ValueError, RecursionError):
            raise _malformed("it is no JSON") from None
        if not isinstance(body, dict) or set(body) != _KEYS or body["format"] != FORMAT:
            raise _malformed("its keys are not the expected ones")
        shapes = _shapes(body["shapes"])
        whole = {name: _number(body[name], name) for name in ("logits_to_keep", "cache", "past")}
        found = cls(shapes, _mask(body["mask"]), _positions(body["positions"]), **whole)
        found._check()
        if found.encode() != bytes(data):
            raise _malformed("it is not in canonical form")
        return found

    def _check(self) -> None:
        """Whether the parts agree with each other; what is computed from them must not fail later."""
        names = [name for name, _ in self.shapes]
        ids, pixels = self.shape("input_ids"), self.shape("pixel_values")
        if (ids is None) == (pixels is None) or (pixels is not None and (len(names) > 1 or len(pixels) != 4)):
            raise _malformed("it has neither ids nor pixels, or both")
        if pixels is not None and (self.mask is not None or self.positions is not None or self.cache or self.past):
            raise _malformed("pixels have no mask, positions or cache")
        if ids is not None:
            if len(ids) != 2 or self.shape("token_type_ids") not in (None, ids):
                raise _malformed("ids must have shape (batch, tokens)")
            placed = self.shape("position_ids")
            if placed is not None and (self.positions is not None or placed not in (ids, (1, ids[1]))):
                raise _malformed("positions must have the ids' shape")
            if self.positions is not None and (len(self.positions) not in (1, ids[0]) or any(len(r) != ids[1] for r in self.positions)):
                raise _malformed("positions must have the ids' shape")
            if self.mask is not None and (len(self.mask) != ids[0] or any(len(r) != ids[1] + self.past or "1" not in r for r in self.mask)):
                raise _malformed("the mask must cover every token, and attend to one in each row")
        if self.past and not self.cache:
            raise _malformed("past tokens without a cache")

    def suits(self, model: Any, family: Family) -> bool:
        """Whether ``model`` takes such a request: its arguments, length and images. The client checked; others do not rely on it."""
        config, takes = model.config, inspect.signature(type(model).forward).parameters
        ids, pixels = self.shape("input_ids"), self.shape("pixel_values")
        named = [name for name, _ in self.shapes] + ["logits_to_keep"] * bool(self.logits_to_keep)
        if (ids is not None) != bool(family.vocabulary) or (self.cache and not family.decoder) or not takes.keys() >= set(named):
            return False
        if pixels is not None:
            size = getattr(config, "image_size", None) if hasattr(config, "patch_size") else None
            size = (size, size) if isinstance(size, int) else size
            return pixels[1] == config.num_channels and (size is None or pixels[2:] == tuple(size))
        assert ids is not None
        most: int = config.max_position_embeddings
        inside = self.positions is None or all(place < most for row in self.positions for place in row)
        return inside and ids[1] + self.past <= most - (config.pad_token_id + 1 if family.padded_positions else 0)

    def for_dealer(self, *, causal: bool) -> Descriptor:
        """What the dealer gets: a mask and positions of the same class, in place of the real ones.

        Which randomness a forward needs depends on the mask only through this: whether anything is masked at all, and, in a
        causal model, whether every query sees the same keys.
        """
        mask, positions = self.mask, self.positions
        if mask is not None:
            width = len(mask[0])
            everything, first = "1" * width, "1" + "0" * (width - 1)
            if all(row == everything for row in mask):
                mask = None
            elif causal and all(row == first for row in mask):
                mask = (first,) * len(mask)
            else:
                mask = ("1" * (width - 1) + "0",) * len(mask)
        if positions is not None:
            row = tuple(range(self.past, self.past + len(positions[0])))
            positions = (row,) * len(positions)
        return dataclasses.replace(self, mask=mask, positions=positions)

    def key(self) -> str:
        """Digest of everything but the cache's number: forwards of one key need the same randomness, given the same cache."""
        return hashlib.sha256(dataclasses.replace(self, cache=int(bool(self.cache))).encode()).hexdigest()

    def arguments(self, config: Any, family: Family, cache: Any) -> dict[str, Any]:
        """The forward's arguments at a party that does not hold the client's inputs.

        Ids are stand-ins that tell padding from the rest, as the mask does; pixels have no content.
        """
        out: dict[str, Any] = {}
        pixels = self.shape("pixel_values")
        if pixels is not None:
            return {"pixel_values": torch.empty(pixels, device="meta")}
        shape = self.shape("input_ids")
        assert shape is not None
        pad = getattr(config, "pad_token_id", None)
        mask = None
        if self.mask is not None:
            mask = torch.tensor([[int(c) for c in row] for row in self.mask])
            out["attention_mask"] = mask
        ids = torch.full(shape, 1 if pad == 0 else 0)
        if pad is not None and mask is not None:
            ids = ids.masked_fill(mask[:, self.past :] == 0, pad)
        out["input_ids"] = ids
        for name in ("token_type_ids", "position_ids"):
            if (given := self.shape(name)) is not None:
                out[name] = torch.zeros(given, dtype=torch.int64)
        if self.positions is not None:
            out["position_ids"] = torch.tensor(self.positions)
        if family.decoder:
            out["use_cache"] = cache is not None
            if cache is not None:
                out["past_key_values"] = cache
        if self.logits_to_keep:
            out["logits_to_keep"] = self.logits_to_keep
        return out


def describe(inputs: Mapping[str, Any], family: Family, *, cache: int, past: int) -> Descriptor:
    """The descriptor of a checked request at the client.

    Args:
        inputs: The forward's arguments.
        family: The model's family.
        cache: Number of its cache, 0 for none.
        past: Tokens in it.

    Raises:
        InvalidInput: A request that a deployment does not support.
    """
    given = {name: value for name, value in inputs.items() if value is not None}
    for name in ("output_attentions", "output_hidden_states"):
        if given.get(name):
            fix = "run it in one process, or take the last hidden state with task feature-extraction"
            raise InvalidInput("only task outputs reach the client of a deployment", where=name, fix=fix)
    keep = given.get("logits_to_keep", 0)
    if type(keep) is not int or keep < 0:
        raise InvalidInput("must be a number of last places", where="logits_to_keep", fix="pass an int")
    mask, positions = given.get("attention_mask"), given.get("position_ids")
    public = positions is not None and (family.decoder or bool(family.tables))  # the server reads them
    if mask is None and positions is not None and public:
        row = torch.arange(past, past + positions.shape[-1])
        if not bool(torch.equal(positions, row.expand(positions.shape))):
            raise InvalidInput("positions that are not consecutive need a mask", where="position_ids", fix="pass attention_mask as well")
    shapes = {n: tuple(t.shape) for n, t in given.items() if n in _SHAPED and isinstance(t, Tensor)}
    if public:
        del shapes["position_ids"]
    found = Descriptor(
        tuple(sorted(shapes.items())),
        None if mask is None else tuple("".join(map(str, row)) for row in mask.long().tolist()),
        tuple(map(tuple, positions.tolist())) if positions is not None and public else None,
        keep,
        cache,
        past,
    )
    try:
        found._check()
    except FrameError as error:
        raise InvalidInput(error.what, where="request", fix="pass what the tokenizer returns") from None
    return found


def _malformed(what: str) -> FrameError:
    return FrameError(f"malformed request: {what}", where="request", fix="install the same release at every party")


def _number(value: object, name: str) -> int:
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise _malformed(f"{name} is no small number")
    return value


def _shapes(value: object) -> tuple[tuple[str, tuple[int, ...]], ...]:
    if not isinstance(value, dict) or not value.keys() <= set(_SHAPED):
        raise _malformed("unknown arguments")
    for shape in value.values():
        if not isinstance(shape, list) or len(shape) > 4 or not all(type(n) is int and 0 < n <= _MAX_SIDE for n in shape):
            raise _malformed("an impossible shape")
    return tuple(sorted((name, tuple(shape)) for name, shape in value.items()))


def _mask(value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not value or not all(isinstance(row, str) and row and not row.strip("01") for row in value):
        raise _malformed("the mask must be rows of 0 and 1")
    return tuple(value)


def _positions(value: object) -> tuple[tuple[int, ...], ...] | None:
    if value is None:
        return None
    rows = value if isinstance(value, list) and value and all(isinstance(row, list) for row in value) else None
    if rows is None or not all(type(n) is int and 0 <= n < 1 << 31 for row in rows for n in row):
        raise _malformed("positions must be rows of numbers")
    return tuple(map(tuple, rows))
