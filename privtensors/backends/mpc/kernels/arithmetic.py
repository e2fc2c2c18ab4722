"""Kernels for sums, differences, products, powers and reductions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from privtensors.backends.mpc import costs
from privtensors.backends.mpc.kernels.shape import aligned, expand, represented
from privtensors.backends.mpc.protocols.arithmetic import lift, multiply_wires, normal, open_lifted, open_wire, square_wire, with_headroom
from privtensors.backends.mpc.protocols.normalise import power
from privtensors.backends.mpc.protocols.octaves import span, wide_sqrt
from privtensors.backends.mpc.runtime import Host, Protocol, Runtime, parallel
from privtensors.backends.mpc.shares import WORD, Shares, Wire, broadcast_shape
from privtensors.core.kernel import Kernel
from privtensors.errors import ParameterError, UnsupportedOp

Operand = Shares | Tensor | float | int
SQUARE_LOW: Final = -40  # gradients of 1e-6 and more
SQUARE_HIGH: Final = 10


def _broadcast(backend: Host, x: Operand, y: Operand) -> list[Shares | Tensor]:
    both = [v if isinstance(v, Shares | Tensor) else torch.tensor(float(v)) for v in (x, y)]
    shape = broadcast_shape(*both)
    return [v if tuple(v.shape) == shape else expand(backend, v, shape) if isinstance(v, Shares) else v.expand(shape) for v in both]


def _dtype(x: Operand) -> torch.dtype | None:
    return x.dtype if isinstance(x, Shares) else None


def add(backend: Host, x: Operand, y: Operand, *, alpha: float = 1) -> Shares:
    """x + alpha · y."""
    if alpha != 1:
        y = scale(backend, y, alpha) if isinstance(y, Shares) else y * alpha
    words, frac, ring, _ = aligned(backend, _broadcast(backend, x, y))
    dtype = _dtype(x) or _dtype(y) or torch.float32
    if dtype == torch.bool:  # torch counts bools as whole numbers, unless a float joins them
        floats = any(isinstance(v, float) or (isinstance(v, Shares | Tensor) and v.dtype.is_floating_point) for v in (x, y))
        dtype = torch.float32 if floats else torch.int64
    return Shares(words[0] + words[1], frac, ring, dtype)


def sub(backend: Host, x: Operand, y: Operand, *, alpha: float = 1) -> Shares:
    """x - alpha · y."""
    return add(backend, x, y, alpha=-alpha) if alpha != 1 else add(backend, x, neg(backend, y) if isinstance(y, Shares) else -y)


def rsub(backend: Host, x: Operand, y: Operand, alpha: float = 1) -> Shares:
    """y - alpha · x."""
    return sub(backend, y, x, alpha=alpha)


def neg(backend: Host, x: Shares) -> Shares:
    """-x."""
    return x.like(-x.data)


def scale(backend: Host, x: Shares, factor: float) -> Shares:
    """x times a public number: free for small dyadic numbers, else a product with its fixed-point form."""
    if not math.isfinite(factor):
        raise ParameterError(f"a factor of {factor}", where="mpc mul", fix="use a finite number")
    mantissa, exponent = math.frexp(factor)
    for bits in range(1, 7):
        whole = mantissa * 2**bits
        if whole == int(whole):
            shift = exponent - bits  # factor = whole · 2^shift
            out = x.like(x.data * int(whole))
            if shift >= 0:
                out = x.like(out.data << shift)
            elif out.headroom + shift >= 4:
                out = out.like(out.data, out.frac - shift)
            else:
                break
            return out
    if x.frac > backend.frac and 0 < 1 - factor <= 0.125:
        # A decay such as Adam's 0.999: only the small part that is taken off is rounded, so slow averages keep their last bits.
        taken = 1 - factor
        return sub(backend, x, scaled(backend, x, taken, max(10, backend.frac + 1 + math.frexp(taken)[1])))
    return scaled(backend, x, factor, backend.frac)


def scaled(backend: Host, x: Shares, factor: float, bits: int) -> Shares:
    """x times a public number of ``bits`` significant bits, local or 1 round.

    A value that promises to be small, by its many fractional bits, keeps as many of them as that promise leaves room for.
    """
    exponent = math.frexp(factor)[1]
    room = min(backend.runtime.headroom, x.headroom + max(exponent, 0))
    digits = bits - min(exponent, 0)
    base = x if x.headroom - bits >= room else backend.run(lift(backend.runtime, x, WORD - 2 - bits - room))
    return base.like(base.data * round(factor * 2.0**digits), base.frac + digits)


def mul_public(backend: Host, x: Shares, y: Tensor) -> Shares:
    """x times a public tensor."""
    shape = broadcast_shape(x, y)
    wide = y.to(torch.float64)
    small = not y.dtype.is_floating_point or bool((wide == wide.round()).all() and wide.abs().max() <= 256 if y.numel() else True)
    frac = 0 if small else backend.frac
    base = x if small else backend.run(with_headroom(backend.runtime, x, frac))
    out = expand(backend, base, shape) if base.shape != shape else base
    return out.like(out.data * backend.encode(y, frac), base.frac + frac)


def multiply(rt: Runtime, x: Shares, y: Shares) -> Protocol[Shares]:
    """Product of two shared tensors; 1 round for normal operands, plus 1 when one must be lifted first."""
    if x is y:
        square = square_wire(rt, (yield from operand(rt, x)))
        square.dtype = x.dtype
        return square
    a, b = yield from parallel(operand(rt, x), operand(rt, y))
    out = multiply_wires(rt, a, b)
    out.dtype = x.dtype if x.dtype != torch.bool else y.dtype
    return out


def operand(rt: Runtime, x: Shares) -> Protocol[Wire]:
    """x opened for a product; lifted first when it carries more bits than usual."""
    ready = x if x.frac <= rt.frac and x.ring == 64 else (yield from normal(rt, x))
    return (yield from open_wire(rt, ready))


def mul(backend: Host, x: Operand, y: Operand) -> Shares:
    """Elementwise product."""
    if not isinstance(x, Shares):
        x, y = y, x
    assert isinstance(x, Shares)
    if isinstance(y, Shares):
        return backend.run(multiply(backend.runtime, x, y))
    if isinstance(y, Tensor):
        return scale(backend, x, float(y)) if y.dim() == 0 else mul_public(backend, x, y)
    return scale(backend, x, float(y))


def reciprocal_of(backend: Host, x: Shares) -> Shares:
    """1 / x for 2^-8 ≤ |x| ≤ 2^10, through 1/x = (x · r) · r with r = (x²)^(-1/2), so that signs need no comparison.

    x · r is ±1, so the result is as right as r: 1e-4 of itself and one unit in the last place, beside what rounding x
    itself to fixed point costs: the declared error holds from |x| = 0.1.
    """

    def protocol(rt: Runtime) -> Protocol[Shares]:
        one = yield from normal(rt, x)
        wire = yield from open_wire(rt, one)
        square = square_wire(rt, wire)
        root = yield from power(rt, square, -0.5, low=-16, octaves=36)
        inverse = yield from open_wire(rt, (yield from lift(rt, root, 24)))
        one = yield from normal(rt, multiply_wires(rt, wire, inverse))
        out = yield from normal(rt, multiply_wires(rt, (yield from open_wire(rt, one)), inverse))
        out.dtype = x.dtype
        return out

    return backend.run(protocol(backend.runtime))


def div(backend: Host, x: Operand, y: Operand) -> Shares:
    """Quotient; by a shared tensor within the range of :func:`reciprocal_of`."""
    if isinstance(y, Shares):
        return mul(backend, x, reciprocal_of(backend, y))
    assert isinstance(x, Shares)
    if not isinstance(y, Tensor) and y == 0:
        raise ParameterError("a division by zero", where="mpc div", fix="divide by a number that is not zero")
    inverse = 1.0 / float(y) if not isinstance(y, Tensor) else 1.0 / y.to(torch.float64)
    return mul(backend, x, inverse)


def pow_(backend: Host, x: Shares, exponent: float) -> Shares:
    """Small whole powers, and -1, ±1/2."""
    if exponent == 1:
        return x
    if exponent in (0.5, -0.5):
        return root(backend, x, inverse=exponent < 0)
    if exponent == -1:
        return reciprocal_of(backend, x)
    if exponent not in (2, 3, 4):
        raise UnsupportedOp(f"pow with exponent {exponent}", where="backend 'mpc'", fix="use 2, 3, 4, -1 or ±0.5")
    square = mul(backend, x, x)
    return square if exponent == 2 else mul(backend, square, x if exponent == 3 else square)


def root(backend: Host, x: Shares, *, inverse: bool) -> Shares:
    """x^(-1/2), or x^(1/2) = x · x^(-1/2), for x in [2^-16, 2^14]; zero and below saturate.

    Right to 1e-5 of the result, beside what rounding x itself to fixed point costs: the declared error holds from x = 0.1.
    The root of a value with more fractional bits than usual, such as an average of squared gradients, is right to 1e-5 of
    itself from 2^-40 up to 2^10; below and above it reads as the root of the nearer end.
    """
    if not inverse and x.frac > backend.frac:
        return backend.run(wide_sqrt(backend.runtime, x, span(x.frac, SQUARE_LOW, SQUARE_HIGH)))

    def protocol(rt: Runtime) -> Protocol[Shares]:
        found = yield from power(rt, x, -0.5, low=-16, octaves=30)
        if inverse:
            out = yield from normal(rt, found)
        else:  # finer than the backend's bits: a large x multiplies what is rounded off
            fine, wire = yield from parallel(open_lifted(rt, found, 28), open_lifted(rt, x, rt.frac))
            out = yield from normal(rt, multiply_wires(rt, fine, wire))
        out.dtype = x.dtype
        return out

    return backend.run(protocol(backend.runtime))


def addcmul(backend: Host, x: Operand, a: Operand, b: Operand, *, value: float = 1) -> Shares:
    """x + value · a · b. A small ``value`` leaves the product as many more fractional bits: squared gradients need them."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return add(backend, x, a * b, alpha=value)
    bits = -math.frexp(value)[1]
    if bits <= 0 or not (isinstance(a, Shares) and isinstance(b, Shares)):
        return add(backend, x, mul(backend, a, b), alpha=value)
    fine = scale(backend, a, value)

    def protocol(rt: Runtime) -> Protocol[Shares]:
        wires = yield from parallel(open_lifted(rt, fine, min(fine.frac, rt.frac + bits)), open_lifted(rt, b, min(b.frac, rt.frac)))
        out = multiply_wires(rt, *wires)
        out.dtype = a.dtype
        return out

    return add(backend, x, backend.run(protocol(backend.runtime)))


