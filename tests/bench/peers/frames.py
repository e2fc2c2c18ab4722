"""Frames between the benchmark and a worker process: a JSON header and .npy arrays, over pipes. No pickle.

Runs in a peer's environment too, so it imports numpy and the standard library only.
"""

from __future__ import annotations

import io
import json
import os
import struct
import traceback
from collections.abc import Callable, Mapping
from typing import IO, Any

import numpy as np

Header = dict[str, Any]
Arrays = dict[str, np.ndarray]
Handler = Callable[[Header, Arrays], tuple[Header, Arrays]]

_HEAD_LIMIT = 1 << 20
_ARRAY_LIMIT = 1 << 31


class WorkerEnded(EOFError):
    """The other end closed the pipe in the middle of, or instead of, a frame."""


def write(stream: IO[bytes], header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """One frame: 4 bytes of length, the header, then the arrays in the order the header lists them."""
    blobs = []
    for array in arrays.values():
        buffer = io.BytesIO()
        np.save(buffer, np.asarray(array), allow_pickle=False)
        blobs.append(buffer.getvalue())
    listed = [[name, len(blob)] for name, blob in zip(arrays, blobs, strict=True)]
    head = json.dumps({"header": dict(header), "arrays": listed}).encode()
    stream.write(struct.pack("<I", len(head)) + head)
    for blob in blobs:
        stream.write(blob)
    stream.flush()


def read(take: Callable[[int], bytes]) -> tuple[Header, Arrays]:
    """One frame; ``take(n)`` gives the next n bytes or fewer at the end.

    Raises:
        WorkerEnded: The stream ended.
        ValueError: What came is no frame.
    """

    def exactly(count: int) -> bytes:
        parts, left = [], count
        while left:
            part = take(left)
            if not part:
                raise WorkerEnded("the pipe was closed")
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    (size,) = struct.unpack("<I", exactly(4))
    if size > _HEAD_LIMIT:
        raise ValueError(f"a header of {size} bytes: this is no frame")
    head = json.loads(exactly(size))
    arrays = {}
    for name, length in head["arrays"]:
        if not 0 <= length <= _ARRAY_LIMIT:
            raise ValueError(f"array {name!r} of {length} bytes: this is no frame")
        arrays[name] = np.load(io.BytesIO(exactly(length)), allow_pickle=False)
    return head["header"], arrays


def _stdin(count: int) -> bytes:
    return os.read(0, min(count, 1 << 20))


def serve(handle: Handler) -> None:
    """Answer frames on stdin until ``{"do": "stop"}`` or the end of the pipe.

    Whatever a library prints to stdout goes to stderr, so that it cannot get between the frames. An exception becomes
    the reply ``{"error": …}``; the worker goes on.
    """
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            header, arrays = read(_stdin)
        except WorkerEnded:
            return
        if header.get("do") == "stop":
            return
        try:
            reply, result = handle(header, arrays)
        except Exception as error:
            traceback.print_exc()
            reply, result = {"error": f"{type(error).__name__}: {error}"}, {}
        write(out, reply, result)
