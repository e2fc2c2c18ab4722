"""``explain()``: who sees what, in which form, under which assumption; computed from the executed state."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

from privtensors.errors import PolicyError
from privtensors.policy.assets import Party, asset_order, party_order
from privtensors.policy.execution import Outcome
from privtensors.policy.forms import Form, Key, Plaintext, strongest, union
from privtensors.policy.state import Sighting
from privtensors.policy.technique import Guarantee, Technique, parameters

NEVER = "never sent to this party"
Deployment = Literal["simulated", "deployed"]


@dataclass(frozen=True)
class Row:
    """What one party holds of one asset.

    Attributes:
        stage: Stage of life.
        party: The party; for a joined view the colluding parties joined by " + ".
        asset: The asset.
        form: The forms in words, most exposed first; plaintext stands alone.
        guarantee: Guarantee class, or "-" where nothing is protected on purpose (owner, receiver, never sent).
        assumption: What must hold, or why the party holds it in plain.
        forms: Every form, as objects.
    """

    stage: str
    party: str
    asset: str
    form: str
    guarantee: str
    assumption: str
    forms: frozenset[Form] = dataclasses.field(default=frozenset(), compare=False)


@dataclass(frozen=True)
class Reveal:
    """One kind of value that leaves protection: ``asset`` to ``party`` in ``form``, one ledger row per ``per``."""

    stage: str
    asset: str
    party: str
    form: str
    ledger: str


@dataclass(frozen=True)
class Promise:
    """A technique of the policy with its guarantee class and assumptions."""

    stage: str
    technique: str
    parameters: tuple[tuple[str, str], ...]
    guarantee: str
    meaning: str
    assumptions: tuple[str, ...]


@dataclass(frozen=True)
class Collusion:
    """A smallest set of parties that together learn ``assets`` in plain, though none of them holds these alone."""

    stage: str
    parties: tuple[str, ...]
    assets: tuple[str, ...]


@dataclass(frozen=True)
class Explanation:
    """Who sees what under a policy. ``str()`` is a table of at most 100 columns; ``to_dict()`` is for JSON.

    Attributes:
        deployment: "simulated" or "deployed"; the network has a view of its own only when deployed.
        receiver: The party that gets task outputs.
        rows: One per stage, party and asset.
        joined: The view of the colluding parties, where asked for.
        collude: Those parties, in reading order.
        reveals: What leaves protection.
        promises: Guarantee classes and assumptions.
        collusions: Which sets of parties learn more together.
        remarks: Further sentences from the techniques, by stage.
    """

    deployment: Deployment
    receiver: str
    rows: tuple[Row, ...]
    joined: tuple[Row, ...]
    collude: tuple[str, ...]
    reveals: tuple[Reveal, ...]
    promises: tuple[Promise, ...]
    collusions: tuple[Collusion, ...]
    remarks: tuple[tuple[str, str], ...]

    def view(self, party: str, *, stage: str | None = None) -> dict[str, frozenset[Form]]:
        """Forms by asset that ``party`` holds, exactly as given (nothing joined); an empty set where it receives nothing.

        Raises:
            PolicyError: No such party or stage here.
        """
        rows = [r for r in self.rows if r.party == party and stage in (None, r.stage)]
        if not rows:
            known = ", ".join(sorted({r.party for r in self.rows}, key=party_order))
            raise PolicyError(f"no view of {party!r}" + (f" in stage {stage}" if stage else ""), where="explain", fix=f"Parties: {known}")
        return union({r.asset: r.forms} for r in rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists and strings, ready for JSON."""

        def rows(items: Sequence[Row]) -> list[dict[str, str]]:
            return [{f.name: getattr(r, f.name) for f in dataclasses.fields(r) if f.name != "forms"} for r in items]

        return {
            "deployment": self.deployment,
            "simulated": self.deployment == "simulated",
            "receiver": self.receiver,
            "rows": rows(self.rows),
            "collude": list(self.collude),
            "joined": rows(self.joined),
            "reveals": [dataclasses.asdict(r) for r in self.reveals],
            "promises": [
                {**dataclasses.asdict(p), "parameters": dict(p.parameters), "assumptions": list(p.assumptions)} for p in self.promises
            ],
            "collusions": [{"stage": c.stage, "parties": list(c.parties), "assets": list(c.assets)} for c in self.collusions],
            "remarks": [{"stage": stage, "text": text} for stage, text in self.remarks],
        }

    def __str__(self) -> str:
        from privtensors.policy.render import text  # late: render reads this module's classes

        return text(self)


