"""Opening under a mask, products of opened values, truncation.

Products follow Beaver (1991) in the masked-wire form (each operand is opened once as value + mask and may be used in any
number of products; Ben-Efraim, Nielsen and Omri, 2019). Truncation with an exact most significant bit uses the dealer's
shares of mask >> s and of the mask's top bit (the wrap is their product with a public bit; Escudero et al., 2020).
"""

from __future__ import annotations

import torch
from torch import Tensor

from privtensors.backends.mpc.hidden import Hidden, derive, itself
from privtensors.backends.mpc.protocols.products import matmul
from privtensors.backends.mpc.protocols.ranges import watch_interval
from privtensors.backends.mpc.runtime import Open, Protocol, Runtime
from privtensors.backends.mpc.shares import WORD, Part, Shares, Wire, broadcast_shape, low_bits
from privtensors.errors import ProtocolError


def shrink(data: Tensor, shift: int) -> Tensor:
    """Divide by 2^shift locally: right to one unit in the last place, in a ring that is ``shift`` bits smaller.

    Each party rounds its share to nearest, so the error has mean zero.
    """
    if shift <= 0:
        return data << -shift if shift else data
    return (data + (1 << (shift - 1))) >> shift


def rescale(x: Shares, frac: int) -> Shares:
    """``x`` with ``frac`` fractional bits, locally. Lowering the scale shrinks the ring; raising it restores ring bits."""
    if frac == x.frac:
        return x
    return x.like(shrink(x.data, x.frac - frac), frac, min(WORD, x.ring + frac - x.frac))


def open_wire(rt: Runtime, x: Shares, frac: int | None = None) -> Protocol[Wire]:
    """Open ``x`` under a fresh uniform mask of its ring; 1 round, ring bits per element; free when opened before.

    Args:
        frac: Fractional bits of the opened form; lower than ``x.frac`` truncates locally and shrinks the ring.
    """
    frac = x.frac if frac is None else frac
    ring = min(WORD, x.ring + frac - x.frac)
    known = x.opened(frac, ring)
    if known is not None:
        return known
    target, view = (x.origin[0], x.origin[1]) if x.origin is not None and x.origin[2] else (x, None)
    words = rescale(target, frac).data
    mask = rt.dealer.mask(target.shape)
    (public,) = yield [Open(words + mask.shares, ring)]
    wire = Wire(public, mask.shares, mask.hidden, frac, ring, rt.first)
    target.remember(wire)
    return wire if view is None else wire.map(view)


def _mask_products(rt: Runtime, x: Wire, y: Wire) -> Tensor:
    """Shares of the product of two masks: the dealer shares the product of each pair of parts, public coefficients join them."""
    shape = broadcast_shape(x.public, y.public)
    out = rt.dealer.share(torch.mul, x.mask, y.mask, shape=shape)
    if not (x.extra or y.extra):
        return out
    if x is y and len(x.extra) == 1 and x.extra[0].shift < WORD:  # (m + c t)² = m² + 2 c m t + c² t², with c in {0, -1}
        (part,) = x.extra
        shift = part.shift
        twice = rt.dealer.share(lambda m, t: (m << 1) * t - (t * t << shift), x.mask, part.mask, shape=shape, bits=WORD - shift)
        with rt.meter.offline():
            twice <<= shift
        return out.add_(twice.mul_(part.coefficient))
    pairs: list[tuple[Tensor, Hidden, Hidden, int]] = [(p.coefficient, p.mask, y.mask, p.shift) for p in x.extra]
    pairs += [(q.coefficient, x.mask, q.mask, q.shift) for q in y.extra]
    pairs += [(p.coefficient * q.coefficient, p.mask, q.mask, p.shift + q.shift) for p in x.extra for q in y.extra]
    for coefficient, one, other, shift in pairs:
        if shift >= WORD:
            continue
        product = rt.dealer.share(torch.mul, one, other, shape=shape, bits=WORD - shift)
        with rt.meter.offline():
            product <<= shift
        out += product * coefficient
    return out


def multiply_wires(rt: Runtime, x: Wire, y: Wire) -> Shares:
    """Elementwise product of two opened values, with broadcasting; local. The scale is the sum of both."""
    out = _mask_products(rt, x, y)
    for row, mask_x, mask_y in zip(out, x.masks, y.masks, strict=True):
        row.addcmul_(x.public, mask_y, value=-1)
        row.addcmul_(mask_x, y.public, value=-1)
    if rt.first is not None:
        out[rt.first].addcmul_(x.public, y.public)
    return Shares(out, x.frac + y.frac, min(x.ring, y.ring))


