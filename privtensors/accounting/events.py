"""What a differentially private release was, as data: the noise, the sampling, how often, of whom and by which relation.

An event says enough to compute any privacy curve later, so the ledger holds events and never an ε alone. Noise is
relative: a noise multiplier is the noise's parameter (standard deviation for Gaussian, scale b for Laplace) over the
sensitivity (L2, L1) of the released value under the neighbouring relation.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from privtensors.accounting.entry import JsonValue
from privtensors.errors import InvalidInput, MissingExtra

if TYPE_CHECKING:
    from types import ModuleType

MAX_COUNT = 10**12
"""Most repetitions of one event; far above any run, and small enough that sums of counts stay exact in floating point."""

_MAX_DEPTH = 8
_MAX_NAME = 200


class Relation(enum.Enum):
    """Which data sets are neighbours.

    ``ZERO_OUT`` replaces one unit's contribution by zero (Kairouz et al. 2021, definition 1.1; dp-accounting's
    REPLACE_SPECIAL) and is the default for tensors and training alike. ``ADD_REMOVE`` adds or removes one unit.
    A sensitivity holds under one relation only, so releases under different relations never share an account.
    """

    ZERO_OUT = "zero_out"
    ADD_REMOVE = "add_remove"


@dataclass(frozen=True, slots=True)
class Gaussian:
    """One release with Gaussian noise; its standard deviation over the L2 sensitivity. Raises InvalidInput unless finite and positive."""

    noise_multiplier: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_multiplier", _positive(self.noise_multiplier, "noise_multiplier"))


@dataclass(frozen=True, slots=True)
class Laplace:
    """One release with Laplace noise; its scale b over the L1 sensitivity. Raises InvalidInput unless finite and positive."""

    noise_multiplier: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_multiplier", _positive(self.noise_multiplier, "noise_multiplier"))


@dataclass(frozen=True, slots=True)
class SampledGaussian:
    """Steps of DP-SGD (Abadi et al. 2016): Gaussian noise on a Poisson sample.

    Args:
        noise_multiplier: Standard deviation over the clipping norm.
        sampling_rate: Probability with which each unit is in a step, independently of everything else: in (0, 1].
            Shuffled or fixed-size batches are not this event.
        steps: Number of steps, at least 1; an empty sample counts as a step.

    Raises:
        InvalidInput: A value is out of range.
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_multiplier", _positive(self.noise_multiplier, "noise_multiplier"))
        rate = _positive(self.sampling_rate, "sampling_rate")
        if rate > 1:
            raise InvalidInput(f"sampling_rate is {rate}", where="privacy event", fix="Give a probability in (0, 1]")
        object.__setattr__(self, "sampling_rate", rate)
        _count(self.steps, "steps")


@dataclass(frozen=True, slots=True)
class ZeroConcentrated:
    """A release that is rho-zCDP (Bun and Steinke 2016), e.g. discrete Gaussian noise (Canonne et al. 2020)."""

    rho: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "rho", _positive(self.rho, "rho"))


@dataclass(frozen=True, slots=True)
class Composed:
    """Several events on the same data, the whole ``count`` times. Raises InvalidInput when empty or nested too deep."""

    events: tuple[Event, ...]
    count: int = 1

    def __post_init__(self) -> None:
        events = tuple(self.events)
        if not events or not all(isinstance(event, (*_PRIMITIVES, Composed)) for event in events):
            raise InvalidInput("a composition holds no event, or something else", where="privacy event", fix="Give at least one event")
        object.__setattr__(self, "events", events)
        _count(self.count, "count")
        if _depth(self) > _MAX_DEPTH:
            raise InvalidInput(f"compositions nested deeper than {_MAX_DEPTH}", where="privacy event", fix="Flatten them")


Primitive: TypeAlias = Gaussian | Laplace | SampledGaussian | ZeroConcentrated
Event: TypeAlias = Primitive | Composed
_PRIMITIVES = (Gaussian, Laplace, SampledGaussian, ZeroConcentrated)
_KINDS = (("gaussian", Gaussian), ("laplace", Laplace), ("sampled_gaussian", SampledGaussian), ("zcdp", ZeroConcentrated))


@dataclass(frozen=True, slots=True)
class Account:
    """Whose privacy is counted: one data set, one unit of privacy, one neighbouring relation.

    Args:
        dataset: The user's name for the data; the same data under two names is counted as two.
        unit: What one neighbour differs in: ``"example"``, ``"user"``, ``"row"``.
        relation: The neighbouring relation of every sensitivity in it.

    Raises:
        InvalidInput: A name is empty, too long, or not printable.
    """

    dataset: str
    unit: str = "example"
    relation: Relation = Relation.ZERO_OUT

    def __post_init__(self) -> None:
        _name(self.dataset, "dataset")
        _name(self.unit, "unit")
        if not isinstance(self.relation, Relation):
            raise InvalidInput("not a neighbouring relation", where="account", fix="Give Relation.ZERO_OUT or Relation.ADD_REMOVE")

    def __str__(self) -> str:
        return f"data set {self.dataset!r} per {self.unit}"


