"""Requests prepared ahead at the server: their corrections wait in memory, within a limit."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from privtensors.deploy.links import KEEPALIVE_S
from privtensors.deploy.stream import CorrectionStream
from privtensors.errors import CorrelationError

_PIECE: Final = 1 << 20


class KeptCorrections:
    """Corrections in memory, read as a stream of the dealer's is. ``data`` is writable and used once."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._at = data, 0

    def __repr__(self) -> str:
        return f"KeptCorrections({self._at} of {len(self._data)} bytes)"

    def take(self, size: int) -> memoryview:
        """The next ``size`` bytes, without a copy.

        Raises:
            CorrelationError: There are no more.
        """
        start, self._at = self._at, self._at + size
        if self._at > len(self._data):
            raise CorrelationError("less was prepared than this forward needs", where="corrections", fix="give all parties the same model")
        return self._data[start : self._at]

    def finish(self) -> None:
        """After the last use.

        Raises:
            CorrelationError: Corrections are left over.
        """
        if self._at != len(self._data):
            left = len(self._data) - self._at
            raise CorrelationError(f"{left} bytes of corrections are left over", where="corrections", fix="give all parties the same model")

    def close(self) -> None:
        """Let go of them."""
        self._data = memoryview(b"")


@dataclass(frozen=True, slots=True)
class Kept:
    """A prepared request at the server.

    Attributes:
        kind: See :func:`~privtensors.deploy.kinds.kind_of`.
        seed: This party's.
        data: The corrections.
    """

    kind: str
    seed: bytes = field(repr=False)
    data: memoryview = field(repr=False)

    def corrections(self) -> KeptCorrections:
        """To read them, once."""
        return KeptCorrections(self.data)


class Shelf:
    """The prepared requests of one session.

    Args:
        limit: Most bytes of corrections kept.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0
        self._kept: dict[bytes, Kept] = {}
        self._sizes: dict[str, int] = {}

    def find(self, request: bytes) -> Kept | None:
        """The request of that id, which stays."""
        return self._kept.get(request)

    def take(self, request: bytes) -> Kept | None:
        """The request of that id, which is gone then."""
        kept = self._kept.pop(request, None)
        if kept is not None:
            self._held -= len(kept.data)
        return kept

    def fits(self, size: int) -> bool:
        """Whether so many bytes may be added."""
        return self._held + size <= self._limit

    def may_fit(self, kind: str) -> bool:
        """Whether a request of that kind may be added, as far as its size is known."""
        return self._limit > 0 and self.fits(self._sizes.get(kind, 0))

    def put(self, request: bytes, kept: Kept) -> None:
        """Add a request."""
        self._kept[request] = kept
        self._held += len(kept.data)
        self.note(kept.kind, len(kept.data))

    def note(self, kind: str, size: int) -> None:
        """Remember how large a request of that kind is."""
        if size and len(self._sizes) < 1 << 12:
            self._sizes[kind] = size


def receive(stream: CorrectionStream, *, keep: bool, alive: Callable[[], None]) -> memoryview | None:
    """All of a stream's corrections; None where they are not to be kept: they are read and dropped.

    Args:
        stream: From its beginning.
        keep: Whether there is room for them.
        alive: Called every second.

    Raises:
        TransportError: They do not come.
    """
    out = np.empty(stream.total if keep else 0, dtype=np.uint8).data
    said = time.monotonic()
    for at in range(0, stream.total, _PIECE):
        size = min(_PIECE, stream.total - at)
        piece = stream.take(size)
        if keep:
            out[at : at + size] = piece
        if time.monotonic() - said >= KEEPALIVE_S:
            alive()
            said = time.monotonic()
    stream.finish()
    return out if keep else None
