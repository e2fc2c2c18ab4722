"""The kernel table: one generic runner, and per row its operands, cost and error.

The session works out the result's shape and dtype on ``meta`` tensors first, so a wrong shape is refused before a party hears of
it; then both parties run the row (``worker/rows.py``), and the rounds and bytes that CrypTen counted go to the meter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor

from privtensors.core.kernel import Kernel, KernelTable, exact, free, kernel_table
from privtensors.errors import InvalidInput, OutOfRange, TransportError, UnsupportedOp
from privtensors_crypten import bounds, costs
from privtensors_crypten.payload import Held
from privtensors_crypten.worker.local import LOCAL

PUBLIC_LIMIT: Final = 2.0**20
_a: Final = torch.ops.aten
_HIDDEN: Final = ("memory_format", "dtype", "layout", "device", "pin_memory", "non_blocking")
_INDICES: Final = frozenset({"index", "index_select", "gather"})
_MASK: Final[Mapping[str, int]] = MappingProxyType({"where": 0, "masked_fill": 1})


def _shape_of_pool(x: Tensor, *args: Any) -> Tensor:
    found: Tensor = _a.max_pool2d_with_indices.default(x, *args)[0]
    return found


# How the result's geometry is worked out where the row's name is no function of torch with the row's arguments.
_GEOMETRY: Final[Mapping[str, Callable[..., Tensor]]] = MappingProxyType(
    {
        "pow": lambda x, n: torch.pow(x, n),
        "mean": lambda x, *dim, **dtype: torch.mean(x, *dim, **dtype),
        "rsub": lambda x, y, alpha=1: torch.rsub(x, y, alpha=alpha),
        "max_pool2d": _shape_of_pool,
        "clamp": lambda x, low=None, high=None: torch.clamp(x, low, high),
        "convolution": _a.convolution.default,
        "avg_pool2d": _a.avg_pool2d.default,
        "adaptive_avg_pool2d": _a._adaptive_avg_pool2d.default,
        "softmax": lambda x, dim: x.sum(dim, True).expand(x.shape),  # torch.softmax on meta accepts any axis
        "silu": _a.silu.default,
        "amax": lambda x, dims=(), keep=False: torch.amax(x, dims, keep),
        "constant_pad_nd": _a.constant_pad_nd.default,
    }
)


def _shapes_of(row: str, args: list[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Tensors of the result's shapes and dtypes, without values; public indices are checked against the operand's sides.

    Raises:
        InvalidInput: The operands do not fit together.
    """
    function = LOCAL.get(row) or _GEOMETRY.get(row) or getattr(torch, row)
    try:
        out = function(*(_stand_in(a, "cpu" if row in _INDICES else "meta") for a in args), **kwargs)
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        message = str(error).split("\n", 1)[0]
    else:
        return list(out) if isinstance(out, (tuple, list)) else [out]
    raise InvalidInput(message, where=f"crypten {row}", fix="check the operands' shapes and dtypes")


def _stand_in(a: Any, device: str) -> Any:
    if isinstance(a, Held):
        return torch.zeros((), dtype=a.dtype, device=device).expand(a.shape)
    if isinstance(a, list):
        return [_stand_in(b, device) for b in a]
    return a.to(device) if isinstance(a, Tensor) else a


def _run(row: str, backend: Any, args: list[Any], kwargs: Mapping[str, Any], dtype: torch.dtype | None = None) -> list[Held]:
    """Let both parties run ``row``; ``dtype`` overrides the result's."""
    shapes = _shapes_of(row, args, kwargs)
    for found in shapes:
        if not (found.dtype.is_floating_point or found.dtype is torch.bool):
            raise UnsupportedOp(
                f"{row} would give {found.dtype}", where="backend 'crypten'", fix="it holds floating-point values and truth values"
            )
    if row not in LOCAL:
        _refuse_truth_values(row, args, shapes[0])
    tensors: dict[str, Tensor] = {}
    header = {
        "verb": "run",
        "row": row,
        "args": [_text(row, a, tensors) for a in args],
        "kwargs": {key: _number(row, value) for key, value in kwargs.items()},
    }
    results = [backend.hold(tuple(found.shape), dtype or found.dtype) for found in shapes]
    reply = backend.workers.request({**header, "out": [r.number for r in results]}, [tensors, tensors])
    backend.meter.rounds += reply.rounds
    backend.meter.bytes_sent += reply.bytes
    backend.meter.dealer_bytes += reply.dealer_bytes
    if any(h.get("shapes") != [list(r.shape) for r in results] for h in reply.headers):
        backend.close()
        raise TransportError(f"{row}: a party's result has another shape", where="backend 'crypten'", fix="report it; start a new session")
    return results


