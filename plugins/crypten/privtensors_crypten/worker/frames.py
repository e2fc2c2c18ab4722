"""The messages between the session and a party: a JSON header and tensors in safetensors form, over a socket. No pickle.

A frame is ``b"PTC1"``, the header's length (4 bytes), the body's length (8 bytes), both big-endian, then the header (a JSON
object) and the body (safetensors, or nothing).
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

MAGIC: Final = b"PTC1"
LEAD: Final = struct.Struct(">4sIQ")
HEADER_LIMIT: Final = 1 << 20
BODY_LIMIT: Final = 1 << 34


class FrameFault(ValueError):
    """What arrived is no frame of ours."""


class Closed(ConnectionError):
    """The other end closed the socket."""


def pack(header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor] | None = None) -> bytes:
    """One frame.

    Raises:
        FrameFault: The header is larger than 1 MiB or the body larger than 16 GiB.
    """
    head = json.dumps(header, allow_nan=False).encode()
    body = save({name: x.contiguous() for name, x in tensors.items()}) if tensors else b""
    if len(head) > HEADER_LIMIT or len(body) > BODY_LIMIT:
        raise FrameFault(f"a message of {len(head)} + {len(body)} bytes is too large")
    return LEAD.pack(MAGIC, len(head), len(body)) + head + body


def unpack(head: bytes, body: bytes) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Header and tensors of a frame.

    Raises:
        FrameFault: The header is no JSON object, or the body is no safetensors data.
    """
    try:
        header = json.loads(head)
    except ValueError:
        raise FrameFault("the header is no JSON") from None
    if not isinstance(header, dict):
        raise FrameFault("the header is no JSON object")
    try:
        return header, load(body) if body else {}
    except (SafetensorError, KeyError, ValueError):
        raise FrameFault("the body is no safetensors data") from None


def send(link: socket.socket, frame: bytes, limit: float | None) -> None:
    """Send ``frame``; ``limit`` bounds the seconds for all of it, None waits.

    Raises:
        TimeoutError: It took longer.
        OSError: The other end is gone.
    """
    link.settimeout(limit)
    link.sendall(frame)


def receive(link: socket.socket, limit: float | None) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The next frame; ``limit`` bounds the seconds for all of it, None waits.

    Raises:
        TimeoutError: It took longer.
        Closed: The other end closed the socket before or inside a frame.
        FrameFault: Something else arrived.
    """
    deadline = None if limit is None else time.monotonic() + limit
    magic, head, body = LEAD.unpack(_read(link, LEAD.size, deadline))
    if magic != MAGIC or head > HEADER_LIMIT or body > BODY_LIMIT:
        raise FrameFault("not a frame, or one of another version or beyond the size limit")
    return unpack(_read(link, head, deadline), _read(link, body, deadline))


def _read(link: socket.socket, size: int, deadline: float | None) -> bytes:
    found = bytearray(size)
    view, have = memoryview(found), 0
    while have < size:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError
        link.settimeout(left)
        got = link.recv_into(view[have:])
        if not got:
            raise Closed("closed")
        have += got
    return bytes(found)
