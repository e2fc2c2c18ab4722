"""Declared cost of every protocol and kernel, as formulas; the conformance suite measures what really crosses the wire.

``n`` counts elements. Formulas hold for freshly protected operands: normal scale, never opened before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

from privtensors.backends.mpc.protocols import argmax as tournaments
from privtensors.backends.mpc.protocols.compare import DIGIT
from privtensors.backends.mpc.protocols.normalise import ROW_DIGIT
from privtensors.backends.mpc.protocols.softmax import EXP_FRAC, NARROW, SCORE_FRAC, public_mask, scale_of
from privtensors.backends.mpc.shares import WORD, Shares, broadcast_shape
from privtensors.core.kernel import FREE, Cost
from privtensors.transport.base import packed_size

RANGE_BITS: Final = 19  # comparisons are right for |x| < 2^19, so for the difference of any two inputs
CUT_FRAC: Final = 12  # clamps and ReLU decide to 2^-12


def opened(n: int, bits: int) -> Cost:
    """One round in which each party sends ``n`` words of ``bits`` bits."""
    return Cost(1, packed_size(n, bits))


def beside(*costs: Cost) -> Cost:
    """Protocols that share rounds."""
    return Cost(max(c.rounds for c in costs), sum(c.bytes for c in costs))


def then(*costs: Cost) -> Cost:
    """Protocols one after the other."""
    return sum(costs, FREE)


def comparison(n: int, thresholds: int, frac: int, range_bits: int, digit: int = DIGIT, group: int = 3, ring: int | None = None) -> Cost:
    """at_least: one opening, of the window or of a wire of ``ring`` bits, then AND rounds over groups of digits."""
    low = frac + range_bits
    cost, digits = opened(n, low + 1 if ring is None else ring), -(-low // digit)
    while digits > 1:
        sizes = [min(group, digits - start) for start in range(0, digits, group)]
        # Per group: the higher digits' equalities and the lower digits' orders; the whole group's equality if not the lowest.
        words = sum(2 * (size - 1) + (1 if i and size > 1 else 0) for i, size in enumerate(sizes))
        cost += Cost(1, words * packed_size(n * thresholds, 1))
        digits = len(sizes)
    return cost


def selection(n: int, shared: int, public: int, ring: int = WORD) -> Cost:
    """select: one bit per term and one word per term that was not opened before, in one round."""
    return Cost(1, (shared + public) * packed_size(n, 1) + shared * packed_size(n, ring))


def power(n: int, frac: int, low: int, octaves: int, ring: int = WORD) -> Cost:
    """power: the pieces' opening beside the comparison, then the selection."""
    count = octaves // 2
    wide = min(ring - frac - 2, low + octaves + 6)
    return then(beside(opened(n, ring), comparison(n, count + 1, 4 - low, wide, ROW_DIGIT, 5)), selection(n, count, 2))


def pair(value: Sequence[int] | int) -> list[int]:
    """One or two numbers as two: height and width."""
    both = [value] if isinstance(value, int) else list(value)
    return both * 2 if len(both) == 1 else both


def _n(x: Any) -> int:
    return math.prod(x.shape) if isinstance(x, Shares) else 0


def product(backend: Any, x: Any, y: Any, *_rest: Any, **_options: Any) -> Cost:
    """Openings of both operands, 8 bytes per element; local when one is public."""
    if not (isinstance(x, Shares) and isinstance(y, Shares)):
        return FREE
    return opened(_n(x), WORD) if x is y else beside(opened(_n(x), WORD), opened(_n(y), WORD))


def added_product(backend: Any, x: Any, a: Any, b: Any, *, value: float = 1) -> Cost:
    """addcmul: the product's openings; a factor below 1 is opened with the first operand, a square included."""
    if a is b and isinstance(a, Shares) and math.frexp(value)[1] < 0:
        return beside(opened(_n(a), WORD), opened(_n(a), WORD))
    return product(backend, a, b)