def _refuse_truth_values(row: str, args: list[Any], result: Tensor) -> None:
    if row == "mul" and result.dtype.is_floating_point:
        return
    for i, a in enumerate(args):
        if isinstance(a, Held) and a.dtype is torch.bool and i != _MASK.get(row):
            raise UnsupportedOp(f"{row} of protected truth values", where="backend 'crypten'", fix="call .float() on them first")


def _text(row: str, a: Any, tensors: dict[str, Tensor]) -> Any:
    """``a`` for the request's header; public tensors go into ``tensors``."""
    if isinstance(a, Held):
        return {"held": a.number}
    if isinstance(a, (list, tuple)):
        return [_text(row, b, tensors) for b in a]
    if isinstance(a, Tensor):
        name = f"public{len(tensors)}"
        tensors[name] = a if row in _INDICES or (a.dtype is torch.bool and row in _MASK) else _public(row, a)
        return {"tensor": name}
    return _number(row, a)


def _number(row: str, a: Any) -> Any:
    if isinstance(a, float) and not (math.isfinite(a) and abs(a) < PUBLIC_LIMIT):
        raise OutOfRange(f"the public number {a:.4g} is not below 2^20", where=f"crypten {row}", fix="use a moderate number, e.g. -1e4")
    return a


def _public(row: str, a: Tensor) -> Tensor:
    wide = a.detach().to(torch.float64)
    if wide.numel() and not float(wide.abs().max()) < PUBLIC_LIMIT:  # NaN too
        raise OutOfRange("a public operand is not finite or not below 2^20", where=f"crypten {row}", fix="scale or clean it")
    return wide


# --- the kernels -------------------------------------------------------------------------------------------------------------


def _plain(row: str) -> Callable[..., Any]:
    def run(backend: Any, *args: Any, **kwargs: Any) -> Any:
        kept = {key: value for key, value in kwargs.items() if key not in _HIDDEN}
        out = _run(row, backend, list(args), kept)
        return tuple(out) if row in ("split", "unbind") else out[0]

    return run


def _sum(backend: Any, x: Held, *dim: Any, dtype: torch.dtype | None = None) -> Held:
    if dtype not in (None, x.dtype):
        raise UnsupportedOp(f"sum with dtype {dtype}", where="backend 'crypten'", fix="convert the result")
    return _run("sum", backend, [x, *dim], {})[0]


def _index(backend: Any, x: Held, indices: list[Any]) -> Held:
    _shapes_of("index", [x, indices], {})  # a mask of another length would pass as positions
    whole: list[Any] = []
    for i in indices:  # a public mask becomes the positions it selects, so that the result's shape is known
        if isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8):
            whole.extend(i.bool().nonzero(as_tuple=True))
        else:
            whole.append(i)
    return _run("index", backend, [x, whole], {})[0]


def _to_copy(backend: Any, x: Held, *, dtype: torch.dtype | None = None, **_public: Any) -> Held:
    target = dtype or x.dtype
    if not (target.is_floating_point or target is x.dtype):
        raise UnsupportedOp(f"conversion of {x.dtype} to {target}", where="backend 'crypten'", fix="compare with a number instead")
    return _run("clone", backend, [x], {}, dtype=target)[0]


def _constant(backend: Any, x: Held, value: Tensor) -> Held:
    """A public ``value`` in the shape and dtype of ``x``, held by the parties."""
    shares = (value * (1 if x.dtype is torch.bool else 1 << 16)).round().to(torch.int64).expand(x.shape).contiguous()
    found = backend._load((shares, torch.zeros_like(shares)), 1 if x.dtype is torch.bool else 1 << 16, x.dtype)
    assert isinstance(found, Held)
    return found


def _zero(backend: Any, x: Held) -> Held:
    return _constant(backend, x, torch.zeros((), dtype=torch.float64))


def _copy(backend: Any, x: Held, source: Any, _non_blocking: bool = False) -> Held:
    if isinstance(source, Tensor):
        _shapes_of("expand", [source, x.shape], {})
        return _constant(backend, x, _public("copy", source))
    if (source.dtype is torch.bool) != (x.dtype is torch.bool):
        raise UnsupportedOp(f"copy_ of {source.dtype} into {x.dtype}", where="backend 'crypten'", fix="convert the source first")
    spread = _run("expand", backend, [source, list(x.shape)], {}, dtype=x.dtype)[0]
    return _run("clone", backend, [spread], {}, dtype=x.dtype)[0]


