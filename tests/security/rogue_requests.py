"""Requests that no honest client makes: malformed, or impossible for the model."""

from __future__ import annotations

import json
from typing import Any

from privtensors.deploy.descriptor import Descriptor
from privtensors.deploy.rooms import SETUP


def body(**changes: Any) -> bytes:
    """A descriptor with parts replaced."""
    whole = json.loads(Descriptor((("input_ids", (1, 5)),)).encode()) | changes
    return json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()


MALFORMED: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"\xff" * 40,
    "deep": b"[" * 100_000,
    "a long number": b'{"format":' + b"9" * 100_000 + b"}",
    "not canonical": body().replace(b",", b", "),
    "an unknown key": json.dumps(json.loads(body()) | {"path": "/etc"}).encode(),
    "another format": body(format=2),
    "no shapes": body(shapes={}),
    "an empty shape": body(shapes={"input_ids": [1, 0]}),
    "a negative shape": body(shapes={"input_ids": [1, -5]}),
    "a huge shape": body(shapes={"input_ids": [1 << 40, 1]}),
    "a true shape": body(shapes={"input_ids": [True, 5]}),
    "ids and pixels": body(shapes={"input_ids": [1, 5], "pixel_values": [1, 3, 8, 8]}),
    "an unknown argument": body(shapes={"input_ids": [1, 5], "labels": [1]}),
    "a mask of another length": body(mask=["111"]),
    "a mask of nothing": body(mask=["00000"]),
    "a mask of letters": body(mask=["11a11"]),
    "positions of another shape": body(positions=[[1, 2]]),
    "positions below zero": body(positions=[[0, 1, 2, 3, -4]]),
    "a past without a cache": body(past=5),
    "a cache below zero": body(cache=-1),
    "a second set-up": SETUP,
    "over every limit": b'{"mask":["' + b"1" * (1 << 25) + b'"]}',
}
IMPOSSIBLE: dict[str, bytes] = {
    "more tokens than the model has places": body(shapes={"input_ids": [1, 700]}),
    "pixels for a text model": body(shapes={"pixel_values": [1, 3, 32, 32]}),
    "positions that only the client reads": body(positions=[[1, 2, 3, 4, 5]]),
    "an argument that the model does not take": body(logits_to_keep=1),
    "a cache for an encoder": body(cache=1),
    "more than the limit": body(shapes={"input_ids": [4097, 1]}),
    "a past that nobody keeps": body(cache=3, past=2),
}
