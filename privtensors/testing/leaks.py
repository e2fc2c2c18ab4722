"""Ways out of a SafeTensor other than ``reveal``, and a check that a text shows no protected value."""

from __future__ import annotations

import copy
import io
import json
import operator
import pickle
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.reduction import ForkingPickler
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

# Exact in binary at 6 fractional bits and inside every backend's range; no shape, version or address reads like it.
MARK: Final = 73.515625


def marked(*shape: int) -> Tensor:
    """A float32 tensor of the given shape filled with :data:`MARK`."""
    return torch.full(shape, MARK)


def shows_mark(text: str) -> bool:
    """True when ``text`` shows :data:`MARK`, rounded to four digits or better."""
    return any(sign in text for sign in ("73.51", "73.52", "7.35e", "7.351", "7.352"))


def holds_mark(data: bytes) -> bool:
    """True when ``data`` holds :data:`MARK` as float32 or float64, little or big endian, or as text."""
    forms = [np.array(MARK, dtype=code).tobytes() for code in ("<f4", ">f4", "<f8", ">f8")]
    return any(form in data for form in forms) or shows_mark(data.decode("latin-1"))


def traceback_text(error: BaseException) -> str:
    """The traceback with every local variable of every frame, as debuggers and crash reporters print it."""
    lines = [str(error), repr(error)]
    for frame, _line in traceback.walk_tb(error.__traceback__):
        for name, value in frame.f_locals.items():
            try:
                lines.append(f"{name} = {value!r}")
            except Exception as broken:  # an object that was still being made
                lines.append(f"{name}: {type(broken).__name__}")
    chained = error.__cause__ or error.__context__
    return "\n".join(lines) + (traceback_text(chained) if chained is not None else "")


def _into(write: Callable[[Any, Any], object]) -> Callable[[Any], object]:
    """A way out that writes into a plain tensor of the same shape."""
    return lambda x: write(torch.zeros(x.shape), x)


def _set_data(x: Tensor) -> None:
    x.data = torch.zeros(x.shape)