def chosen(backend: Any, condition: Any, x: Any, y: Any) -> Cost:
    """where with a shared condition: one product."""
    if not (isinstance(x, Shares) or isinstance(y, Shares)):
        return FREE
    return beside(opened(_n(condition), WORD), opened(math.prod(broadcast_shape(x, y)), WORD))


def filled(backend: Any, x: Any, condition: Any, value: float) -> Cost:
    """masked_fill with a shared mask."""
    return chosen(backend, condition, value, x)


def sign(backend: Any, x: Any, *_rest: Any, **_options: Any) -> Cost:
    """relu, abs."""
    n = _n(x)
    return then(comparison(n, 1, CUT_FRAC, RANGE_BITS, ring=WORD), selection(n, 0, 1))


def maximum(backend: Any, x: Any, y: Any) -> Cost:
    """As relu of the difference."""
    n = math.prod(broadcast_shape(x, y))
    return then(comparison(n, 1, CUT_FRAC, RANGE_BITS, ring=WORD), selection(n, 0, 1))


def compared(backend: Any, x: Any, y: Any) -> Cost:
    """gt, ge, lt, le: exact, so at the operands' full scale."""
    n = math.prod(broadcast_shape(x, y))
    frac = max(v.frac if isinstance(v, Shares) else 0 for v in (x, y))
    return then(comparison(n, 1, frac, RANGE_BITS), selection(n, 0, 1))


def clamped(backend: Any, x: Any, low: float | None = None, high: float | None = None) -> Cost:
    """clamp, hardtanh."""
    n, limits = _n(x), (low is not None) + (high is not None)
    return then(comparison(n, limits, CUT_FRAC, RANGE_BITS, ring=WORD), selection(n, 0, 1 + limits))


def activation(line: bool, constants: int) -> Callable[..., Cost]:
    """Window comparison beside Fourier opening and lift (and the lift of x / 2), then the selection."""

    def cost(backend: Any, x: Any, **_options: Any) -> Cost:
        n = _n(x)
        if line:  # one opening for the window, the series and x / 2
            parts = beside(comparison(n, 2, 2, 13, ring=WORD), Cost(2, opened(n, 32).bytes))
        else:
            parts = beside(comparison(n, 2, 2, 13), then(opened(n, 20), opened(n, 32)))
        return then(parts, selection(n, 0, (2 if line else 1) + constants))

    return cost


def exponential(backend: Any, x: Any) -> Cost:
    """exp: clamp, Fourier opening, lift, square."""
    n = _n(x)
    return then(comparison(n, 2, CUT_FRAC, RANGE_BITS, ring=WORD), selection(n, 0, 3), *[opened(n, WORD)] * 3)


def root(inverse: bool) -> Callable[..., Cost]:
    """rsqrt, sqrt."""

    def cost(backend: Any, x: Any, *_rest: Any) -> Cost:
        n = _n(x)
        base = power(n, x.frac, -16, 30)
        return then(base, opened(n, WORD)) if inverse else then(base, beside(opened(n, WORD), opened(n, WORD)), opened(n, WORD))

    return cost


def inverse(n: int, frac: int) -> Cost:
    """reciprocal_of: open, power of the square, lift, open, lift, open, lift."""
    return then(opened(n, WORD), power(n, 2 * frac, -16, 36), *[opened(n, WORD)] * 5)


def reciprocal(backend: Any, x: Any) -> Cost:
    """reciprocal."""
    return inverse(_n(x), backend.frac)


def quotient(backend: Any, x: Any, y: Any) -> Cost:
    """div: by a shared tensor its reciprocal times x; else local."""
    if not isinstance(y, Shares):
        return FREE
    n = _n(y)
    base = inverse(n, backend.frac)
    return then(base, beside(opened(_n(x), WORD), opened(n, WORD))) if isinstance(x, Shares) else base


