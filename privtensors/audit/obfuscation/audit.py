"""The audit of obfuscated models: every attack on every scheme, the contest, the cost, and what follows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

import torch

from privtensors.audit.obfuscation.attack import Attack, Attacker, Signature, States, Tables, View
from privtensors.audit.obfuscation.climbing import HillClimbing
from privtensors.audit.obfuscation.contest import Play, RandomGuess, brute_force_digits, play
from privtensors.audit.obfuscation.decipher import Decipherment, FrequencyRank
from privtensors.audit.obfuscation.known import KnownPlaintext
from privtensors.audit.obfuscation.material import Material
from privtensors.audit.obfuscation.rows import ColumnMatching, RowMatching, UnitMatching
from privtensors.audit.obfuscation.scoring import Probe
from privtensors.audit.obfuscation.seeds import IdsAsTheyAre, SeedEnumeration, likely_seeds
from privtensors.audit.obfuscation.spectral import Spectral
from privtensors.audit.obfuscation.states import NormProfile, StateMatching, remembered, states_of
from privtensors.audit.obfuscation.targets import Target
from privtensors.audit.obfuscation.utility import Classifier, Utility
from privtensors.audit.obfuscation.verdict import Row, Verdict, statements, verdicts
from privtensors.errors import InvalidInput

CONTROL: Final = "control: "
"""How the names of schemes begin that are made to check the audit itself."""

_VICTIM_TEXT: Final = 2_000
_LATER: Final = 10_000
_FOUND: Final = 0.99
_NOTHING: Final = 0.01
_BY_CHANCE: Final = 6  # one of a small sample is right by chance, seven are in a run out of 10,000


@dataclass(frozen=True)
class ObfuscationOptions:
    """How hard to look.

    Attributes:
        tokens: Sample of the vocabulary that the attacks on weights are asked for.
        volumes: Tokens that a reader sees, or knows in plain.
        seeds: Of the published shuffle to try, likeliest first.
        common: Most frequent ids that decipherment works on.
        layers: ``hidden_states`` that are matched.
        state_tokens: Sample for these.

    Raises:
        InvalidInput: A number is not positive, or there is no volume or layer.
    """

    tokens: int = 1_000
    volumes: tuple[int, ...] = (300, 1_000, 10_000, 100_000)
    seeds: int = 400
    common: int = 400
    layers: tuple[int, ...] = (1, 3, 6)
    state_tokens: int = 500

    def __post_init__(self) -> None:
        numbers = (self.tokens, *self.volumes, self.seeds, self.common, self.state_tokens)
        if min(numbers) < 1 or not self.volumes or min(self.layers, default=-1) < 0:
            raise InvalidInput("numbers must be positive, with at least one volume and layer", where="audit obfuscation", fix="Check them")


@dataclass(frozen=True)
class ObfuscationAudit:
    """What the audit found.

    Attributes:
        rows: Every attack.
        plays: The contest, of the first scheme.
        brute_force_digits: log10 of the mappings that a brute force of the contest would try.
        utility: By scheme and noise.
        found: The verdicts.
        faults: Controls that did not come out as they must; with any, nothing above can be believed.
    """

    rows: tuple[Row, ...]
    plays: tuple[Play, ...]
    brute_force_digits: float
    utility: dict[tuple[str, float], Utility] = field(default_factory=dict)
    found: tuple[Verdict, ...] = ()
    faults: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the controls came out as they must."""
        return not self.faults

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        rows = [{**asdict(row), "attacker": row.attacker.name.lower()} for row in self.rows]
        found = [{**asdict(one), "attacker": one.attacker.name.lower(), "outcome": one.outcome.name.lower()} for one in self.found]
        utility = [{"scheme": scheme, "noise": noise, **asdict(one)} for (scheme, noise), one in self.utility.items()]
        return {
            "rows": rows,
            "contest": {"plays": [asdict(one) for one in self.plays], "brute_force_digits": self.brute_force_digits},
            "utility": utility,
            "verdicts": found,
            "statements": list(statements(self.found)),
            "faults": list(self.faults),
        }


Advance = Callable[[str], None]


def attack_weights(target: Target, public: Tables, material: Material, options: ObfuscationOptions, words: Sequence[int]) -> list[Row]:
    """What a server learns from the embedding and the tables beside it."""
    attacks: list[Attack] = [RowMatching(kind) for kind in (Signature.ROW, Signature.CENTRED, Signature.DIFFERENCES, Signature.SORTED)]
    attacks += [Spectral(0), Spectral(), ColumnMatching(), UnitMatching()]
    if target.scheme.startswith("sentinel"):
        attacks.append(SeedEnumeration(Attacker.SERVER, tuple(words), likely_seeds(options.seeds)))
    probe = Probe.sampled(target.plain, target.keyed[material.victim[:_VICTIM_TEXT]], options.tokens)
    return _asked(target, attacks, View(public.size, public=public, server=target.tables), probe, None)


def attack_states(target: Target, public: States, size: int, material: Material, options: ObfuscationOptions) -> list[Row]:
    """What a server learns by running the model; nothing where the target has none."""
    if target.model is None:
        return []
    attacks: list[Attack] = []
    for place, layer in enumerate(options.layers):
        attacks += [StateMatching(kind, place, layer) for kind in (Signature.ROW, Signature.SORTED)]
    attacks.append(NormProfile())
    probe = Probe.sampled(target.plain, target.keyed[material.victim[: options.state_tokens]], options.state_tokens)
    view = View(size, public_states=public, server_states=states_of(target.model, options.layers))
    return _asked(target, attacks, view, probe, None)