def explain(outcomes: Sequence[Outcome], *, collude: Iterable[str], deployment: Deployment) -> Explanation:
    """Explain executed stages. See ``Policy.explain``.

    Raises:
        PolicyError: ``collude`` names an unknown party, or ``deployment`` is neither "simulated" nor "deployed".
    """
    if deployment not in ("simulated", "deployed"):
        raise PolicyError(f"unknown deployment {deployment!r}", where="explain", fix="Allowed: simulated, deployed")
    if isinstance(collude, str):
        raise PolicyError("collude must be a set of parties, not one string", where="explain", fix=f"Write collude={{{collude!r}}}")
    known = sorted({p for o in outcomes for p in o.parties}, key=party_order)
    colluding = tuple(sorted(set(collude), key=party_order))
    if unknown := [p for p in colluding if p not in known]:
        raise PolicyError(f"unknown party {unknown[0]!r}", where="explain(collude=...)", fix=f"Parties of this policy: {', '.join(known)}")
    rows: list[Row] = []
    joined: list[Row] = []
    for outcome in outcomes:
        assets = sorted(outcome.state.assets(), key=asset_order)
        shown = [p for p in outcome.parties if deployment == "deployed" or p != Party.NETWORK]
        rows += [_row(outcome, party, asset) for party in shown for asset in assets]
        if colluding:
            joined += _joined(outcome, colluding, assets)
    return Explanation(
        deployment=deployment,
        receiver=outcomes[0].receiver if outcomes else "",
        rows=tuple(rows),
        joined=tuple(joined),
        collude=colluding,
        reveals=tuple(r for o in outcomes for r in _reveals(o)),
        promises=tuple(_promise(o, t) for o in outcomes for t in o.techniques),
        collusions=tuple(c for o in outcomes for c in collusions(o)),
        remarks=tuple((str(o.stage), text) for o in outcomes for t in o.techniques for text in t.remarks(o.scene(t))),
    )


def _row(outcome: Outcome, party: str, asset: str) -> Row:
    here = (s for s in outcome.state.sightings if s.party == party and s.asset == asset)
    seen = sorted(here, key=lambda s: (s.technique, s.transition, str(s.form), s.under))
    forms = frozenset(s.form for s in seen)
    guarantee, assumption = _basis(outcome, seen)
    return Row(str(outcome.stage), party, asset, "; ".join(str(f) for f in strongest(forms)), guarantee, assumption, forms)


def _basis(outcome: Outcome, seen: Sequence[Sighting]) -> tuple[str, str]:
    """Guarantee class and assumption of a row: of plaintext, why; otherwise the weakest class among those that protect."""
    techniques = {t.name: t for t in outcome.techniques}
    if not seen:
        return "-", NEVER
    plain = [s for s in seen if isinstance(s.form, Plaintext | Key)]
    if plain:
        if any(not s.technique for s in plain):
            return "-", "owner"
        if all(s.revealed for s in plain):
            return "-", "revealed, " + plain[0].under
        computed = [s for s in plain if not s.revealed]
        if all(s.under for s in computed):
            return "-", computed[0].under
        weak = [techniques[s.technique] for s in computed]
        return str(Guarantee.NONE), "; ".join(dict.fromkeys(a for t in weak for a in t.assumptions))
    rank = list(Guarantee).index
    seen = [s for s in seen if not s.revealed] or seen  # a reduced or noised reveal says nothing about the rest
    protecting = [techniques[s.technique] for s in seen if s.technique]
    weakest = min((t.guarantee for t in protecting), key=rank)
    return str(weakest), "; ".join(dict.fromkeys(a for s in seen for a in ((s.under,) if s.under else techniques[s.technique].assumptions)))


def _joined(outcome: Outcome, colluding: Sequence[str], assets: Sequence[str]) -> list[Row]:
    view = outcome.state.joined(colluding)
    alone = {a for p in colluding for a, forms in outcome.state.joined([p]).items() if Plaintext() in forms}
    rows: list[Row] = []
    for asset in assets:
        forms = view.get(asset, frozenset())
        single = [_row(outcome, p, asset) for p in colluding]
        if Plaintext() in forms:
            basis = ("-", "one of them holds it") if asset in alone else (str(Guarantee.NONE), "the collusion breaks the protection")
        else:
            held = [r for r in single if r.forms] or single
            basis = held[0].guarantee, held[0].assumption
        rows.append(Row(str(outcome.stage), " + ".join(colluding), asset, "; ".join(str(f) for f in strongest(forms)), *basis, forms=forms))
    return rows


def collusions(outcome: Outcome) -> tuple[Collusion, ...]:
    """Every smallest set of parties that learns more in plain together, computed from the joined views."""

    def plain(parties: Sequence[str]) -> frozenset[str]:
        return frozenset(a for a, forms in outcome.state.joined(parties).items() if Plaintext() in forms)

    alone = {p: plain([p]) for p in outcome.parties}
    found: list[Collusion] = []
    for size in range(2, len(outcome.parties) + 1):
        for group in combinations(outcome.parties, size):
            explained = frozenset().union(*(alone[p] for p in group), *(c.assets for c in found if set(c.parties) < set(group)))
            if gained := plain(group) - explained:
                found.append(Collusion(str(outcome.stage), group, tuple(sorted(gained, key=asset_order))))
    return tuple(found)


def _reveals(outcome: Outcome) -> list[Reveal]:
    revealed = (s for s in outcome.state.sightings if s.revealed)
    opened = sorted(revealed, key=lambda s: (asset_order(s.asset), party_order(s.party), str(s.form), s.under))
    return list(dict.fromkeys(Reveal(str(outcome.stage), s.asset, s.party, str(s.form), s.under) for s in opened))


def _promise(outcome: Outcome, technique: Technique) -> Promise:
    shown = tuple((name, str(value)) for name, value in parameters(technique).items())
    guarantee = technique.guarantee
    return Promise(str(outcome.stage), technique.name, shown, str(guarantee), guarantee.meaning, technique.assumptions)
