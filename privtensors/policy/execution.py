"""Abstract execution of one stage: the check of a policy and the source of ``explain()``.

The transitions of all techniques run phase by phase. Within a phase, whatever can start starts, until nothing more
can; since states only grow and negative needs look at the start of the phase, the result does not depend on any order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from privtensors.errors import CompositionError
from privtensors.policy.assets import Asset, Outputs, Party, default_owners, party_order
from privtensors.policy.facts import Fact
from privtensors.policy.forms import Plaintext
from privtensors.policy.phases import Phase, Stage
from privtensors.policy.state import State, Transition, initial
from privtensors.policy.technique import Guarantee, Scene, Technique

Bound = tuple[Technique, Transition]


@dataclass(frozen=True)
class Outcome:
    """The result of executing one stage.

    Attributes:
        stage: Which.
        receiver: The party that gets task outputs.
        techniques: Sorted by name.
        roles: Filled roles and the name of the technique that fills each, sorted.
        parties: In reading order.
        state: Who holds what, and which facts hold, at the end.
        outputs: How much of the task outputs the receiver gets.
    """

    stage: Stage
    receiver: str
    techniques: tuple[Technique, ...]
    roles: tuple[tuple[str, str], ...]
    parties: tuple[str, ...]
    state: State
    outputs: str = Outputs.FULL

    def scene(self, technique: Technique) -> Scene:
        """What ``technique`` knows about its surroundings."""
        return _scene(self.stage, self.receiver, dict(self.roles), technique, self.outputs)


def refuse(stage: Stage, what: str, fix: str, *, technique: str = "", phase: str = "") -> CompositionError:
    """The typed refusal, with its reason as an attribute."""
    where = f"policy.{stage}" + (f", phase {phase}" if phase else "")
    return CompositionError(what, where=where, fix=fix, reason=what, technique=technique, stage=str(stage), phase=phase)


def execute(
    stage: Stage, techniques: Sequence[Technique], receiver: str, facts: frozenset[Fact] = frozenset(), outputs: str = Outputs.FULL
) -> Outcome:
    """Run ``techniques`` abstractly.

    Args:
        stage: The stage of life.
        techniques: In any order.
        receiver: The party that gets task outputs.
        facts: Persisting facts of earlier stages.
        outputs: How much of the task outputs the receiver may get: "full" or "argmax".

    Raises:
        CompositionError: They cannot be composed; ``reason``, ``technique``, ``stage`` and ``phase`` say why.
    """
    chosen = tuple(sorted(techniques, key=lambda t: (t.name, repr(t))))
    _check_members(stage, chosen)
    parties = tuple(sorted({p for t in chosen for p in t.parties(stage)}, key=party_order))
    _check_receiver(stage, chosen, parties, receiver)
    roles = _cast(stage, chosen)
    scenes = {t.name: _scene(stage, receiver, roles, t, outputs) for t in chosen}
    state = initial(_owners(stage, chosen, parties), facts)
    todo: list[Bound] = [(t, step) for t in chosen for step in t.transitions(scenes[t.name])]
    for technique, step in todo:
        if strangers := step.parties() - frozenset(parties):
            raise refuse(
                stage,
                f"{technique.name} gives something to {', '.join(sorted(strangers))} in {step.name!r} without declaring that party",
                "this is a defect of the technique: parties() must list everyone its transitions name",
                technique=technique.name,
                phase=str(step.phase),
            )
    for phase in Phase:
        state = _run_phase(stage, phase, state, [b for b in todo if b[1].phase is phase])
    outcome = Outcome(stage, receiver, chosen, tuple(sorted(roles.items())), parties, state, outputs)
    _check_promises(outcome, scenes)
    return outcome


def _scene(stage: Stage, receiver: str, roles: Mapping[str, str], technique: Technique, outputs: str) -> Scene:
    won = frozenset(role for role, name in roles.items() if name == technique.name)
    return Scene(stage, receiver, won, tuple(sorted(roles)), outputs)


def _check_members(stage: Stage, chosen: Sequence[Technique]) -> None:
    for technique in chosen:
        if stage not in technique.stages:
            supported = ", ".join(sorted(technique.stages)) or "none"
            raise refuse(stage, technique.why_not(stage), f"It supports: {supported}", technique=technique.name)
    names = [t.name for t in chosen]
    for name in sorted(set(names)):
        if names.count(name) > 1:
            raise refuse(stage, f"{name} is listed {names.count(name)} times; a stage is a set", "Keep one of them", technique=name)


def _check_receiver(stage: Stage, chosen: Sequence[Technique], parties: Sequence[str], receiver: str) -> None:
    for technique in chosen:
        allowed = technique.receivers(stage)
        if allowed and receiver not in allowed:
            what = f"{technique.name} cannot reveal outputs to receiver {receiver!r}"
            raise refuse(stage, what, f"Receivers it allows: {', '.join(sorted(allowed))}", technique=technique.name)
    if stage is Stage.INFER and (receiver not in parties or receiver == Party.NETWORK):
        known = ", ".join(p for p in parties if p != Party.NETWORK)
        raise refuse(stage, f"receiver {receiver!r} is not a party of this stage", f"Parties: {known}")


def _cast(stage: Stage, chosen: Sequence[Technique]) -> dict[str, str]:
    """Who fills which role: firm claims win over yielding ones; two of a kind are refused."""
    firm: dict[str, list[str]] = {}
    yielding: dict[str, list[str]] = {}
    for technique in chosen:
        for claim in technique.claims(stage):
            (yielding if claim.yields else firm).setdefault(claim.role, []).append(technique.name)
    roles: dict[str, str] = {}
    contested: dict[tuple[str, ...], list[str]] = {}
    for role in sorted({*firm, *yielding}):
        claimants = firm.get(role) or yielding[role]
        if len(claimants) > 1:
            contested.setdefault(tuple(sorted(claimants)), []).append(role)
        roles[role] = claimants[0]
    for claimants_, wanted in sorted(contested.items()):
        classes = {t.name: t.guarantee for t in chosen if t.name in claimants_}
        apart = "; ".join(f"{name} is {guarantee}" for name, guarantee in sorted(classes.items()))
        mixed = Guarantee.HEURISTIC in classes.values() and set(classes.values()) - {Guarantee.HEURISTIC, Guarantee.NONE}
        raise refuse(
            stage,
            f"{' and '.join(claimants_)} both claim to compute or do: {', '.join(wanted)}; only one technique can"
            + (f" ({apart}: the heuristic one never counts as the other)" if mixed else ""),
            "Keep one of them in this stage",
            technique=claimants_[0],
        )
    return roles


def _owners(stage: Stage, chosen: Sequence[Technique], parties: Sequence[str]) -> frozenset[tuple[str, str]]:
    placed: dict[str, tuple[str, frozenset[str]]] = {}
    for technique in chosen:
        for asset, holders in technique.owners(stage).items():
            other, before = placed.setdefault(asset, (technique.name, holders))
            if before != holders:
                raise refuse(
                    stage,
                    f"{other} wants {asset} to start at {_names(before)}, {technique.name} at {_names(holders)}",
                    "Change the option that decides it in one of them, or drop one",
                    technique=technique.name,
                )
    start = {(asset, party) for asset, party in default_owners(stage) if asset not in placed}
    start |= {(asset, party) for asset, (_, holders) in placed.items() for party in holders}
    return frozenset((asset, party) for asset, party in start if party in parties)


def _names(parties: frozenset[str]) -> str:
    return ", ".join(sorted(parties, key=party_order)) or "nobody"


def _run_phase(stage: Stage, phase: Phase, state: State, todo: Sequence[Bound]) -> State:
    start, waiting = state, list(todo)
    while ready := [b for b in waiting if not b[1].unmet(state, start)]:
        for technique, step in ready:
            state = step.apply(state, start, technique.name)
        waiting = [b for b in waiting if b not in ready]
    for technique, step in sorted(waiting, key=lambda b: (b[0].name, b[1].name)):
        if not step.optional:
            unmet = "; ".join(str(need) for need in step.unmet(state, start))
            what = f"{technique.name} cannot {step.name}: {unmet}" + (f" ({step.reason})" if step.reason else "")
            raise refuse(stage, what, step.fix, technique=technique.name, phase=str(phase))
    return state


def _check_promises(outcome: Outcome, scenes: Mapping[str, Scene]) -> None:
    """No technique may undo what another promised, and inference must deliver."""
    state, stage = outcome.state, outcome.stage
    for technique in outcome.techniques:
        hidden = technique.hidden_from(scenes[technique.name])
        for asset in sorted(hidden):
            for party in sorted(hidden[asset], key=party_order):
                if Plaintext() not in state.joined([party]).get(asset, frozenset()):
                    continue
                givers = {s.technique or "owning it" for s in state.sightings if s.asset == asset and s.party == party}
                through = ", ".join(sorted(givers)) or "what follows from other assets"
                raise refuse(
                    stage,
                    f"{technique.name} promises to hide {asset} from {party}, which would hold it in plain through {through}",
                    "Drop one of the two techniques, or change the option that shows it",
                    technique=technique.name,
                )
    received = state.joined([outcome.receiver]).get(Asset.OUTPUTS, frozenset())
    if stage is Stage.INFER and outcome.outputs == Outputs.ARGMAX and Plaintext() in received:
        seen = (s for s in state.sightings if s.asset == Asset.OUTPUTS and s.party == outcome.receiver)
        by = sorted({s.technique for s in seen} - {""})
        raise refuse(
            stage,
            f"the policy promises {outcome.receiver} the index of the largest output only, but {', '.join(by)} gives it the outputs",
            "Use a technique that can reduce outputs before it opens them, another receiver, or outputs='full'",
            technique=by[0] if by else "",
        )
    if stage is Stage.INFER and not any(form.readable for form in received):
        raise refuse(
            stage,
            f"no technique delivers outputs to {outcome.receiver!r} in a form it can use",
            "Add a technique that computes the model in this stage",
        )
