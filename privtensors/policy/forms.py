"""Forms: the ways in which a party can hold an asset, and what forms join to.

A view is a *set* of forms. Every form has a join rule, a pure function of what else the view holds, so that what
colluding parties learn is computed and never looked up. A plugin adds a form by deriving from :class:`Form`;
``join`` is abstract, so a form without a rule cannot exist.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

from privtensors.policy.assets import Implication


@dataclass(frozen=True)
class Form(ABC):
    """One way of holding an asset.

    Class attributes:
        exposure: Rank in reading order, 0 (nothing) to 7 (plaintext).
        readable: Whether the holder can use the value as it is (outputs must reach their receiver in such a form).
    """

    exposure: ClassVar[int]
    readable: ClassVar[bool] = False

    @abstractmethod
    def join(self, held: frozenset[Form], everything: frozenset[Form]) -> frozenset[Form]:
        """Forms of the same asset that follow from this one.

        Args:
            held: Every form of this asset in the (joined) view, this one included.
            everything: Every form of every asset in the view: keys may be held as an asset of their own.
        """

    @abstractmethod
    def __str__(self) -> str:
        """Short text for tables."""

    def over(self, inner: Form) -> Self:
        """This form around ``inner`` in place of plaintext (a share of a noised value). Bare forms return themselves."""
        return self


@dataclass(frozen=True)
class Nothing(Form):
    """The party receives nothing that depends on the asset."""

    exposure: ClassVar[int] = 0

    def join(self, held: frozenset[Form], everything: frozenset[Form]) -> frozenset[Form]:
        return frozenset()

    def __str__(self) -> str:
        return "nothing"


@dataclass(frozen=True)
class SizesAndTiming(Form):
    """Lengths, shapes, message sizes and times only."""

    exposure: ClassVar[int] = 1

    def join(self, held: frozenset[Form], everything: frozenset[Form]) -> frozenset[Form]:
        return frozenset()

    def __str__(self) -> str:
        return "sizes and timing only"


@dataclass(frozen=True)
class Plaintext(Form):
    """The value itself."""

    exposure: ClassVar[int] = 7
    readable: ClassVar[bool] = True

    def join(self, held: frozenset[Form], everything: frozenset[Form]) -> frozenset[Form]:
        return frozenset()

    def __str__(self) -> str:
        return "plaintext"


@dataclass(frozen=True)
class Share(Form):
    """Share ``index`` of ``count`` under ``scheme``; any ``threshold`` distinct shares give ``inner``."""

    exposure: ClassVar[int] = 2
    scheme: str
    index: int
    count: int = 2
    threshold: int = 2
    inner: Form = field(default_factory=Plaintext)

    def join(self, held: frozenset[Form], everything: frozenset[Form]) -> frozenset[Form]:
        return join_shares(self, held)

    def over(self, inner: Form) -> Self:
        return replace(self, inner=inner)

    def __str__(self) -> str:
        return f"share {self.index + 1} of {self.count}{_around(self.inner)}"


@dataclass(frozen=True)
class MaskedValue(Form):
    """The value under a one-time mask of ``scheme``, e.g. an opened x - a."""

    exposure: ClassVar[int] = 2
    scheme: str
    inner: Form = field(default_factory=Plaintext)

    def join(self, held: frozenset[Form], everything: frozenset[Form]) -> frozenset[Form]:
        return frozenset()  # the rule lives with Mask: it is the mask that removes the protection

    def over(self, inner: Form) -> Self:
        return replace(self, inner=inner)

    def __str__(self) -> str:
        return f"masked values{_around(self.inner)}"


@dataclass(frozen=True)
class Mask(Form):
    """The masks themselves (who made them knows them); independent of the value until joined."""

    exposure: ClassVar[int] = 2
    scheme: str

    def join(self, held: frozenset[Form], everything: frozenset[Form]) -> frozenset[Form]:
        return join_mask(self, held)

    def __str__(self) -> str:
        return "masks it made"


@dataclass(frozen=True)
class Ciphertext(Form):
    """Encryption under the key named ``key``."""

    exposure: ClassVar[int] = 3
    scheme: str
    key: str
    inner: Form = field(default_factory=Plaintext)

    def join(self, held: frozenset[Form], everything: frozenset[Form]) -> frozenset[Form]:
        return join_key(self.key, self.inner, everything)

    def over(self, inner: Form) -> Self:
        return replace(self, inner=inner)

    def __str__(self) -> str:
        return f"ciphertext ({self.scheme}){_around(self.inner)}"


@dataclass(frozen=True)
class Key(Form):
    """The secret key named ``key``, of a cipher or of an obfuscation."""

    exposure: ClassVar[int] = 7
    key: str

    def join(self, held: frozenset[Form], everything: frozenset[Form]) -> frozenset[Form]:
        return frozenset()  # the rules live with Ciphertext and ObfuscatedValue

    def __str__(self) -> str:
        return f"key {self.key}"


@dataclass(frozen=True)
class ObfuscatedValue(Form):
    """Transformed with the key named ``key``. Heuristic: it never stands for encryption or noise."""

    exposure: ClassVar[int] = 4
    readable: ClassVar[bool] = True
    key: str
    inner: Form = field(default_factory=Plaintext)

    def join(self, held: frozenset[Form], everything: frozenset[Form]) -> frozenset[Form]:
        return join_key(self.key, self.inner, everything)

    def over(self, inner: Form) -> Self:
        return replace(self, inner=inner)

    def __str__(self) -> str:
        return f"obfuscated{_around(self.inner)}"


@dataclass(frozen=True)
class NoisedValue(Form):
    """Differentially private for ``observer``: (``epsilon``, ``delta``) per ``unit``. Joining forms never removes noise."""

    exposure: ClassVar[int] = 5
    readable: ClassVar[bool] = True
    epsilon: float
    delta: float
    unit: str
    observer: str

    def join(self, held: frozenset[Form], everything: frozenset[Form]) -> frozenset[Form]:
        return frozenset()

    def __str__(self) -> str:
        return f"noised (eps {self.epsilon:g}, delta {self.delta:g}, per {self.unit}, seen by {self.observer})"


@dataclass(frozen=True)
class Aggregate(Form):
    """Sum or mean over ``n`` clients."""

    exposure: ClassVar[int] = 6
    readable: ClassVar[bool] = True
    n: int

    def join(self, held: frozenset[Form], everything: frozenset[Form]) -> frozenset[Form]:
        return join_aggregates(self, held)

    def __str__(self) -> str:
        return "one client's value" if self.n == 1 else f"aggregate of {self.n}"


@dataclass(frozen=True)
class LargestIndex(Form):
    """Of each row only which entry is the largest. Many such answers to chosen inputs still describe the whole function."""

    exposure: ClassVar[int] = 4
    readable: ClassVar[bool] = True

    def join(self, held: frozenset[Form], everything: frozenset[Form]) -> frozenset[Form]:
        return frozenset()

    def __str__(self) -> str:
        return "index of the largest only"


def _around(inner: Form) -> str:
    return "" if inner == Plaintext() else f" of {inner}"


def join_shares(share: Share, held: frozenset[Form]) -> frozenset[Form]:
    """``threshold`` distinct shares of one scheme give what was shared."""
    indices = {f.index for f in held if isinstance(f, Share) and f.scheme == share.scheme}
    return frozenset({share.inner}) if len(indices) >= share.threshold else frozenset()


def join_mask(mask: Mask, held: frozenset[Form]) -> frozenset[Form]:
    """A mask and a value under it give the value; so do a mask and one share (that party saw the masked openings)."""
    return frozenset(f.inner for f in held if isinstance(f, Share | MaskedValue) and f.scheme == mask.scheme)


def join_key(key: str, inner: Form, everything: frozenset[Form]) -> frozenset[Form]:
    """A key and what is locked under it give the value."""
    return frozenset({inner}) if Key(key) in everything else frozenset()


def join_aggregates(aggregate: Aggregate, held: frozenset[Form]) -> frozenset[Form]:
    """Aggregates of n and n - 1 give one client's value, and that is plaintext."""
    if aggregate.n == 1:
        return frozenset({Plaintext()})
    return frozenset({Aggregate(1)}) if Aggregate(aggregate.n - 1) in held else frozenset()