# Each is called with a protected float32 vector of two elements and must raise a PrivTensorsError.
WAYS_OUT: Final[Mapping[str, Callable[[Any], object]]] = MappingProxyType(
    {
        "item": lambda x: x[0].item(),
        "bool()": lambda x: bool(x[0]),
        "if": lambda x: 1 if x[0] > 0 else 0,
        "while": lambda x: next(iter(()), None) if x[0] else None,
        "float()": lambda x: float(x[0]),
        "int()": lambda x: int(x[0]),
        "complex()": lambda x: complex(x[0]),
        "round()": lambda x: round(float(x[0])),
        "operator.index": lambda x: operator.index(x[0]),
        "range": lambda x: range(x[0]),
        "%d": lambda x: "%d" % x[0],  # noqa: UP031
        "bytes()": lambda x: bytes(x[0]),
        "numpy": lambda x: x.numpy(),
        "cpu().numpy": lambda x: x.detach().cpu().numpy(),
        "numpy(force)": lambda x: x.numpy(force=True),
        "numpy.asarray": np.asarray,
        "numpy.array of a list": lambda x: np.array([x]),
        "numpy ufunc": np.exp,
        "tolist": lambda x: x.tolist(),
        "iterate, then item": lambda x: [v.item() for v in x],
        "max(): compares": lambda x: max(x),
        "sorted()": lambda x: sorted(x),
        "in": lambda x: 1.0 in x,
        "list.index": lambda x: [x].index(torch.zeros(2)),
        "==, then bool": lambda x: bool((x == x).all()),
        "torch.equal": lambda x: torch.equal(x, x),
        "torch.equal, plain first": lambda x: torch.equal(torch.zeros(x.shape), x),
        "torch.allclose": lambda x: torch.allclose(x, x),
        "torch.is_nonzero": lambda x: torch.is_nonzero(x[0]),
        "torch.nonzero": torch.nonzero,
        "masked_select": lambda x: torch.masked_select(x, x > 0),
        "boolean index": lambda x: x[x > 0],
        "plain indexed by protected": lambda x: torch.arange(100.0)[x.long()],
        "plain sliced by protected": lambda x: torch.arange(100.0)[: x[0]],
        "torch.unique": torch.unique,
        "torch.bincount": lambda x: torch.bincount(x.long()),
        "torch.tensor of a list": lambda x: torch.tensor([x[0], x[1]]),
        "as_tensor().numpy": lambda x: torch.as_tensor(x).numpy(),
        "new_tensor of a list": lambda x: torch.zeros(1).new_tensor([x[0]]),
        "torch.asarray, numpy": lambda x: torch.asarray(x).numpy(),
        "deepcopy": copy.deepcopy,
        "deepcopy of a module": lambda x: copy.deepcopy(torch.nn.ParameterList([torch.nn.Parameter(x, requires_grad=False)])),
        "copy": copy.copy,
        "pickle": pickle.dumps,
        "pickle protocol 0": lambda x: pickle.dumps(x, protocol=0),
        "pickle of vars": lambda x: pickle.dumps({"vars": vars(x), "x": x}),
        "ForkingPickler": lambda x: ForkingPickler.dumps(x),
        "torch.multiprocessing reduction": lambda x: torch.multiprocessing.reductions.reduce_tensor(x),  # type: ignore[no-untyped-call]
        "torch.save": lambda x: torch.save(x, io.BytesIO()),
        "torch.save of a state dict": lambda x: torch.save(
            torch.nn.ParameterList([torch.nn.Parameter(x, requires_grad=False)]).state_dict(), io.BytesIO()
        ),
        "safetensors": lambda x: safetensors.torch.save({"x": x}),
        "json": lambda x: json.dumps([x], default=lambda v: v.tolist()),
        "json of an item": lambda x: json.dumps({"x": x}, default=float),
        "plain.copy_": _into(lambda p, x: p.copy_(x)),
        "plain[:] =": _into(lambda p, x: operator.setitem(p, slice(None), x)),
        "plain[0] =": _into(lambda p, x: operator.setitem(p, 0, x[0])),
        "plain.add_": _into(lambda p, x: p.add_(x)),
        "plain +=": _into(operator.iadd),
        "plain.set_": _into(lambda p, x: p.set_(x)),
        "plain.index_copy_": _into(lambda p, x: p.index_copy_(0, torch.tensor([0, 1]), x)),
        "plain.masked_scatter_": _into(lambda p, x: p.masked_scatter_(p == 0, x)),
        "plain.resize_as_ and copy": _into(lambda p, x: p.resize_as_(x).copy_(x)),
        "plain.fill_": _into(lambda p, x: p.fill_(x[0])),
        "out=": _into(lambda p, x: torch.add(x, 0.0, out=p)),
        "out= mm": lambda x: torch.mm(x.view(1, 2), torch.eye(2), out=torch.zeros(1, 2)),
        "__dlpack__": lambda x: x.__dlpack__(),
        "__dlpack_device__": lambda x: x.__dlpack_device__(),
        "torch.from_dlpack": lambda x: torch.utils.dlpack.from_dlpack(x),
        "numpy.from_dlpack": lambda x: np.from_dlpack(x),
        "data_ptr": lambda x: x.data_ptr(),
        "untyped_storage": lambda x: x.untyped_storage(),
        "storage": lambda x: x.storage(),
        "share_memory_": lambda x: x.share_memory_(),
        "is_shared": lambda x: x.is_shared(),
        "apply_": lambda x: x.apply_(lambda v: v),
        "map_": lambda x: x.map_(x, lambda a, b: a),
        "as_subclass": lambda x: x.as_subclass(Tensor),
        "x.data =": _set_data,
        "to another device": lambda x: x.to("meta"),
        "quantize": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
        "sparse": lambda x: x.to_sparse(),
        "view as bytes": lambda x: x.view(torch.uint8),
    }
)

# Each gives a text (or bytes) that must not show the value.
TEXTS: Final[Mapping[str, Callable[[Any], str]]] = MappingProxyType(
    {
        "repr": repr,
        "str": str,
        "format": lambda x: f"{x} {x!r} {x!s} {x:.3f} {x[0]:8.2e}",
        "%s": lambda x: "%s %r" % (x, x),  # noqa: UP031
        "str.format": lambda x: "{} {0.owner}".replace("{} ", "").format(x),
        "list": lambda x: str([x, {"x": x}]),
        "vars": lambda x: str(vars(x)),
        "state": lambda x: str([x.backend_name, getattr(x, "_state", None)]),
        "payload": lambda x: str(getattr(x, "_state").payload),  # noqa: B009
        "backend": lambda x: str(vars(getattr(x, "_state").backend)),  # noqa: B009
        "parameter": lambda x: str(torch.nn.ParameterList([torch.nn.Parameter(x, requires_grad=False)])),
        "set_printoptions": lambda x: _printed(x),
        "grad": lambda x: str(x.detach().requires_grad_()),
    }
)


def _printed(x: Tensor) -> str:
    before: Any = copy.copy(torch._tensor_str.PRINT_OPTS)
    try:
        torch.set_printoptions(precision=8, profile="full", sci_mode=False)  # type: ignore[no-untyped-call]
        return f"{x} {[x]}"
    finally:
        torch._tensor_str.PRINT_OPTS = before
