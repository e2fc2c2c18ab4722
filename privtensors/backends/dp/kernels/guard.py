"""What every kernel goes through: results that know their tables, shapes checked first, errors that carry no protected value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from privtensors.backends.dp.payload import Aggregate, Rows
from privtensors.backends.dp.source import Source
from privtensors.core.kernel import Kernel
from privtensors.errors import InvalidInput, PrivTensorsError

Run = Callable[..., Any]
Held = Rows | Aggregate


def kernel(op: str, kinds: str, run: Run) -> Kernel:
    """A local kernel: no rounds, no bytes, no error of its own."""
    return Kernel(op, kinds, guarded(op, run))


def guarded(op: str, run: Run) -> Run:
    """``run`` as a kernel calls it: without the backend, with the operands' tables on its results, and errors raised from here.

    The frames below hold opened values. An error keeps its frames, and debuggers and crash reporters print their locals; so
    errors leave those frames behind.
    """

    def call(_backend: Any, *args: Any, **kwargs: Any) -> Any:
        failed: PrivTensorsError
        try:
            out = run(*args, **kwargs)
            sources = frozenset[Source]().union(*(held.sources for held in _held((*args, *kwargs.values()))))
            for held in _held((out,)):
                held.sources = held.sources | sources
            return out
        except PrivTensorsError as error:
            failed = error
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            message = str(error).split("\n", 1)[0]
            failed = InvalidInput(message, where=op, fix="check the operands' shapes and dtypes")
        failed.__cause__ = failed.__context__ = None
        raise failed.with_traceback(None)

    return call


def _held(values: Iterable[Any]) -> Iterator[Held]:
    for value in values:
        if isinstance(value, (Rows, Aggregate)):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _held(value)


def like(reference: Run, *args: Any, **kwargs: Any) -> Any:
    """What ``reference`` gives for operands of these shapes and dtypes: tensors on the meta device, without content.

    Raises:
        RuntimeError: torch's own, where it would refuse them.
    """
    return reference(*(_blank(a) for a in args), **kwargs)


def _blank(a: Any) -> Any:
    if isinstance(a, (Rows, Aggregate)):
        return torch.empty(a.shape, dtype=a.dtype, device="meta")
    if isinstance(a, Tensor):
        return a.to("meta")
    return [_blank(b) for b in a] if isinstance(a, list) else a


def opened(a: Any) -> Any:
    """The float64 value of an operand; numbers and other arguments as they are."""
    if isinstance(a, (Rows, Aggregate)):
        return a.value
    return a.to(torch.float64) if isinstance(a, Tensor) else a
