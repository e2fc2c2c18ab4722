"""What a client may ask of a keyed model: bodies read strictly, every mistake a typed refusal that quotes nothing of the body."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor

from privtensors.errors import ParameterError

JSON_TYPE: Final = "application/json"
PIXELS_TYPE: Final = "application/vnd.safetensors"

_LARGEST: Final = 1 << 30  # of a limit
_LARGEST_TEMPERATURE: Final = 100.0


class Refusal(Exception):
    """A request that is answered with an error.

    Attributes:
        status: HTTP status.
        kind: Machine-readable name, e.g. ``"id_out_of_range"``.
        message: One sentence, without any value of the request.
    """

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status, self.kind, self.message = status, kind, message


@dataclass(frozen=True, slots=True)
class KeyedLimits:
    """What a keyed server tolerates.

    Attributes:
        batch: Rows or images of one request.
        tokens: Batch times length of one request; for generation the new tokens count too.
        new_tokens: Tokens generated per row.
        body_kib: Size of a JSON body, KiB.
        pixels_kib: Size of a body of pixels, KiB.
        waiting: Requests that may wait for their turn; a further one is refused as busy.
        connections: Open at a time; a further one is closed.
        request_s: Seconds in which a request must arrive, an answer be taken, and a kept connection be used again.
        compute_s: Seconds after which a generation is given up.
    """

    batch: int = 64
    tokens: int = 1 << 14
    new_tokens: int = 1024
    body_kib: int = 1024
    pixels_kib: int = 1 << 14
    waiting: int = 16
    connections: int = 64
    request_s: int = 30
    compute_s: int = 300

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            value, least = getattr(self, entry.name), 0 if entry.name == "waiting" else 1
            if type(value) is not int or not least <= value <= _LARGEST:
                fix = f"Allowed: a whole number from {least} to {_LARGEST}"
                raise ParameterError(f"{entry.name} is out of range", where="limits of a keyed server", fix=fix)

    @classmethod
    def parse(cls, given: Mapping[str, str]) -> KeyedLimits:
        """From texts, as the command line has them.

        Raises:
            ParameterError: An unknown name, or a value out of range.
        """
        known = [entry.name for entry in dataclasses.fields(cls)]
        for name, text in given.items():
            if name not in known or not (text.isascii() and text.isdigit() and len(text) <= 10):
                fix = f"Write NAME=NUMBER with one of {', '.join(known)}"
                raise ParameterError(f"{name}={text} is no limit", where="limits of a keyed server", fix=fix)
        return cls(**{name: int(text) for name, text in given.items()})


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the model itself allows.

    Attributes:
        vocabulary: Ids are below it; 0 for a model of pixels.
        types: Token types are below it; 0 where the model has none.
        length: Longest row that its positions allow, 0 for any.
        pixels: Channels, height and width of an image; None for a model of ids.
    """

    vocabulary: int
    types: int = 0
    length: int = 0
    pixels: tuple[int, int, int] | None = None


@dataclass(frozen=True, slots=True)
class ClassifyRequest:
    """Inputs by the name that the model's ``forward`` has for them: ids and mask int64 (batch, length), or pixels float32 (batch, C, H, W).

    ``outputs`` is ``"logits"`` or ``"labels"``.
    """

    inputs: Mapping[str, Tensor] = field(repr=False)
    outputs: str = "logits"

    @property
    def size(self) -> str:
        """For a log: shapes, no value."""
        shape = next(iter(self.inputs.values())).shape
        return " x ".join(map(str, shape))


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """A prompt per row and how to continue it; ``seed`` None draws one."""

    inputs: Mapping[str, Tensor] = field(repr=False)
    max_new_tokens: int
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None

    @property
    def size(self) -> str:
        """For a log: shapes, no value."""
        rows, length = self.inputs["input_ids"].shape
        return f"{rows} x {length} + {self.max_new_tokens}"


def read_classify(body: bytes, bounds: Bounds, limits: KeyedLimits, key_id: str) -> ClassifyRequest:
    """The request in a JSON body.

    Raises:
        Refusal: With the reason.
    """
    found = _object(body, ("key_id", "input_ids", "attention_mask", "token_type_ids", "outputs"))
    _check_key(found, key_id)
    outputs = found.get("outputs", "logits")
    if outputs not in ("logits", "labels"):
        raise Refusal(400, "invalid_value", "outputs is logits or labels")
    return ClassifyRequest(_ids(found, bounds, limits, 0), outputs)


def read_generate(body: bytes, bounds: Bounds, limits: KeyedLimits, key_id: str) -> GenerateRequest:
    """The request in a JSON body.

    Raises:
        Refusal: With the reason.
    """
    found = _object(body, ("key_id", "input_ids", "attention_mask", "max_new_tokens", "do_sample", "temperature", "top_p", "seed"))
    _check_key(found, key_id)
    count = _whole(found, "max_new_tokens", 1, limits.new_tokens, min(20, limits.new_tokens))
    sample = found.get("do_sample", False)
    if not isinstance(sample, bool):
        raise Refusal(400, "invalid_value", "do_sample is true or false")
    temperature, top_p = _real(found, "temperature", _LARGEST_TEMPERATURE), _real(found, "top_p", 1.0)
    if not sample and ("temperature" in found or "top_p" in found or "seed" in found):
        raise Refusal(400, "invalid_value", "temperature, top_p and seed need do_sample")
    seed = _whole(found, "seed", 0, (1 << 63) - 1, 0) if "seed" in found else None
    return GenerateRequest(_ids(found, bounds, limits, count), count, sample, temperature, top_p, seed)


