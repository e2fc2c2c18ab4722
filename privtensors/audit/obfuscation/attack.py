"""What an attacker of an obfuscated model holds, and what an attack is: from that to a plain id for each keyed one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from privtensors.errors import InvalidInput

NO_GUESS: Final = -1
States = Callable[[Tensor], tuple[Tensor, ...]]
"""From ids (n,) to the hidden states of each as a text of one token: per layer float32 (n, width)."""


class Attacker(Enum):
    """Who attacks."""

    READER = "reader of traffic or logs, without the weights"
    INFORMED = "reader who also knows some of the texts"
    SERVER = "server that holds the weights and the open model"


class Signature(Enum):
    """What is compared of two rows of an embedding."""

    ROW = "row"
    DIRECTION = "direction"
    CENTRED = "row-centred"
    DIFFERENCES = "neighbour differences"
    SORTED = "sorted row"

    def of(self, rows: Tensor) -> Tensor:
        """float32 (n, width), or (n, width - 1) for differences, of rows (n, width)."""
        if self is Signature.DIRECTION:
            return torch.nn.functional.normalize(rows)
        if self is Signature.CENTRED:
            return rows - rows.mean(1, keepdim=True)
        if self is Signature.DIFFERENCES:
            return rows.diff(dim=1)
        return rows.sort(1).values if self is Signature.SORTED else rows


@dataclass(frozen=True, eq=False, repr=False)
class Tables:
    """The parameters of one model that attacks compare.

    Attributes:
        words: Token embedding, float32 (size, width).
        units: Parameters with one column per hidden unit that move with these alone, float32 (m, width): position table, gains.
            None where the model has none, or they are not known.

    Raises:
        InvalidInput: Not two-dimensional, of different widths, or not finite.
    """

    words: Tensor
    units: Tensor | None = None
    _known: dict[Signature, Tensor] = field(default_factory=dict, init=False)
    _turned: dict[Signature, Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for name, one in (("words", self.words), ("units", self.units)):
            if one is None:
                continue
            if one.ndim != 2 or one.shape[1] != self.words.shape[1] or not one.dtype.is_floating_point:
                what = f"{name} is {one.dtype} of shape {tuple(one.shape)}"
                raise InvalidInput(what, where="Tables", fix="Give floating tables of shape (rows, width), of one width")
            if not bool(torch.isfinite(one).all()):
                raise InvalidInput(f"{name} is not finite", where="Tables", fix="Give the weights of a working model")
            object.__setattr__(self, name, one.detach().float().cpu())

    @property
    def size(self) -> int:
        """How many token ids there are."""
        return int(self.words.shape[0])

    def signature(self, kind: Signature) -> Tensor:
        """Of all rows; computed once."""
        if kind not in self._known:
            self._known[kind] = kind.of(self.words)
        return self._known[kind]

    def in_own_axes(self, kind: Signature) -> Tensor:
        """All rows, by a signature, in their principal axes, each turned so that its third moment is positive: float32; computed once."""
        if kind not in self._turned:
            rows = self.signature(kind)
            moved = rows - rows.mean(0)
            axes = torch.linalg.eigh((moved.T @ moved).double()).eigenvectors.float()
            turned = moved @ axes
            self._turned[kind] = turned * turned.pow(3).sum(0).sign()
        return self._turned[kind]


@dataclass(frozen=True, eq=False, repr=False)
class View:
    """What an attacker holds; None is what it does not.

    Attributes:
        size: How many token ids there are.
        public: Tables of the open model.
        server: Tables of the obfuscated one.
        public_states: Hidden states of the open model.
        server_states: Hidden states of the obfuscated one.
        stream: Keyed ids that were sent, in order, int64 (n,).
        corpus: Plain ids of other text of the same kind, int64 (m,).
        known: Plain and keyed ids of texts that the attacker knows, int64 (k,) each.
    """

    size: int
    public: Tables | None = None
    server: Tables | None = None
    public_states: States | None = None
    server_states: States | None = None
    stream: Tensor | None = None
    corpus: Tensor | None = None
    known: tuple[Tensor, Tensor] | None = None


class Attack(Protocol):
    """A way from a view to plain ids."""

    @property
    def name(self) -> str:
        """As in the tables."""
        ...

    @property
    def attacker(self) -> Attacker:
        """Whose attack it is."""
        ...

    def recover(self, view: View, ids: Tensor) -> Tensor:
        """The plain id guessed for each keyed one: int64 (n,), -1 for no guess.

        Raises:
            InvalidInput: The view lacks what the attack needs.
        """
        ...


def held(view: View, name: str, attack: str) -> Any:
    """An attribute of a view. Raises InvalidInput where the attacker does not hold it."""
    found = getattr(view, name)
    if found is None:
        raise InvalidInput(f"the attack needs {name}, which the view lacks", where=attack, fix="Give a view of the right attacker")
    return found