def square_wire(rt: Runtime, x: Wire) -> Shares:
    """Elementwise square of an opened value; local."""
    out = _mask_products(rt, x, x)
    twice = x.public << 1
    for row, mask in zip(out, x.masks, strict=True):
        row.addcmul_(twice, mask, value=-1)
    if rt.first is not None:
        out[rt.first].addcmul_(x.public, x.public)
    return Shares(out, 2 * x.frac, x.ring)


def matmul_wires(rt: Runtime, x: Wire, y: Wire) -> Shares:
    """Matrix product of two opened values, batched as torch.matmul; local. ``y`` may be a weight opened long before."""
    if x.extra or y.extra:
        raise ProtocolError("a value opened while it was lifted has no matrix products", where="mpc bookkeeping")
    out = rt.dealer.share(matmul, x.mask, y.mask, shape=_matmul_shape(x.public, y.public))
    known = y.reused
    if known:  # the weight's opened form is fixed, so this half does not depend on the input
        with rt.meter.offline():
            for row, mask in zip(out, x.masks, strict=True):
                row -= matmul(mask, y.public)
    for row, mask, residue in zip(out, x.masks, y.residue(), strict=True):
        if not known:
            row -= matmul(mask, y.public)
        row += matmul(x.public, residue)
    return Shares(out, x.frac + y.frac, min(x.ring, y.ring))


def _matmul_shape(x: Tensor, y: Tensor) -> tuple[int, ...]:
    batch = x.shape[:-2]
    if batch != y.shape[:-2]:
        batch = torch.broadcast_shapes(batch, y.shape[:-2])  # type: ignore[no-untyped-call]
    return (*batch, x.shape[-2], y.shape[-1])


def lift(rt: Runtime, x: Shares, frac: int) -> Protocol[Shares]:
    """Truncate to ``frac`` fractional bits and return to the full ring, with the exact most significant bit.

    Right to one unit in the last place, unbiased; never wraps while ``|value| · 2^x.frac < 2^(x.ring - 2)``.
    1 round, ``x.ring`` bits per element.
    """
    shift, ring = x.frac - frac, x.ring
    if shift < 0:
        if ring == WORD:
            return rescale(x, frac)
        x, shift, ring = rescale(x, frac), 0, min(WORD, x.ring + frac - x.frac)
    if ring == WORD and shift == 0:
        return x
    if x._lifted is not None and x._lifted.frac == frac:
        return x._lifted
    lifted = x.like((yield from lift_words(rt, x.data, ring, shift, promised=True)), frac, WORD)
    x._lifted = lifted
    return lifted


def lift_words(rt: Runtime, data: Tensor, ring: int, shift: int, *, promised: bool = False) -> Protocol[Tensor]:
    """The words behind :func:`lift`; ``data`` may be int32 when ``ring`` is at most 32.

    Args:
        promised: Where ranges are checked, check the bookkeeping's promise: int64 ``data`` below ``2^(ring - 2)``.

    Raises:
        ProtocolError: A shift that leaves nothing of the ring.
    """
    if ring == WORD and shift == 0:
        return data
    public, minus_masks, _, _ = yield from _lifted(rt, data, ring, shift, promised)
    return rt.add_public(minus_masks, public)


def lift_wire(rt: Runtime, data: Tensor, ring: int, shift: int, frac: int, *, promised: bool = False) -> Protocol[Wire]:
    """Lift and keep what was opened: the result is ready for elementwise products without another round."""
    public, minus_masks, kept, part = yield from _lifted(rt, data, ring, shift, promised)
    return Wire(public, -minus_masks, kept, frac, WORD, rt.first, extra=(part,))


def lift_opened(rt: Runtime, wire: Wire, frac: int) -> Wire:
    """A value that is open already, truncated to ``frac`` fractional bits and lifted to the full ring; local."""
    ring, shift = wire.ring, wire.frac - frac
    _check_truncation(ring, shift)
    kept, top_bit, minus_kept, wrap = _lift_masks(rt, wire.mask, tuple(wire.public.shape), ring, shift)
    public, minus_masks, kept, part = _lift_public(wire.public + (1 << (ring - 2)), kept, top_bit, minus_kept, wrap, ring, shift)
    return Wire(public, -minus_masks, kept, frac, WORD, rt.first, extra=(part,))