@dataclass(frozen=True, slots=True)
class Release:
    """An event on the data of an account, as the ledger holds it.

    Args:
        account: Whose privacy it costs.
        event: What is released.
        technique: Who releases, for the reader: ``"dp_sgd"``, ``"dp_tensor"``.
        fingerprint: Keyed fingerprint of the data as hex, or empty: finds the same data under another name. Several where the
            data is in several tables.
    """

    account: Account
    event: Event
    technique: str = ""
    fingerprint: str | tuple[str, ...] = ""

    def __post_init__(self) -> None:
        if not isinstance(self.account, Account) or not isinstance(self.event, (*_PRIMITIVES, Composed)):
            raise InvalidInput("a release is an event on an account", where="release", fix="Give an Account and an event")
        several = isinstance(self.fingerprint, tuple)
        for value in (*((self.technique,) if self.technique else ()), *(self.fingerprint if several else self.fingerprints)):
            _name(value, "release")
        if several and not 1 < len(set(self.fingerprint)) == len(self.fingerprint):
            raise InvalidInput("its fingerprints are not several different ones", where="release", fix="Give one as text, or each once")

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """Every fingerprint of the data; empty where there is none."""
        return self.fingerprint if isinstance(self.fingerprint, tuple) else (self.fingerprint,) if self.fingerprint else ()


@dataclass(frozen=True, slots=True)
class EventGroups:
    """Equal events counted together: what composition needs, whatever the number of releases.

    Attributes:
        counts: Pairs of an event (of one step where sampled) and how often it happened, in a fixed order.
    """

    counts: tuple[tuple[Primitive, int], ...] = field(default=())

    def __add__(self, other: EventGroups) -> EventGroups:
        return merge((self, other))

    def within(self, other: EventGroups) -> bool:
        """Whether every event happened at most as often as in ``other``."""
        allowed = dict(other.counts)
        return all(count <= allowed.get(event, 0) for event, count in self.counts)


def group(event: Event | Iterable[Event]) -> EventGroups:
    """The events, flattened and counted; a sampled Gaussian with rate 1 is a Gaussian."""
    total: dict[Primitive, int] = {}
    for item in (event,) if isinstance(event, (*_PRIMITIVES, Composed)) else event:
        _collect(item, 1, total)
    return _sorted(total)


def merge(groups: Iterable[EventGroups]) -> EventGroups:
    """All of them together."""
    total: dict[Primitive, int] = {}
    for one in groups:
        for event, count in one.counts:
            total[event] = total.get(event, 0) + count
    return _sorted(total)


def part_of(event: Event, steps: int) -> Event:
    """The first ``steps`` steps of a sampled Gaussian, or rounds of a composition.

    Raises:
        InvalidInput: The event has no steps, or fewer.
    """
    if isinstance(event, SampledGaussian):
        whole: int = event.steps
        part: Event = SampledGaussian(event.noise_multiplier, event.sampling_rate, steps)
    elif isinstance(event, Composed):
        whole, part = event.count, Composed(event.events, steps)
    else:
        raise InvalidInput("it is one release without steps", where="privacy event", fix="All of it happened, or nothing")
    if steps > whole:
        raise InvalidInput(f"it has {whole} steps", where="privacy event", fix="Say at most how many were planned")
    return part


def event_to_json(event: Event) -> dict[str, JsonValue]:
    """The event as the ledger holds it; :func:`event_from_json` reads it back exactly."""
    if isinstance(event, Composed):
        return {"kind": "composed", "count": event.count, "events": [event_to_json(item) for item in event.events]}
    kind = next(name for name, cls in _KINDS if type(event) is cls)
    return {"kind": kind, **{name: getattr(event, name) for name in event.__dataclass_fields__}}


def event_from_json(value: object) -> Event:
    """The event that ``value`` describes.

    Raises:
        InvalidInput: It is none: an unknown kind, a missing or additional field, a value out of range.
    """
    return _parse(value, 0)


def account_to_json(account: Account) -> dict[str, JsonValue]:
    """The account as the ledger holds it."""
    return {"dataset": account.dataset, "unit": account.unit, "relation": account.relation.value}


def account_from_json(value: object) -> Account:
    """The account that ``value`` describes; InvalidInput if it is none."""
    fields = _fields(value, ("dataset", "unit", "relation"), "account")
    try:
        return Account(fields["dataset"], fields["unit"], Relation(fields["relation"]))
    except (ValueError, TypeError) as error:
        raise InvalidInput("an unknown neighbouring relation", where="account", fix="Update privtensors") from error


def release_to_json(release: Release) -> dict[str, JsonValue]:
    """The release as the ledger holds it."""
    event = event_to_json(release.event)
    return {
        "account": account_to_json(release.account),
        "event": event,
        "technique": release.technique,
        "fingerprint": list(release.fingerprint) if isinstance(release.fingerprint, tuple) else release.fingerprint,
    }


