"""The abstract state (asset x party -> forms, plus facts) and the transitions that move it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import ClassVar

from privtensors.policy.assets import IMPLICATIONS
from privtensors.policy.facts import Fact, Local, Reduced, residual
from privtensors.policy.forms import Form, Plaintext, close, union
from privtensors.policy.phases import Phase


@dataclass(frozen=True)
class Sighting:
    """``party`` comes to hold ``asset`` in ``form``.

    Attributes:
        technique: Who caused it; empty for what a party held from the start.
        transition: The transition's name; "owner" at the start.
        under: The assumption on which this holds; empty means the technique's own assumptions.
        revealed: True for a reveal to the receiver.
    """

    asset: str
    party: str
    form: Form
    technique: str = ""
    transition: str = "owner"
    under: str = ""
    revealed: bool = False


@dataclass(frozen=True)
class State:
    """What every party holds and what has been established. Immutable; it only grows."""

    sightings: frozenset[Sighting] = frozenset()
    facts: frozenset[Fact] = frozenset()

    def view(self, party: str) -> dict[str, frozenset[Form]]:
        """Forms by asset that ``party`` was given, as given."""
        return union({s.asset: frozenset({s.form})} for s in self.sightings if s.party == party)

    def joined(self, parties: Iterable[str]) -> dict[str, frozenset[Form]]:
        """Forms by asset that ``parties`` hold together, with every join rule applied. Every asset is a key."""
        everything: dict[str, frozenset[Form]] = {asset: frozenset() for asset in self.assets()}
        return close(union([everything, *(self.view(p) for p in parties)]), IMPLICATIONS)

    def assets(self) -> frozenset[str]:
        """Every asset that somebody holds in some form."""
        return frozenset(s.asset for s in self.sightings)

    def residual(self, asset: str) -> Form:
        """The form in which ``asset`` comes out if it is opened now."""
        return residual(self.facts, asset)


class Need(ABC):
    """Something a transition cannot start without.

    A need is monotone (once met, it stays met) unless ``negative``; negative needs are judged on the state at the
    start of the phase. Both rules together keep the outcome independent of the order of techniques.
    """

    negative: ClassVar[bool] = False

    @abstractmethod
    def met(self, state: State) -> bool:
        """Whether ``state`` satisfies the need."""

    @abstractmethod
    def __str__(self) -> str:
        """The need in words, e.g. "outputs must be Shared (scheme='mpc')"."""


@dataclass(frozen=True)
class Has(Need):
    """A fact of class ``kind`` about ``asset``, whose fields equal those in ``where``."""

    kind: type[Fact]
    asset: str
    where: tuple[tuple[str, object], ...] = ()

    def met(self, state: State) -> bool:
        return any(
            isinstance(f, self.kind) and f.asset == self.asset and all(getattr(f, name) == value for name, value in self.where)
            for f in state.facts
        )

    def __str__(self) -> str:
        detail = ", ".join(f"{name}={value!s}" for name, value in self.where)
        return f"{self.asset} must be {self.kind.__name__}" + (f" ({detail})" if detail else "")


@dataclass(frozen=True)
class Lacks(Need):
    """No fact of class ``kind`` about ``asset`` when the phase starts."""

    negative: ClassVar[bool] = True
    kind: type[Fact]
    asset: str

    def met(self, state: State) -> bool:
        return not Has(self.kind, self.asset).met(state)

    def __str__(self) -> str:
        return f"{self.asset} must not be {self.kind.__name__}"


@dataclass(frozen=True)
class Holds(Need):
    """``party`` holds ``asset`` in a form of class ``kind``."""

    asset: str
    party: str
    kind: type[Form]

    def met(self, state: State) -> bool:
        return any(isinstance(f, self.kind) for f in state.view(self.party).get(self.asset, frozenset()))

    def __str__(self) -> str:
        return f"{self.party} must hold {self.asset} as {self.kind.__name__}"


@dataclass(frozen=True)
class AnyOf(Need):
    """At least one of ``needs``, all of them monotone."""

    needs: tuple[Need, ...]

    def met(self, state: State) -> bool:
        return any(need.met(state) for need in self.needs)

    def __str__(self) -> str:
        return " or ".join(str(need) for need in self.needs)


class Give(ABC):
    """Something a transition adds to the state."""

    @abstractmethod
    def add(self, state: State, start: State, technique: str, transition: str) -> State:
        """``state`` with this added. ``start`` is the state when the phase started; forms that depend on facts read it."""


@dataclass(frozen=True)
class Establishes(Give):
    """The fact ``fact``."""

    fact: Fact

    def add(self, state: State, start: State, technique: str, transition: str) -> State:
        return replace(state, facts=state.facts | {self.fact})


@dataclass(frozen=True)
class Sees(Give):
    """``party`` gets ``asset`` in ``form``; a share or ciphertext of a noised value is a share of *noised*, not of plaintext.

    ``under`` states the assumption where it is another than the technique's.
    """

    asset: str
    party: str
    form: Form
    under: str = ""

    def add(self, state: State, start: State, technique: str, transition: str) -> State:
        left = start.residual(self.asset)
        form = self.form if left == Plaintext() else self.form.over(left)
        return replace(state, sightings=state.sightings | {Sighting(self.asset, self.party, form, technique, transition, self.under)})


@dataclass(frozen=True)
class Opens(Give):
    """``asset`` is revealed to ``party``, in the form that the other facts leave, with one ledger row per ``per``."""

    asset: str
    party: str
    per: str = "forward"

    def add(self, state: State, start: State, technique: str, transition: str) -> State:
        seen = Sighting(self.asset, self.party, start.residual(self.asset), technique, transition, f"one ledger row per {self.per}", True)
        return replace(state, sightings=state.sightings | {seen})


@dataclass(frozen=True)
class Transition:
    """One step of a technique.

    Attributes:
        name: What it does, e.g. "share the inputs".
        phase: When it runs.
        needs: What it cannot start without.
        gives: What it adds.
        reason: Why it cannot start without its needs, in words a user understands.
        fix: What to do about it.
        optional: Whether the technique goes on without it when a need is not met (alternatives); False refuses the policy.
    """

    name: str
    phase: Phase
    needs: tuple[Need, ...] = ()
    gives: tuple[Give, ...] = field(default=())
    reason: str = ""
    fix: str = ""
    optional: bool = False

    def unmet(self, state: State, start: State) -> tuple[Need, ...]:
        """Needs that do not hold: negative ones at the ``start`` of the phase, the others now."""
        return tuple(need for need in self.needs if not need.met(start if need.negative else state))

    def apply(self, state: State, start: State, technique: str) -> State:
        """``state`` after this transition."""
        for give in self.gives:
            state = give.add(state, start, technique, self.name)
        return state

    def parties(self) -> frozenset[str]:
        """Parties that this transition gives something to."""
        return frozenset(g.party for g in self.gives if isinstance(g, Sees | Opens))


def reduction(asset: str, needs: tuple[Need, ...]) -> Transition:
    """The step after which only the index of the largest entry of each row of ``asset`` is opened."""
    return Transition(
        f"reduce the {asset} to the index of the largest",
        Phase.COMPUTE,
        needs=needs,
        gives=(Establishes(Reduced(asset)),),
        reason="only what was computed can be reduced",
    )


def initial(places: Iterable[tuple[str, str]], facts: frozenset[Fact]) -> State:
    """The state in which ``places`` ((asset, owner) pairs) are held in plain, with ``facts`` from earlier stages."""
    pairs = frozenset(places)
    owned = frozenset(Sighting(asset, party, Plaintext()) for asset, party in pairs)
    return State(owned, facts | {Local(asset, party) for asset, party in pairs})
