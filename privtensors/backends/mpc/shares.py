"""What the mpc backend holds: additive shares with their scale and ring, and the masked form opened for products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from privtensors.backends.mpc.hidden import Hidden, derive, view_of
from privtensors.errors import ProtocolError

WORD: Final = 64

# Maps a tensor's trailing dimensions; ``lead`` is the number of leading axes it must leave alone (0 or 1).
ViewMap = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A further part of a mask: ``coefficient · mask · 2^shift``, the coefficient public once the value is opened.

    Attributes:
        coefficient: int64, broadcastable to the value.
        mask: The dealer's.
    """

    coefficient: Tensor
    mask: Hidden
    shift: int


class Wire:
    """A value opened once as ``public = value + mask`` in Z_2^ring, reusable in any number of products.

    Attributes:
        public: int64, shape of the value; the same at both parties. Bits at and above ``ring`` are junk.
        masks: int64, ``(parties, *shape)``: additive shares of the mask.
        mask: The dealer's view of the mask, int64, shape of the value.
        frac: Fractional bits.
        ring: Valid low bits.
        first: Row of party 0 among the parties held here, or None.
        extra: Further parts of the mask, beside ``mask``: a value that was opened while it was lifted.
        reused: True once it was found again by a later call: a weight.
    """

    __slots__ = ("_residue", "base", "extra", "first", "frac", "mask", "masks", "public", "reused", "ring", "view")

    def __init__(
        self,
        public: Tensor,
        masks: Tensor,
        mask: Hidden,
        frac: int,
        ring: int,
        first: int | None,
        base: Wire | None = None,
        view: ViewMap | None = None,
        extra: tuple[Part, ...] = (),
    ) -> None:
        self.public, self.masks, self.mask, self.frac, self.ring = public, masks, mask, frac, ring
        self.base, self.view, self.first, self.extra = base, view, first, extra
        self.reused: bool = base.reused if base is not None else False
        self._residue: Tensor | None = None

    def map(self, view: ViewMap) -> Wire:
        """The wire of a reshaped or sliced value. ``view`` may only move elements: it is applied to coefficients too."""
        extra = tuple(Part(view(p.coefficient, 0), view_of(p.mask, view), p.shift) for p in self.extra)
        public, masks, mask = view(self.public, 0), view(self.masks, 1), view_of(self.mask, view)
        return Wire(public, masks, mask, self.frac, self.ring, self.first, self, view, extra)

    def plus(self, other: Wire) -> Wire:
        """The opened form of the sum of two values of one shape and ring, their words taken at this value's scale."""
        public, masks = self.public + other.public, self.masks + other.masks
        mask = derive(torch.add, self.mask, other.mask)
        return Wire(public, masks, mask, self.frac, min(self.ring, other.ring), self.first, extra=self.extra + other.extra)

    def doubled(self) -> Wire:
        """The opened form of twice the value."""
        extra = tuple(Part(p.coefficient, p.mask, p.shift + 1) for p in self.extra)
        mask = derive(lambda m: m << 1, self.mask)
        return Wire(self.public << 1, self.masks << 1, mask, self.frac, self.ring, self.first, extra=extra)

    def residue(self) -> Tensor:
        """Additive shares of the value rebuilt from the opened form, ``(parties, *shape)``; kept for reuse (weights)."""
        if self.base is not None and self.view is not None:
            return self.view(self.base.residue(), 1)
        if self._residue is None:
            self._residue = -self.masks
            if self.first is not None:
                self._residue[self.first] += self.public
        return self._residue

    def __repr__(self) -> str:
        return f"Wire(shape={tuple(self.public.shape)}, frac={self.frac}, ring={self.ring})"


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A matrix W masked for lookups: the dealer knows one party's share of it. One per version of the matrix.

    Attributes:
        rows: int64, ``(parties held here, V, d)``: W + M at the party that asks, -M at the one that answers.
        mask: The dealer's view of M, int64, ``(V, d)``.
    """

    rows: Tensor
    mask: Hidden

    def __repr__(self) -> str:
        return f"Table(shape={tuple(self.rows.shape[1:])})"


class Shares:
    """Additive shares of fixed-point numbers: ``value = (sum of rows mod 2^ring, signed) / 2^frac``.

    The bookkeeping is the promise ``|value| · 2^frac < 2^(ring - 2)``; each protocol states what it leaves of it.

    Attributes:
        data: int64, ``(parties held here, *shape)``; bits at and above ``ring`` are junk.
        frac: Fractional bits.
        ring: Low bits in which the shares add up to the value.
        dtype: The dtype of the plain tensor this stands for.
        table: The form masked for lookups, once it was used as a table.
        known: int64, ``(parties held here, *shape)``: whole numbers that the client protected, in its own row; else None.
    """

    __slots__ = ("_lifted", "_wire", "data", "dtype", "frac", "known", "origin", "ring", "table")
    kind = "A"

    def __init__(self, data: Tensor, frac: int, ring: int = WORD, dtype: torch.dtype = torch.float32) -> None:
        if not 0 < ring <= WORD:
            raise ProtocolError(f"a ring of {ring} bits ({frac} fractional)", where="mpc bookkeeping")
        self.data, self.frac, self.ring, self.dtype = data, frac, ring, dtype
        self.origin: tuple[Shares, ViewMap, bool] | None = None
        self._wire: Wire | None = None
        self._lifted: Shares | None = None
        self.table: Table | None = None
        self.known: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the plain tensor."""
        return tuple(self.data.shape[1:])

    @property
    def headroom(self) -> int:
        """Integer bits left for the value's magnitude."""
        return self.ring - 2 - self.frac

    def __repr__(self) -> str:
        return f"Shares(shape={self.shape}, frac={self.frac}, ring={self.ring})"

    def like(self, data: Tensor, frac: int | None = None, ring: int | None = None) -> Shares:
        """Shares of the same dtype with other words."""
        return Shares(data, self.frac if frac is None else frac, self.ring if ring is None else ring, self.dtype)

    def view(self, view: ViewMap, *, whole: bool) -> Shares:
        """A reshaped or sliced value that shares its opened form with this one.

        Args:
            view: The map.
            whole: True when the map keeps every element, so that opening the base costs no more than opening the view.
        """
        out = self.like(view(self.data, 1))
        if self.origin is None:
            out.origin = (self, view, whole)
        else:
            root, before, kept = self.origin
            out.origin = (root, lambda t, lead: view(before(t, lead), lead), kept and whole)
        return out

    def opened(self, frac: int, ring: int) -> Wire | None:
        """The wire if this value, or the base it is a view of, was opened with these parameters already."""
        for wire, view in ((self._wire, None), (self.origin[0]._wire, self.origin[1]) if self.origin else (None, None)):
            if wire is not None and wire.frac == frac and wire.ring >= ring:
                return wire if view is None else wire.map(view)
        return None

    def known_to_client(self) -> Tensor | None:
        """What the client still knows of this value, or of the base it is a view of; None for results and others' values."""
        if self.known is None and self.origin is not None and self.origin[0].known is not None:
            return self.origin[1](self.origin[0].known, 1)
        return self.known

    def remember(self, wire: Wire) -> None:
        """Keep the opened form for later products. An in-place write replaces the whole payload and so forgets it."""
        self._wire = wire


def broadcast_shape(*operands: object) -> tuple[int, ...]:
    """Shape that the operands broadcast to; numbers count as 0-dimensional."""
    shapes = [tuple(getattr(v, "shape", ())) for v in operands]
    if all(shape == shapes[0] for shape in shapes):
        return shapes[0]
    return tuple(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]


def sign_extend(words: Tensor, bits: int) -> Tensor:
    """The low ``bits`` of each int64 word, read as a signed number."""
    return words if bits == WORD else (words << (WORD - bits)) >> (WORD - bits)


def low_bits(words: Tensor, bits: int) -> Tensor:
    """The low ``bits`` of each word, as a non-negative number (``bits`` < 64)."""
    return words & ((1 << bits) - 1)