def choose(backend: Host, condition: Shares, x: Operand, y: Operand) -> Shares:
    """y + condition · (x - y) for a shared condition."""
    both = _broadcast(backend, x, y)
    if not any(isinstance(v, Shares) for v in both):
        return add(backend, mul(backend, condition, both[0] - both[1]), both[1])  # type: ignore[operator]
    return add(backend, mul(backend, condition, sub(backend, both[0], both[1])), both[1])


def fill(backend: Host, x: Operand, condition: Shares, value: float) -> Shares:
    """masked_fill with a shared mask."""
    return choose(backend, condition, value, x)


def _dims(x: Shares, dim: int | Sequence[int] | None) -> list[int]:
    n = len(x.shape)
    dims = [] if dim is None else [dim] if isinstance(dim, int) else list(dim)
    return [d % n + 1 for d in dims] if dims and n else list(range(1, n + 1))


def sum_(backend: Host, x: Shares, dim: int | Sequence[int] | None = None, keepdim: bool = False, *, dtype: Any = None) -> Shares:
    """Sum over dimensions."""
    dims = _dims(x, dim)
    out = x.like(x.data.sum(dims, keepdim=keepdim) if dims else x.data)
    out.dtype = dtype or (torch.int64 if x.dtype == torch.bool else x.dtype)
    return out