def release_from_json(value: object) -> Release:
    """The release that ``value`` describes; InvalidInput if it is none."""
    fields = _fields(value, ("account", "event", "technique", "fingerprint"), "release")
    technique, fingerprint = fields["technique"], fields["fingerprint"]
    if isinstance(fingerprint, list):
        fingerprint = tuple(fingerprint)
    for name, value in (("technique", technique), ("fingerprint", fingerprint)):
        if not isinstance(value, str) and not (isinstance(value, tuple) and name == "fingerprint"):
            raise InvalidInput(f"{name} is no text", where="release", fix="Give text")
    return Release(account_from_json(fields["account"]), event_from_json(fields["event"]), technique, fingerprint)


def to_dp_event(event: Event) -> Any:
    """The ``dp_accounting.DpEvent`` of ``event``. Raises MissingExtra without dp-accounting."""
    dp = dp_accounting()
    if isinstance(event, Composed):
        inner = dp.ComposedDpEvent([to_dp_event(item) for item in event.events])
        return inner if event.count == 1 else dp.SelfComposedDpEvent(inner, event.count)
    if isinstance(event, Gaussian):
        return dp.GaussianDpEvent(event.noise_multiplier)
    if isinstance(event, Laplace):
        return dp.LaplaceDpEvent(event.noise_multiplier)
    if isinstance(event, ZeroConcentrated):
        return dp.ZCDpEvent(event.rho)
    step = dp.PoissonSampledDpEvent(event.sampling_rate, dp.GaussianDpEvent(event.noise_multiplier))
    return step if event.steps == 1 else dp.SelfComposedDpEvent(step, event.steps)


def to_dp_relation(relation: Relation) -> Any:
    """The ``dp_accounting.NeighboringRelation``. Raises MissingExtra without dp-accounting."""
    names = dp_accounting().NeighboringRelation
    return names.REPLACE_SPECIAL if relation is Relation.ZERO_OUT else names.ADD_OR_REMOVE_ONE


def dp_accounting() -> ModuleType:
    """The package, imported when first needed.

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        import dp_accounting as package
    except ImportError as error:
        fix = "Run: pip install privtensors[dp]"
        raise MissingExtra("dp-accounting is not installed", where="privacy accounting", fix=fix) from error
    module: ModuleType = package
    return module


def _collect(event: Event, times: int, total: dict[Primitive, int]) -> None:
    if isinstance(event, Composed):
        for item in event.events:
            _collect(item, times * event.count, total)
        return
    one: Primitive = event
    if isinstance(event, SampledGaussian):
        times *= event.steps
        whole = event.sampling_rate == 1
        one = Gaussian(event.noise_multiplier) if whole else SampledGaussian(event.noise_multiplier, event.sampling_rate)
    total[one] = total.get(one, 0) + times


def _sorted(total: Mapping[Primitive, int]) -> EventGroups:
    # One order for one multiset, so that equal groups compare equal.
    return EventGroups(tuple(sorted(total.items(), key=lambda pair: (type(pair[0]).__name__, repr(pair[0])))))


def _depth(event: Event) -> int:
    return 1 + max(map(_depth, event.events)) if isinstance(event, Composed) else 0


def _parse(value: object, depth: int) -> Event:
    if not isinstance(value, Mapping) or depth > _MAX_DEPTH:
        raise InvalidInput("not an event, or nested too deep", where="privacy event", fix="Write events with privtensors")
    if value.get("kind") == "composed":
        fields = _fields(value, ("kind", "count", "events"), "privacy event")
        if not isinstance(fields["events"], (list, tuple)):
            raise InvalidInput("the composed events are no list", where="privacy event", fix="Write events with privtensors")
        return Composed(tuple(_parse(item, depth + 1) for item in fields["events"]), fields["count"])
    for name, cls in _KINDS:
        if value.get("kind") == name:
            names = tuple(cls.__dataclass_fields__)
            fields = _fields(value, ("kind", *names), "privacy event")
            made: Primitive = cls(*(fields[item] for item in names))
            return made
    raise InvalidInput("an unknown kind of event", where="privacy event", fix="Update privtensors")


def _fields(value: object, names: tuple[str, ...], where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping) or set(value) != set(names):
        raise InvalidInput(f"it does not have exactly the fields {', '.join(names)}", where=where, fix="Write it with privtensors")
    return dict(value)


def _positive(value: object, name: str) -> float:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0
    if not good:
        raise InvalidInput(f"{name} is not a finite number above zero", where="privacy event", fix="A release without noise has no ε")
    number: float = float(value)  # type: ignore[arg-type]
    return number


def _count(value: object, name: str) -> None:
    if type(value) is not int or not 1 <= value <= MAX_COUNT:
        raise InvalidInput(f"{name} is not a whole number from 1 to {MAX_COUNT}", where="privacy event", fix="Give an int of at least 1")


def _name(value: object, name: str) -> None:
    if not (isinstance(value, str) and 0 < len(value) <= _MAX_NAME and value.isprintable() and value == value.strip()):
        raise InvalidInput(f"{name} is no printable text of 1 to {_MAX_NAME} characters", where="account", fix="Give a short name")