def whole_power(backend: Any, x: Any, exponent: float) -> Cost:
    """pow: a square costs one opening; the third and fourth powers lift and open it again."""
    n = _n(x)
    if exponent in (0.5, -0.5):
        return root(exponent < 0)(backend, x)
    if exponent == -1:
        return reciprocal(backend, x)
    return then(*[opened(n, WORD)] * {1: 0, 2: 1, 3: 3, 4: 3}[int(exponent)])


def batch_norm(backend: Any, x: Any, weight: Any, bias: Any, mean: Any, var: Any, *options: Any) -> Cost:
    """batch_norm: the product with a shared gain; with shared statistics the inverse deviation before it."""
    if isinstance(var, Shares):
        gain = then(root(True)(backend, var), opened(_n(var), WORD) if not isinstance(weight, Shares) else FREE)
        if isinstance(weight, Shares):
            gain = then(gain, beside(opened(_n(weight), WORD), opened(_n(var), WORD)), opened(_n(var), WORD))
        return then(gain, beside(opened(_n(x), WORD), opened(_n(var), WORD)))
    if not isinstance(weight, Shares):
        return FREE
    eps = options[2] if len(options) == 3 else options[1]
    folded = bool(((var + eps).rsqrt() == 1).all())  # statistics folded into the gain by its owner
    rescaled = FREE if folded else opened(_n(weight), WORD)
    return then(rescaled, beside(opened(_n(x), WORD), opened(_n(weight), WORD)))