def read_pixels(body: bytes, bounds: Bounds, limits: KeyedLimits, key_id: str) -> ClassifyRequest:
    """The request in a body of safetensors: one tensor ``pixel_values``, float32 (batch, C, H, W), and ``key_id`` in its metadata.

    Raises:
        Refusal: With the reason.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if bounds.pixels is None:
        raise Refusal(415, "unsupported_media_type", "this model takes ids, in JSON")
    try:
        size = int.from_bytes(body[:8], "little")
        header = json.loads(body[8 : 8 + min(size, 4096)], parse_constant=_no_constant)
        metadata = header.get("__metadata__", {})
        if set(header) - {"__metadata__"} != {"pixel_values"} or header["pixel_values"].get("dtype") != "F32":
            raise ValueError("other tensors")
        pixels = load(body)["pixel_values"]
    except (SafetensorError, ValueError, KeyError, AttributeError, TypeError, RecursionError, UnicodeDecodeError):
        what = "the body is no safetensors file with one float32 tensor pixel_values"
        raise Refusal(400, "malformed_pixels", what) from None
    _check_key(metadata, key_id)
    if pixels.dim() != 4 or tuple(pixels.shape[1:]) != bounds.pixels or not 1 <= len(pixels) <= limits.batch:
        channels, height, width = bounds.pixels
        raise Refusal(400, "invalid_shape", f"pixel_values are (1 to {limits.batch}, {channels}, {height}, {width})")
    if not bool(pixels.isfinite().all()):
        raise Refusal(400, "invalid_value", "pixel_values are not finite")
    return ClassifyRequest(MappingProxyType({"pixel_values": pixels}))


def _object(body: bytes, allowed: tuple[str, ...]) -> dict[str, Any]:
    try:
        found = json.loads(body.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_once)
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise Refusal(400, "malformed_json", "the body is not JSON: no NaN or Infinity, no name twice, UTF-8") from None
    if not isinstance(found, dict):
        raise Refusal(400, "malformed_json", "the body is a JSON object")
    if set(found) - set(allowed):
        raise Refusal(400, "unknown_field", f"fields are {', '.join(allowed)}")
    return found


def _no_constant(_: str) -> float:
    raise ValueError("NaN or Infinity")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name twice")
    return found


def _check_key(found: Mapping[str, Any], key_id: str) -> None:
    """Whoever states which key the input was made with is told when it is another; ids under it would give a wrong answer."""
    if "key_id" in found and found["key_id"] != key_id:
        raise Refusal(409, "wrong_key", f"this server has the model of key {key_id}")


def _whole(found: Mapping[str, Any], name: str, least: int, most: int, default: int) -> int:
    value = found.get(name, default)
    if type(value) is not int or not least <= value <= most:
        raise Refusal(400, "invalid_value", f"{name} is a whole number from {least} to {most}")
    return value


def _real(found: Mapping[str, Any], name: str, most: float) -> float:
    value = found.get(name, 1.0)
    # A whole number of hundreds of digits does not fit a float, but it compares with one.
    if type(value) not in (int, float) or not 0 < value <= most or not math.isfinite(value):
        raise Refusal(400, "invalid_value", f"{name} is a number above 0, at most {most:g}")
    return float(value)


def _ids(found: Mapping[str, Any], bounds: Bounds, limits: KeyedLimits, more: int) -> Mapping[str, Tensor]:
    if bounds.pixels is not None:
        raise Refusal(415, "unsupported_media_type", f"this model takes pixels, as {PIXELS_TYPE}")
    if "input_ids" not in found:
        raise Refusal(400, "missing_field", "input_ids is missing")
    ids = _matrix(found["input_ids"], "input_ids", bounds.vocabulary, "id_out_of_range")
    rows, length = ids.shape
    if rows > limits.batch:
        raise Refusal(413, "too_large", f"at most {limits.batch} rows in a request")
    if rows * (length + more) > limits.tokens:
        raise Refusal(413, "too_large", f"at most {limits.tokens} tokens in a request, new ones counted")
    if bounds.length and length + more > bounds.length:
        raise Refusal(413, "too_long", f"the model has {bounds.length} positions, new tokens counted")
    inputs = {"input_ids": ids}
    for name, below in (("attention_mask", 2), ("token_type_ids", bounds.types)):
        if name not in found:
            continue
        if not below:
            raise Refusal(400, "unknown_field", f"this model has no {name}")
        inputs[name] = _matrix(found[name], name, below, "invalid_value")
        if inputs[name].shape != ids.shape:
            raise Refusal(400, "invalid_shape", f"{name} has another shape than input_ids")
    mask = inputs.setdefault("attention_mask", torch.ones_like(ids))
    if not bool(mask.any(dim=1).all()):
        raise Refusal(400, "invalid_value", "attention_mask leaves a row without a token")
    return MappingProxyType(inputs)


def _matrix(value: object, name: str, below: int, kind: str) -> Tensor:
    """An int64 matrix from a list of equally long lists of integers; True and 1.0 are none."""
    if not isinstance(value, list) or not value or not all(isinstance(row, list) and row for row in value):
        raise Refusal(400, "invalid_shape", f"{name} is a list of rows, none of them empty")
    if len({len(row) for row in value}) != 1:
        raise Refusal(400, "invalid_shape", f"the rows of {name} differ in length: pad them, and mask the padding")
    if not all(type(entry) is int for row in value for entry in row):
        raise Refusal(400, "invalid_value", f"{name} holds something else than integers")
    if not all(0 <= entry < below for row in value for entry in row):
        raise Refusal(400, kind, f"{name} holds a number outside 0 to {below - 1}")
    return torch.tensor(value, dtype=torch.int64)