def attack_streams(target: Target, material: Material, options: ObfuscationOptions, words: Sequence[int]) -> list[Row]:
    """What readers learn, by volume."""
    keyed, size = target.keyed, len(target.plain)
    readers: list[Attack] = [IdsAsTheyAre(), FrequencyRank(), Decipherment(options.common)]
    if target.scheme.startswith("sentinel"):
        readers.append(SeedEnumeration(Attacker.READER, tuple(words), likely_seeds(options.seeds)))
    rows: list[Row] = []
    later = material.corpus[:_LATER]  # sent under the same key, and not known
    for volume in options.volumes:
        sent = material.victim[:volume]
        view = View(size, stream=keyed[sent], corpus=material.corpus)
        rows += _asked(target, readers, view, Probe.of_stream(target.plain, keyed[sent]), volume)
        view = View(size, known=(sent, keyed[sent]))
        rows += _asked(target, [KnownPlaintext()], view, Probe.of_stream(target.plain, keyed[later]), volume)
    return rows


def contest(target: Target, material: Material, options: ObfuscationOptions) -> tuple[tuple[Play, ...], float]:
    """One day of the contest under the target's code, and the digits of what a brute force would try.

    The last two players are no baselines: they have what a host or an old customer has, other requests under the key.
    """
    keyed, size = target.keyed, len(target.plain)
    view = View(size, stream=keyed[material.day], corpus=material.corpus)
    plays = play([RandomGuess(), FrequencyRank(), HillClimbing(), Decipherment(options.common)], view, target.plain)
    known = View(size, stream=view.stream, known=(material.victim, keyed[material.victim]))
    plays += play([KnownPlaintext()], known, target.plain)
    return plays, brute_force_digits(len(torch.unique(material.day)), size)


def audit(
    model: Any,
    public: Tables,
    targets: Iterable[Target],
    material: Material,
    options: ObfuscationOptions,
    *,
    words: Sequence[int],
    classifier: Classifier | None = None,
    advance: Advance = lambda name: None,
) -> ObfuscationAudit:
    """Every attack on every target.

    Args:
        model: The open model.
        public: Its tables.
        targets: Made one after the other, so that only one is in memory. Under those whose scheme begins with :data:`CONTROL` no
            attack on weights may find anything; under "vocabulary" without noise matching of rows must find all.
        material: Text.
        options: How hard to look.
        words: Ids of the tokenizer that are not special, ascending.
        classifier: Measures what schemes cost; None for not.
        advance: Called with the name of what begins.
    """
    rows: list[Row] = []
    utility: dict[tuple[str, float], Utility] = {}
    seen: list[tuple[torch.Tensor, list[Row]]] = []
    plays: tuple[Play, ...] = ()
    digits = math.nan
    states = remembered(states_of(model, options.layers), public.size)
    for target in targets:
        name = target.scheme + (f", noise {target.noise:g}" if target.noise else "")
        advance(f"{name}: weights")
        rows += attack_weights(target, public, material, options, words)
        if target.scheme.startswith(CONTROL):
            continue
        if target.model is not None:
            advance(f"{name}: hidden states")
            rows += attack_states(target, states, public.size, material, options)
        if not any(torch.equal(code, target.plain) for code, _ in seen):  # noise and bases do not change the stream
            advance(f"{name}: id streams")
            seen.append((target.plain, attack_streams(target, material, options, words)))
        if not plays:
            advance(f"{name}: contest")
            plays, digits = contest(target, material, options)
        rows += [_renamed(row, target) for code, found in seen if torch.equal(code, target.plain) for row in found]
        if classifier is not None and target.answers is not None:
            advance(f"{name}: utility")
            utility[target.scheme, target.noise] = classifier.judge(target.answers)
    real = [row for row in rows if not row.scheme.startswith(CONTROL)]
    return ObfuscationAudit(tuple(rows), plays, digits, utility, verdicts(real), _faults(rows, min(options.tokens, public.size)))


def _faults(rows: Iterable[Row], sample: int) -> tuple[str, ...]:
    """The audit's own mistakes: it must find what lies open, and nothing where nothing is."""
    faults = []
    nothing = max(_NOTHING, _BY_CHANCE / sample)
    for row in rows:
        if row.scheme == "vocabulary" and not row.noise and row.attack == Signature.ROW.value and row.tokens < _FOUND:
            faults.append(f"rows in another order are told apart in {row.tokens:.1%} only")
        if row.scheme.startswith(CONTROL) and row.tokens > nothing:
            faults.append(f"{row.attack} tells {row.tokens:.1%} of weights that have nothing to do with the model")
    return tuple(faults)


def _asked(target: Target, attacks: Iterable[Attack], view: View, probe: Probe, volume: int | None) -> list[Row]:
    rows = []
    for attack in attacks:
        start = time.perf_counter()
        found = probe.score(attack.recover(view, probe.ids))
        seconds = time.perf_counter() - start
        rows.append(Row(target.scheme, target.noise, attack.attacker, attack.name, volume, found.tokens, found.running, seconds))
    return rows


def _renamed(row: Row, target: Target) -> Row:
    return replace(row, scheme=target.scheme, noise=target.noise)