View = Mapping[str, frozenset[Form]]


def close(view: View, implications: Iterable[Implication] = ()) -> dict[str, frozenset[Form]]:
    """Everything that follows from ``view``: the join rules and implications applied until nothing is added."""
    closed = {asset: frozenset(forms) for asset, forms in view.items()}
    rules = tuple(implications)
    while True:
        before = dict(closed)
        everything = frozenset(f for forms in closed.values() for f in forms)
        for asset, forms in before.items():
            closed[asset] = forms.union(*(f.join(forms, everything) for f in forms))
        for rule in rules:
            if Plaintext() in closed.get(rule.known, frozenset()) and rule.learned in closed:
                closed[rule.learned] |= {Plaintext()}
        if closed == before:
            return closed


def union(views: Iterable[View]) -> dict[str, frozenset[Form]]:
    """The forms of several views side by side, not yet joined."""
    merged: dict[str, frozenset[Form]] = {}
    for view in views:
        for asset, forms in view.items():
            merged[asset] = merged.get(asset, frozenset()) | forms
    return merged


def strongest(forms: Iterable[Form]) -> tuple[Form, ...]:
    """Forms in reading order, most exposed first; whoever holds plaintext holds the rest as well, so it stands alone."""
    ordered = tuple(sorted(forms, key=lambda f: (-f.exposure, str(f))))
    keys = tuple(f for f in ordered if isinstance(f, Key))
    if Plaintext() in ordered:
        return (Plaintext(), *keys)
    informative = tuple(f for f in ordered if f.exposure > SizesAndTiming.exposure)
    return informative or ordered[:1] or (Nothing(),)
