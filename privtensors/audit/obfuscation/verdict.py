"""Which attacker a scheme stops, from what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from privtensors.audit.obfuscation.attack import Attacker

STOPPED_BELOW: Final = 0.05
BROKEN_FROM: Final = 0.5


@dataclass(frozen=True)
class Row:
    """One attack on one scheme.

    Attributes:
        scheme: Its name.
        noise: On the embedding, in standard deviations.
        attacker: Who.
        attack: The attack's name.
        volume: Tokens that were read (reader) or known (informed); None for a server, which needs none.
        tokens: Share of the token ids told right: of a sample of the vocabulary (server), of the ids that occurred (others).
        running: The same weighted by frequency in real text.
        seconds: Wall time.
    """

    scheme: str
    noise: float
    attacker: Attacker
    attack: str
    volume: int | None
    tokens: float
    running: float
    seconds: float


class Outcome(Enum):
    """What the best attack of an attacker achieved, by the running share: below 5 %, below half, or more."""

    STOPS = "stops"
    SLOWS = "slows"
    FAILS = "does not stop"

    @classmethod
    def of(cls, share: float) -> Outcome:
        """Of a share of the running tokens, 0 to 1."""
        return cls.STOPS if share < STOPPED_BELOW else cls.SLOWS if share < BROKEN_FROM else cls.FAILS


@dataclass(frozen=True)
class Verdict:
    """What one scheme does to one attacker at one volume.

    Attributes:
        scheme: Its name.
        noise: On the embedding.
        attacker: Who.
        volume: As in the row.
        best: The attack that read most.
        running: What it read of running text.
        tokens: And of the token ids.
        outcome: What that means.
    """

    scheme: str
    noise: float
    attacker: Attacker
    volume: int | None
    best: str
    running: float
    tokens: float
    outcome: Outcome


def verdicts(rows: Iterable[Row]) -> tuple[Verdict, ...]:
    """One per scheme, noise, attacker and volume: the best attack decides."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.scheme, row.noise, row.attacker, row.volume), []).append(row)
    found = []
    for (scheme, noise, attacker, volume), members in groups.items():
        best = max(members, key=lambda row: (row.running, row.tokens))
        found.append(Verdict(scheme, noise, attacker, volume, best.attack, best.running, best.tokens, Outcome.of(best.running)))
    return tuple(found)


def statements(found: Sequence[Verdict]) -> tuple[str, ...]:
    """In plain words: for each attacker, one sentence for the schemes and noises with which it fares alike."""
    said: dict[tuple[Attacker, tuple[Any, ...]], list[tuple[str, float]]] = {}
    for attacker in Attacker:
        own = [one for one in found if one.attacker is attacker]
        for scheme, noise in dict.fromkeys((one.scheme, one.noise) for one in own):
            members = [one for one in own if (one.scheme, one.noise) == (scheme, noise)]
            members.sort(key=lambda one: one.volume or 0)
            said.setdefault((attacker, tuple(_told(one) for one in members)), []).append((scheme, noise))
    return tuple(f"{_named(schemes)} | {attacker.value}: {'; '.join(parts)}" for (attacker, parts), schemes in said.items())


def _told(one: Verdict) -> str:
    verb = "read" if one.attacker is Attacker.READER else "known"
    where = "" if one.volume is None else f" at {one.volume:,} tokens {verb}"
    by = f" by {one.best}" if one.running >= STOPPED_BELOW else ""
    return f"{one.outcome.value}{where} ({one.running:.0%} of running text{by})"


def _named(schemes: Sequence[tuple[str, float]]) -> str:
    noises: dict[str, list[float]] = {}
    for scheme, noise in schemes:
        noises.setdefault(scheme, []).append(noise)
    return "; ".join(name + (f", noise {', '.join(f'{one:g}' for one in each)}" if any(each) else "") for name, each in noises.items())
