"""Routes an ATen call on SafeTensors to a kernel. Closed: no kernel, no answer; never a fallback to plaintext."""

from __future__ import annotations

import time
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch

from privtensors.core.backend import Backend
from privtensors.core.kernel import Kernel, exact
from privtensors.core.optable import ROUTES, Route
from privtensors.core.registry import backend_class, backend_names
from privtensors.core.safetensor import SafeTensor, State
from privtensors.errors import MixedBackends, PlaintextLeak, RegistryError, RoutingError, UnsupportedOp

_WRITES_TO_PLAIN: Final = frozenset({"copy_", "set_", "resize_as_"})
_READS_VALUE: Final = frozenset({"_local_scalar_dense", "equal", "is_nonzero"})
_NUMBERS: Final = (float, int, bool)
_clock: Final = time.perf_counter


class Call(NamedTuple):
    """An ATen call, resolved: what :func:`route` is about to run.

    Attributes:
        route: How the overload is treated.
        kernel: The backend's kernel; None for an alias (detach), which core does itself.
        state: State of the first protected operand.
        args: Positional arguments with each SafeTensor replaced by its payload.
    """

    route: Route
    kernel: Kernel | None
    state: State
    args: list[Any]


def resolve(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Find the kernel for an ATen call on SafeTensors, without running it.

    Raises:
        UnsupportedOp: The op table has no row for ``func``, or the backend no kernel for these kinds of operands.
        MixedBackends: Operands of two backends.
        PlaintextLeak: ``func`` would write a protected value into a plain tensor.
        StaleView: An operand is a view whose base was changed in place.
    """
    row: Route | None = ROUTES.get(func)
    first: State | None = None
    kinds = ""
    plain: list[Any] = []
    for a in args:
        kind_of = type(a)
        if kind_of is SafeTensor:
            state = a._state
            if first is None:
                first = state
            elif state.backend is not first.backend:
                raise _mixed(func, first.backend, state.backend)
            payload = state.payload if state.base is None and not state.stale else state.current()
            kinds += payload.kind
            plain.append(payload)
        elif isinstance(a, Tensor):
            kinds += "P"
            plain.append(a)
        elif (kind_of is list or kind_of is tuple) and any(isinstance(b, Tensor) for b in a):
            inner: list[Any] = []
            letters = set()
            for b in a:
                if isinstance(b, SafeTensor):
                    if first is None:
                        first = b._state
                    elif b._state.backend is not first.backend:
                        raise _mixed(func, first.backend, b._state.backend)
                    payload = b._state.current()
                    letters.add(payload.kind)
                    inner.append(payload)
                else:
                    letters.add("P")
                    inner.append(b)
            kinds += "".join(sorted(letters))
            plain.append(inner)
        else:
            plain.append(a)
    if kwargs:
        _check_keywords(func, kwargs, row)
    if first is None:
        raise RoutingError(f"{func} was routed without a SafeTensor", where="dispatch", fix="pass the SafeTensor as a positional argument")
    backend = first.backend
    if row is None:
        raise _unrouted(func, backend)
    if row.alias:
        return Call(row, None, first, plain)
    if type(args[0]) in _NUMBERS:  # torch.add(2, x): a number in a tensor's place counts as a public tensor
        plain[0] = torch.tensor(args[0])
        kinds = "P" + kinds
    if len(args) < len(row.fill):  # torch drops trailing defaults, which differ between the overloads of one row
        plain.extend(row.fill[len(args) :])
    if (row.inplace or row.reshapes) and not isinstance(args[0], SafeTensor):
        raise PlaintextLeak(
            f"{func} would write a protected value into a plain tensor",
            where="dispatch",
            fix="call privtensors.reveal, or protect the target",
        )
    kernel = backend.kernels.get((row.op, kinds))
    if kernel is None:
        raise _no_kernel(row.op, kinds, func, backend)
    return Call(row, kernel, first, plain)


def route(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run ``func`` on the backend of its SafeTensor operands. Raises as :func:`resolve`, and what the kernel raises."""
    row, kernel, first, plain = resolve(func, args, kwargs)
    if kernel is None:
        first.current()
        return SafeTensor(first)
    backend = first.backend
    meter = backend.meter
    start = _clock()
    device = getattr(backend, "device", None)
    if device is not None:
        plain, kwargs = _moved(plain, device), dict(zip(kwargs, _moved(list(kwargs.values()), device), strict=True))
        with device:
            out = kernel.run(backend, *plain, **kwargs)
    else:
        out = kernel.run(backend, *plain, **kwargs) if kwargs else kernel.run(backend, *plain)
    meter.busy_seconds += _clock() - start
    meter.ops[row.op] += 1
    if kernel.error is not exact:
        error = kernel.error(backend, *plain, **kwargs)
        if error > meter.error:
            meter.error = error
    if row.inplace:
        return _write(func, args[0], out)
    if row.reshapes:
        return _reshape(func, args, out, first)
    if row.view:
        return _wrap(out, row, backend, first.owner, first.base or first)
    return _wrap(out, row, backend, first.owner, None)


def _moved(values: list[Any], device: torch.device) -> list[Any]:
    """Public operands on the device that the backend computes on."""
    return [
        v.to(device) if isinstance(v, Tensor) else _moved(v, device) if type(v) is list and any(isinstance(b, Tensor) for b in v) else v
        for v in values
    ]


def _wrap(out: Any, row: Route, backend: Backend, owner: str, base: State | None) -> Any:
    if out is None:
        return None
    if type(out) is tuple or type(out) is list:
        return type(out)(_wrap(o, row, backend, owner, base) for o in out)
    if isinstance(out, Tensor):
        if row.public or out.numel() == 0:  # carries no value, e.g. zeros_like
            return out.cpu()
        raise PlaintextLeak(
            f"the kernel returned a plain tensor of shape {tuple(out.shape)}",
            where=f"{row.op} of backend {backend.name!r}",
            fix="report it to the backend's author",
        )
    return SafeTensor(State(out, backend, owner, base))


def _write(func: Any, target: SafeTensor, out: Any) -> SafeTensor:
    if tuple(out.shape) != tuple(target.shape) or out.dtype != target.dtype:
        raise UnsupportedOp(
            f"{func} would change {tuple(target.shape)} {target.dtype} to {tuple(out.shape)} {out.dtype}",
            where="dispatch",
            fix="write out of place: y = x + z",
        )
    target._state.replace(out)
    return target


def _reshape(func: Any, args: tuple[Any, ...], out: Any, state: State) -> SafeTensor:
    """The first operand as a view of what it was: whoever else holds that keeps its shape."""
    target: SafeTensor = args[0]
    with no_dispatch():  # on the wrapper, which has a shape and no content
        func(*args)
    target._state = State(out, state.backend, state.owner, state.base or state)
    return target


def _check_keywords(func: Any, kwargs: dict[str, Any], row: Route | None) -> None:
    for key, value in kwargs.items():
        if isinstance(value, SafeTensor):
            raise UnsupportedOp(
                f"{func} takes a SafeTensor as keyword {key!r}", where="dispatch", fix="out= and protected keyword arguments are not routed"
            )
        if key == "device" and row is not None and value is not None and value.type != "cpu":
            fix = "drop .to(device): Session(device=…) says where a backend computes"
            raise UnsupportedOp(f"{func} would move a SafeTensor to {value}", where="dispatch", fix=fix)


def _mixed(func: Any, a: Backend, b: Backend) -> MixedBackends:
    where = f"{func}"
    if a.name == b.name:
        return MixedBackends(
            f"operands of two {a.name!r} backends (other parameters or another session)",
            where=where,
            fix="protect both in one session with one technique",
        )
    return MixedBackends(
        f"operands of backends {a.name!r} and {b.name!r}", where=where, fix=f"convert one first: privtensors.convert(x, {a.name!r})"
    )


def _unrouted(func: Any, backend: Backend) -> Exception:
    name = str(func).split(".")[1] if "." in str(func) else str(func)
    where = f"SafeTensor of backend {backend.name!r}"
    if name in _WRITES_TO_PLAIN or str(func).endswith(("out", "_out")):
        return PlaintextLeak(f"{func} could write a protected value into a plain tensor", where=where, fix="call privtensors.reveal first")
    if name in _READS_VALUE:
        return PlaintextLeak(f"{func} would take the value out of protection", where=where, fix="call privtensors.reveal(x, to=…)")
    return UnsupportedOp(
        f"the op table has no row for {func}",
        where=f"backend {backend.name!r}",
        fix="see `privtensors backends` for what is supported; reveal first, or rewrite",
    )


def _has(name: str, op: str) -> bool:
    try:
        return any(key[0] == op for key in backend_class(name).kernels)
    except RegistryError:  # a broken plugin must not hide the message that is being written
        return False


def _no_kernel(op: str, kinds: str, func: Any, backend: Backend) -> UnsupportedOp:
    others = [name for name in backend_names() if name != backend.name and _has(name, op)]
    have = (
        f"backends with {op}: {', '.join(others)}; move there with privtensors.convert"
        if others
        else f"no other installed backend has {op}"
    )
    same = sorted(key[1] for key in backend.kernels if key[0] == op)
    if same:
        have = f"it has {op} for operand kinds {', '.join(same)} (P = public); {have}"
    return UnsupportedOp(f"no kernel {op}({kinds}) for {func}", where=f"backend {backend.name!r}", fix=have)
