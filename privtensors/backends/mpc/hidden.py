"""Values that only the dealer knows: expressions over the masks it draws. A computing party holds the expression, never a value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from torch import Tensor

from privtensors.errors import ProtocolError

Make = Callable[..., Tensor]


class Hidden:
    """A node: a mask, or ``make`` applied to other nodes. In one process a node also holds its value once that is needed.

    Nodes compare by identity, so that a dealer can keep one session's values apart from another's.
    """

    __slots__ = ("__weakref__", "_value", "make", "parents")

    def __init__(self, make: Make | None = None, parents: tuple[Hidden, ...] = (), value: Tensor | None = None) -> None:
        self.make, self.parents, self._value = make, parents, value

    def __repr__(self) -> str:
        return "Hidden()"

    def value(self) -> Tensor:
        """The value, where this process deals.

        Raises:
            ProtocolError: This process is a computing party, or traces without values.
        """
        if self._value is None:
            if self.make is None:
                raise ProtocolError("only the dealer knows the value of a mask", where="mpc", fix="report this: a protocol asked for it")
            self._value = self.make(*(parent.value() for parent in self.parents))
            self.make, self.parents = None, ()  # lets go of what it was made from
        return self._value


# What every mask is at a computing party.
UNKNOWN: Final = Hidden()


def derive(make: Make, *parents: Hidden) -> Hidden:
    """The node of ``make(*values of parents)``. ``make`` must be a pure function of them and of public constants."""
    return UNKNOWN if any(parent is UNKNOWN for parent in parents) else Hidden(make, parents)


def itself(value: Tensor) -> Tensor:
    """For sharing a node as it is."""
    return value


def view_of(node: Hidden, view: Callable[[Tensor, int], Tensor]) -> Hidden:
    """The node of a reshaped or sliced value; ``view`` takes the tensor and its number of leading axes."""
    return derive(lambda value: view(value, 0), node)