def tournament(backend: Any, count: int, length: int) -> Cost:
    """Pairwise maxima of ``count`` rows of ``length``."""
    total = FREE
    while length > 1:
        n = count * (length // 2)
        total = then(total, comparison(n, 1, CUT_FRAC, RANGE_BITS, ring=WORD), selection(n, 0, 1))
        length -= length // 2
    return total


def row_maximum(backend: Any, x: Any, dim: Any = (), keepdim: bool = False) -> Cost:
    """amax."""
    dims = {d % len(x.shape) for d in dim} or set(range(len(x.shape)))
    length = math.prod(x.shape[d] for d in dims)
    return tournament(backend, _n(x) // length if length else 0, length)


def argmax(backend: Any, x: Any, dim: int | None = None, keepdim: bool = False) -> Cost:
    """argmax: per level the comparisons of all pairs, the AND of each element's, and the selection of value and index."""
    length = _n(x) if dim is None else x.shape[dim] if x.shape else 1
    rows = _n(x) // length if length else 0
    total = opened(_n(x), x.ring) if x.frac > backend.frac or x.ring < WORD else FREE
    for level, (groups, size) in enumerate(tournaments.levels(length)):
        n, others = rows * groups, size - 1
        total = then(total, comparison(n * size * others // 2, 1, backend.frac, tournaments.RANGE_BITS))
        for width, results in tournaments.fan_ins(others):
            total += Cost(1, width * packed_size(n * others * results, 1))
        # At the first level indices are public; after the last nobody needs the value.
        total += Cost(1, sum(selection(n, *(others, 0) if shared else (0, others)).bytes for shared in [level > 0] + [True] * (groups > 1)))
    return total


def max_pool(backend: Any, x: Any, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False) -> Cost:
    """max_pool2d: a tournament per window."""
    size, pad, gap = pair(kernel), pair(padding), pair(dilation)
    step = pair(stride) if stride else size
    outs = [(x.shape[-2 + i] + 2 * pad[i] - gap[i] * (size[i] - 1) - 1) // step[i] + 1 for i in (0, 1)]
    return tournament(backend, math.prod(x.shape[:-2]) * outs[0] * outs[1], size[0] * size[1])


def softmax_rows(shape: tuple[int, ...], frac: int, ring: int, factor: float) -> Cost:
    """softmax_parts: clamp, coarse maximum, exp."""
    n, length = math.prod(shape), shape[-1]
    rows = math.prod(shape[:-1])
    scale = scale_of(factor)
    cut = 1 - scale.cell_bits
    kept = max(min(frac, scale.plan.frac + 3), cut)
    wide = min(NARROW, ring - frac + kept)
    tree, left = FREE, length
    while left > 1:
        width = min(4, left)
        groups = -(-left // width)
        tree = then(tree, Cost(1, width * packed_size(rows * groups, 64)))
        left = groups
    return then(
        comparison(n, 2, cut, min(wide - kept - 2, 20 - cut), ring=wide),
        selection(n, 0, 3),
        opened(n, 6),
        tree,
        opened(rows, 64),
        opened(n, scale.plan.period_bits),
        opened(n, 32),
    )


def _row_inverse(rows: int, length: int) -> Cost:
    octaves = 10 + math.ceil(math.log2(length + 1))
    return then(power(rows, EXP_FRAC, -6, octaves + octaves % 2, WORD - EXP_FRAC), opened(rows, WORD))


def softmax(backend: Any, x: Any, dim: int, *_rest: Any) -> Cost:
    """softmax: lift to 16 bits, rows, reciprocal beside the opening of the weights, product, lift."""
    n = len(x.shape)
    shape = (*(size for i, size in enumerate(x.shape) if i != dim % n), x.shape[dim])
    count, rows = math.prod(shape), math.prod(shape[:-1])
    return then(
        opened(count, WORD),
        opened(rows, WORD),
        softmax_rows(shape, 16, 52, 1.0),
        beside(_row_inverse(rows, shape[-1]), opened(count, WORD - EXP_FRAC)),
        opened(count, WORD - EXP_FRAC),
    )


def attention(
    backend: Any, q: Any, k: Any, v: Any, dropout: float = 0.0, causal: bool = False, *, attn_mask: Any = None, scale: float | None = None
) -> Cost:
    """attention: openings beside the mean key, rows of scores, reciprocal beside the product with v, normalisation."""
    keep, _ = public_mask(q.shape[-2], k.shape[-2], causal, attn_mask)
    mean_rows = 1 if keep is None or keep.dim() < 2 else keep.shape[-2]
    mean_size = math.prod(q.shape[:-2]) * mean_rows * k.shape[-1]
    factor = scale if scale is not None else 1.0 / math.sqrt(q.shape[-1])
    batch = q.shape[:-2]
    rows, length = math.prod(batch) * q.shape[-2], k.shape[-2]
    size_q, size_k, size_v = (math.prod((*batch, *t.shape[-2:])) for t in (q, k, v))  # grouped heads are repeated first
    out = rows * v.shape[-1]
    ring = WORD - (backend.frac - SCORE_FRAC)
    scores = then(
        beside(opened(size_q, ring), opened(size_k, ring), opened(mean_size, WORD)),
        softmax_rows((*batch, q.shape[-2], length), 2 * SCORE_FRAC, ring, factor),
    )
    weights = beside(opened(rows * length, WORD - EXP_FRAC), opened(size_v, WORD))
    mixed = then(weights, opened(out, WORD - EXP_FRAC))
    return then(beside(scores, opened(size_v, WORD)), beside(mixed, _row_inverse(rows, length)), opened(out, WORD))


def layer_norm(backend: Any, x: Any, shape: Any, weight: Any = None, *_rest: Any) -> Cost:
    """layer_norm: values and row sums, inverse deviation beside the weighted numerator, lift. Of a public x only the gain is shared."""
    if not isinstance(x, Shares):
        return FREE
    size = math.prod(shape)
    n, rows = _n(x), _n(x) // size if size else 0
    bits = math.ceil(math.log2(size))
    frac = min(18, (62 - 15 - 2 * bits) // 2)
    deviation = then(power(rows, 2 * frac, 2 * bits - 16, 30), opened(rows, WORD))
    weighted = then(opened(_n(weight), WORD), opened(n, WORD)) if isinstance(weight, Shares) else FREE
    return then(beside(opened(n, WORD), opened(rows, WORD)), beside(deviation, weighted), opened(n, WORD))