def mean(backend: Host, x: Shares, dim: int | Sequence[int] | None = None, keepdim: bool = False, *, dtype: Any = None) -> Shares:
    """Mean over dimensions: the sum times 1/n, with log2(n) more fractional bits so that 1/n keeps its precision."""
    dims = _dims(x, dim)
    count = math.prod(x.data.shape[d] for d in dims)
    total = sum_(backend, x, dim, keepdim)
    if count <= 1:
        return total
    if count & (count - 1) == 0 and total.headroom > 20:
        return total.like(total.data, total.frac + count.bit_length() - 1)
    total = backend.run(normal(backend.runtime, total))
    frac = backend.frac + math.ceil(math.log2(count))
    return total.like(total.data * round(2.0**frac / count), total.frac + frac)


def cumsum(backend: Host, x: Shares, dim: int, *, dtype: Any = None) -> Shares:
    """Running sum."""
    out = x.like(x.data.cumsum(dim % len(x.shape) + 1))
    out.dtype = dtype or (x.dtype if x.dtype.is_floating_point else torch.int64)
    return out


def ulps(count: float) -> Callable[..., float]:
    """Declared error of ``count`` units in the last place, for operands of magnitude up to 2^6."""

    def error(backend: Host, *_args: Any, **_kwargs: Any) -> float:
        return float(count * 2.0 ** -(backend.frac - 7))

    return error


def absolute(error: float) -> Callable[..., float]:
    """Declared error that does not depend on the operands."""
    return lambda backend, *_args, **_kwargs: error


KERNELS: Final = (
    *(Kernel("add", kinds, add, error=represented) for kinds in ("A", "AA", "AP", "PA")),
    *(Kernel("sub", kinds, sub, error=represented) for kinds in ("A", "AA", "AP", "PA")),
    *(Kernel("rsub", kinds, rsub, error=represented) for kinds in ("A", "AA", "AP", "PA")),
    Kernel("neg", "A", neg, error=represented),
    Kernel("mul", "A", mul, error=ulps(1)),
    Kernel("mul", "AP", mul, error=ulps(1)),
    Kernel("mul", "PA", mul, error=ulps(1)),
    Kernel("mul", "AA", mul, costs.product, ulps(2)),
    Kernel("div", "A", div, costs.quotient, absolute(1e-2)),
    Kernel("div", "AP", div, error=ulps(1)),
    Kernel("sum", "A", sum_, error=ulps(1)),
    Kernel("mean", "A", mean, error=ulps(1)),
    Kernel("cumsum", "A", cumsum, error=ulps(1)),
)
