"""Facts: what has been done to an asset. Transitions need facts and give facts.

Facts only ever accumulate within a stage, so the order in which techniques were listed cannot matter. A plugin adds
a fact by deriving from :class:`Fact`. Obfuscated is a class of its own: it can never satisfy a need for Noised,
Shared or Encrypted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from privtensors.policy.forms import Aggregate, Form, LargestIndex, NoisedValue, ObfuscatedValue, Plaintext


@dataclass(frozen=True)
class Fact:
    """Something established about ``asset``.

    Class attributes:
        persists: Whether the fact still holds in later stages of life (noise does, shares do not).
    """

    persists: ClassVar[bool] = False
    asset: str

    def residual(self) -> Form | None:
        """The form in which the asset comes out when it is opened, or None where this fact leaves it as it is."""
        return None


@dataclass(frozen=True)
class Local(Fact):
    """``party`` holds the asset in plain, from the start."""

    party: str


@dataclass(frozen=True)
class Sampled(Fact):
    """Poisson sampling at ``rate``; amplification counts only against the parties in ``hidden_from``."""

    rate: float
    hidden_from: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Bounded(Fact):
    """Each ``unit`` contributes at most ``norm`` in L2, measured after rounding where ``after_rounding``."""

    norm: float
    unit: str
    after_rounding: bool = False


@dataclass(frozen=True)
class Noised(Fact):
    """(``epsilon``, ``delta``) per ``unit`` under ``relation`` for ``observer``, with up to ``colluders`` removing theirs."""

    persists: ClassVar[bool] = True
    epsilon: float
    delta: float
    unit: str
    relation: str
    observer: str
    colluders: int = 0

    def residual(self) -> Form | None:
        return NoisedValue(self.epsilon, self.delta, self.unit, self.observer)


@dataclass(frozen=True)
class Shared(Fact):
    """Secret-shared under ``scheme``; ``threshold`` shares open it."""

    scheme: str
    threshold: int = 2


@dataclass(frozen=True)
class Encrypted(Fact):
    """Encrypted under ``scheme``; ``key_holder`` can decrypt."""

    scheme: str
    key_holder: str


@dataclass(frozen=True)
class Aggregated(Fact):
    """Summed or averaged over ``n`` clients; with ``weights`` other than uniform, central noise has no fixed sensitivity."""

    n: int
    weights: Literal["uniform", "weighted"] = "uniform"

    def residual(self) -> Form | None:
        return Aggregate(self.n)


@dataclass(frozen=True)
class Reduced(Fact):
    """Of each row only the index of the largest entry is opened; the entries stay as protected as they are."""

    def residual(self) -> Form | None:
        return LargestIndex()


@dataclass(frozen=True)
class Obfuscated(Fact):
    """Transformed with a key that ``key_holder`` keeps; ``key`` names it. Heuristic."""

    persists: ClassVar[bool] = True
    key_holder: str
    key: str

    def residual(self) -> Form | None:
        return ObfuscatedValue(self.key)


def residual(facts: frozenset[Fact], asset: str) -> Form:
    """The form in which ``asset`` comes out when opened, given ``facts``: the least exposed one, plaintext where none."""
    left = [form for fact in facts if fact.asset == asset and (form := fact.residual()) is not None]
    return min(left, key=lambda f: (f.exposure, str(f)), default=Plaintext())