def _filled(value: int) -> Callable[..., Tensor]:
    def run(_backend: Any, x: Held, *, dtype: torch.dtype | None = None, **_public: Any) -> Tensor:
        return torch.full(x.shape, value, dtype=dtype or x.dtype)

    return run


def _pow(backend: Any, x: Held, exponent: float) -> Held:
    if exponent not in (2, 3):
        raise UnsupportedOp(
            f"pow with exponent {exponent}", where="backend 'crypten'", fix="CrypTen's pow is right for 2 and 3 only: its pow(x, 5) is x^6"
        )
    return _run("pow", backend, [x, int(exponent)], {})[0]


def _div(backend: Any, x: Any, y: Any) -> Held:
    zero = bool((y == 0).any()) if isinstance(y, Tensor) else y == 0 if not isinstance(y, Held) else False
    if zero:
        raise InvalidInput("a public divisor is zero", where="crypten div", fix="divide by something else")
    return _run("div", backend, [x, y], {})[0]


def _mean(backend: Any, x: Held, *dim: Any, dtype: torch.dtype | None = None) -> Held:
    if not math.prod(x.shape):
        raise InvalidInput("mean of no elements", where="crypten mean", fix="check the shape")
    return _run("mean", backend, [x, *_all_axes(x, dim)], {})[0]


def _all_axes(x: Held, dim: tuple[Any, ...]) -> tuple[Any, ...]:
    if dim and not dim[0]:  # None and [] mean every axis
        return (list(range(len(x.shape))), *dim[1:])
    return dim


def _softmax(backend: Any, x: Held, dim: int, half_to_float: bool = False, *, dtype: torch.dtype | None = None) -> Held:
    if half_to_float or dtype not in (None, x.dtype):
        raise UnsupportedOp(f"softmax with dtype {dtype}", where="backend 'crypten'", fix="convert the result")
    return _run("softmax", backend, [x, dim], {})[0]


def _convolution(backend: Any, *args: Any) -> Held:
    x, transposed = args[0], args[6]
    if transposed or len(x.shape) != 4:
        raise UnsupportedOp("this convolution", where="backend 'crypten'", fix="it has two-dimensional ones of a batch, not transposed")
    return _run("convolution", backend, list(args), {})[0]


def _pool_limits(row: str, x: Held, ceil_mode: bool, usual: bool) -> None:
    if ceil_mode or not usual or len(x.shape) != 4:
        raise UnsupportedOp(f"this {row}", where="backend 'crypten'", fix="use a batch of images, ceil_mode=False and no dilation")


def _avg_pool2d(
    backend: Any, x: Held, kernel: Any, stride: Any = (), padding: Any = 0, ceil: bool = False, include: bool = True, divisor: Any = None
) -> Held:
    _pool_limits("avg_pool2d", x, ceil, include and divisor is None)
    return _run("avg_pool2d", backend, [x, list(kernel), list(stride), padding], {})[0]


def _adaptive_avg_pool2d(backend: Any, x: Held, size: Any) -> Held:
    if list(size) != [1, 1]:
        raise UnsupportedOp(f"adaptive_avg_pool2d to {list(size)}", where="backend 'crypten'", fix="only the mean of each channel, [1, 1]")
    return _run("adaptive_avg_pool2d", backend, [x, [1, 1]], {})[0]


def _max_pool2d(
    backend: Any, x: Held, kernel: Any, stride: Any = (), padding: Any = (0, 0), dilation: Any = (1, 1), ceil: bool = False
) -> tuple[Held, None]:
    _pool_limits("max_pool2d", x, ceil, all(d == 1 for d in ([dilation] if isinstance(dilation, int) else dilation)))
    both = [padding, padding] if isinstance(padding, int) else list(padding)
    return _run("max_pool2d", backend, [x, list(kernel), list(stride), both], {})[0], None  # indices would show where the maximum is


def _amax(backend: Any, x: Held, dims: Any = (), keep: bool = False) -> Held:
    return _run("amax", backend, [x, list(dims), keep], {})[0]


_OWN: Final[Mapping[str, Callable[..., Any]]] = MappingProxyType(
    {
        "sum": _sum,
        "index": _index,
        "to_copy": _to_copy,
        "zero": _zero,
        "copy": _copy,
        "zeros_like": _filled(0),
        "ones_like": _filled(1),
        "pow": _pow,
        "div": _div,
        "mean": _mean,
        "softmax": _softmax,
        "convolution": _convolution,
        "avg_pool2d": _avg_pool2d,
        "adaptive_avg_pool2d": _adaptive_avg_pool2d,
        "max_pool2d": _max_pool2d,
        "amax": _amax,
    }
)
_UNARY: Final = ("Y",)
_PAIR: Final = ("Y", "YY", "YP", "PY")  # "Y" alone: with a number
_TRIPLE: Final = tuple("".join(m) for m in product("YP", repeat=3) if "Y" in m)
_ONE_OF_TWO: Final = ("YY", "YP", "PY")