def open_lifted(rt: Runtime, x: Shares, frac: int) -> Protocol[Wire]:
    """``x`` at ``frac`` fractional bits in the full ring, opened for elementwise products; 1 round, ``x.ring`` bits."""
    known = x.opened(frac, WORD)
    if known is not None:
        return known
    shift, ring = x.frac - frac, x.ring
    if shift < 0:
        x, shift, ring = rescale(x, frac), 0, min(WORD, x.ring + frac - x.frac)
    if ring == WORD and shift == 0:
        return (yield from open_wire(rt, x))
    return (yield from lift_wire(rt, x.data, ring, shift, frac, promised=True))


def _lifted(rt: Runtime, data: Tensor, ring: int, shift: int, promised: bool) -> Protocol[tuple[Tensor, Tensor, Hidden, Part]]:
    """value >> shift = public - mask in the full ring, mask = kept - no_top · top_bit · 2^(ring - shift).

    Returns:
        The public words, shares of minus the mask, and the dealer's two parts of the mask.
    """
    _check_truncation(ring, shift)
    mask = rt.dealer.mask(tuple(data.shape[1:]), data.dtype)
    parts = _lift_masks(rt, mask.hidden, tuple(data.shape[1:]), ring, shift)
    words = data + mask.shares
    rt.add_public(words, 1 << (ring - 2))
    (opened,) = yield [Open(words, ring)]
    if promised:
        watch_interval(rt, opened, mask.hidden, ring, 0, 1 << (ring - 1))
    return _lift_public(opened.to(torch.int64), *parts, ring, shift)


def _check_truncation(ring: int, shift: int) -> None:
    if not 0 <= shift <= ring - 2:
        raise ProtocolError(f"truncation by {shift} bits in a ring of {ring}", where="mpc bookkeeping")


def _lift_masks(rt: Runtime, mask: Hidden, shape: tuple[int, ...], ring: int, shift: int) -> tuple[Hidden, Hidden, Tensor, Tensor]:
    """The dealer's two parts of a mask that is truncated, and their shares: minus the first, and the second times 2^(ring - shift)."""
    full = derive(lambda m: m.to(torch.int64), mask)
    top_bit = derive(lambda m: (m >> (ring - 1)) & 1, full)
    kept = derive(lambda m: low_bits(m, ring) >> shift if ring < WORD else low_bits(m >> shift, WORD - shift), full)
    minus_kept = rt.dealer.share(torch.neg, kept, shape=shape)
    wrap = rt.dealer.share(itself, top_bit, shape=shape, bits=WORD - (ring - shift))
    with rt.meter.offline():
        wrap <<= ring - shift
    return kept, top_bit, minus_kept, wrap


def _lift_public(
    c: Tensor, kept: Hidden, top_bit: Hidden, minus_kept: Tensor, wrap: Tensor, ring: int, shift: int
) -> tuple[Tensor, Tensor, Hidden, Part]:
    """``c`` is the opened value plus 2^(ring - 2)."""
    no_top = 1 - ((c >> (ring - 1)) & 1)
    public = low_bits(c, ring) >> shift if ring < WORD else low_bits(c >> shift, WORD - shift)
    public -= 1 << (ring - 2 - shift)
    wrap *= no_top
    wrap += minus_kept
    return public, wrap, kept, Part(-no_top, top_bit, ring - shift)


def normal(rt: Runtime, x: Shares) -> Protocol[Shares]:
    """``x`` at the backend's fractional bits in the full ring; at most 1 round."""
    return (yield from lift(rt, x, rt.frac))


def with_headroom(rt: Runtime, x: Shares, extra: int) -> Protocol[Shares]:
    """``x`` such that ``extra`` more fractional bits leave the backend's headroom; lifted only when needed."""
    if x.headroom - extra >= rt.headroom:
        return x
    lifted = yield from normal(rt, x)
    if lifted.headroom - extra < rt.headroom:
        raise ProtocolError(f"{extra} more fractional bits leave {lifted.headroom - extra} integer bits", where="mpc bookkeeping")
    return lifted