# Row: kinds of operands, cost, error. The rows of LOCAL that are not named here are unary, free and exact.
_ROWS: Final[Mapping[str, tuple[tuple[str, ...], Any, Any]]] = MappingProxyType(
    {
        "to_copy": (_UNARY, free, exact),
        "cat": (("Y", "PY"), free, bounds.EXACT),
        "stack": (("Y", "PY"), free, bounds.EXACT),
        "index": (("YP",), free, exact),
        "index_select": (("YP",), free, exact),
        "gather": (("YP",), free, exact),
        "zeros_like": (_UNARY, free, exact),
        "ones_like": (_UNARY, free, exact),
        "zero": (_UNARY, free, exact),
        "copy": (("YY", "YP"), free, bounds.EXACT),
        "constant_pad_nd": (_UNARY, free, bounds.EXACT),
        "masked_fill": (_ONE_OF_TWO, costs.masked_fill, bounds.EXACT),
        "where": ((*_TRIPLE, *_ONE_OF_TWO), costs.where, bounds.EXACT),
        "add": (_PAIR, free, bounds.add),
        "sub": (_PAIR, free, bounds.add),
        "rsub": (_PAIR, free, bounds.rsub),
        "mul": (_PAIR, costs.mul, bounds.mul),
        "div": (_PAIR, costs.div, bounds.div),
        "pow": (_UNARY, costs.power, bounds.power),
        "addcmul": (_TRIPLE, costs.addcmul, bounds.addcmul),
        "mean": (_UNARY, free, bounds.MEAN),
        "mm": (_ONE_OF_TWO, costs.matmul, bounds.mm),
        "bmm": (_ONE_OF_TWO, costs.matmul, bounds.mm),
        "mv": (_ONE_OF_TWO, costs.matmul, bounds.mm),
        "dot": (_ONE_OF_TWO, costs.matmul, bounds.mm),
        "addmm": (_TRIPLE, costs.addmm, bounds.addmm),
        "baddbmm": (_TRIPLE, costs.addmm, bounds.addmm),
        "convolution": ((*_ONE_OF_TWO, *(m for m in _TRIPLE if m != "PPY")), costs.convolution, bounds.convolution),
        "avg_pool2d": (_UNARY, free, bounds.MEAN),
        "adaptive_avg_pool2d": (_UNARY, free, bounds.MEAN),
        "gt": (_PAIR, costs.compare, exact),
        "ge": (_PAIR, costs.compare, exact),
        "lt": (_PAIR, costs.compare, exact),
        "le": (_PAIR, costs.compare, exact),
        "maximum": (_ONE_OF_TWO, costs.maximum, bounds.EXACT),
        "minimum": (_ONE_OF_TWO, costs.maximum, bounds.EXACT),
        "amax": (_UNARY, costs.amax, exact),
        "max_pool2d": (_UNARY, costs.max_pool2d, exact),
        "abs": (_UNARY, costs.ABS, exact),
        "relu": (_UNARY, costs.RELU, exact),
        "clamp": (_UNARY, costs.clamp, bounds.clamp),
        "exp": (_UNARY, costs.EXP, bounds.fixed(bounds.EXP)),
        "tanh": (_UNARY, costs.SIGMOID, bounds.fixed(bounds.TANH)),
        "sigmoid": (_UNARY, costs.SIGMOID, bounds.fixed(bounds.SIGMOID)),
        "silu": (_UNARY, costs.SILU, bounds.fixed(bounds.SILU)),
        "sqrt": (_UNARY, costs.SQRT, bounds.fixed(bounds.SQRT)),
        "rsqrt": (_UNARY, costs.RSQRT, bounds.fixed(bounds.RSQRT)),
        "reciprocal": (_UNARY, costs.RECIPROCAL, bounds.fixed(bounds.RECIPROCAL)),
        "softmax": (_UNARY, costs.softmax, bounds.fixed(bounds.SOFTMAX)),
    }
)


def _kernels() -> Iterator[Kernel]:
    rows = {**dict.fromkeys(LOCAL, (_UNARY, free, exact)), **_ROWS}
    for row, (kinds, cost, error) in rows.items():
        for mix in kinds:
            yield Kernel(row, mix, _OWN.get(row) or _plain(row), cost, error)


KERNELS: Final[KernelTable] = kernel_table(_kernels())
