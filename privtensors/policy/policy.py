"""``Policy``: a set of techniques per stage of life, checked when it is built by executing it abstractly."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from privtensors.errors import CompositionError, UnknownTechnique
from privtensors.policy.assets import Outputs, Party
from privtensors.policy.execution import Outcome, execute, refuse
from privtensors.policy.explain import Explanation, explain
from privtensors.policy.facts import Fact
from privtensors.policy.phases import Stage
from privtensors.policy.technique import Technique, registered, required, resolve
from privtensors.policy.toml import dump, load


@dataclass(frozen=True, init=False)
class Policy:
    """What must be hidden from whom, at each stage of a model's life.

    Lists are sets: their order does not matter. A stage without techniques is absent.

    Attributes:
        train: Techniques of training.
        infer: Techniques of inference.
        release: Techniques of releases.
        receiver: The party to which task outputs are revealed.
        outputs: How much of them: "full", or "argmax" for the index of the largest entry of each row of logits and nothing else.
        outcomes: The result of the abstract execution, one per present stage.
    """

    train: tuple[Technique, ...]
    infer: tuple[Technique, ...]
    release: tuple[Technique, ...]
    receiver: str
    outputs: str
    outcomes: tuple[Outcome, ...] = field(repr=False, compare=False)

    def __init__(
        self,
        *,
        train: Iterable[Technique | str] = (),
        infer: Iterable[Technique | str] = (),
        release: Iterable[Technique | str] = (),
        receiver: str = "client",
        outputs: Literal["full", "argmax"] = "full",
    ) -> None:
        """Build and check.

        Args:
            train: Techniques, or registered names for their defaults.
            infer: Likewise.
            release: Likewise.
            receiver: The party to which task outputs are revealed.
            outputs: "full" reveals logits, last hidden state and so on. "argmax" reveals of each row of logits (of a causal
                language model: of the last position) the index of the largest entry; the logits stay protected.

        Raises:
            CompositionError: The techniques cannot be composed; ``reason`` says why.
            UnknownTechnique: A name is not registered.
        """
        given = {Stage.TRAIN: train, Stage.INFER: infer, Stage.RELEASE: release}
        chosen = {stage: _members(stage, techniques) for stage, techniques in given.items()}
        if not any(chosen.values()):
            raise CompositionError(
                "a policy without any technique protects nothing",
                where="policy",
                fix="Name at least one, e.g. Policy(infer=[...]); for a plain reference run choose the reference technique by name",
            )
        if not isinstance(receiver, str):
            what = f"must be a party's name, got {type(receiver).__name__}"
            raise CompositionError(what, where="policy.receiver", fix="e.g. receiver='client'")
        taking_part = {p for stage, ts in chosen.items() for t in ts if stage in t.stages for p in t.parties(stage)}
        if taking_part and receiver not in taking_part - {Party.NETWORK}:
            known = ", ".join(sorted(taking_part - {Party.NETWORK}))
            raise CompositionError(f"unknown party {receiver!r}", where="policy.receiver", fix=f"Parties of this policy: {known}")
        if outputs not in tuple(Outputs):
            raise CompositionError(f"unknown value {outputs!r}", where="policy.outputs", fix=f"Allowed: {', '.join(Outputs)}")
        if outputs == "argmax" and not chosen[Stage.INFER]:
            what = "outputs='argmax' says what inference reveals, but there is no infer stage"
            raise CompositionError(what, where="policy.outputs", fix="Add infer=[...], or drop outputs=")
        outcomes: list[Outcome] = []
        facts: frozenset[Fact] = frozenset()
        for stage, techniques in chosen.items():
            if techniques:
                outcomes.append(
                    execute(stage, techniques, str(receiver), facts, Outputs(outputs) if stage is Stage.INFER else Outputs.FULL)
                )
                facts = frozenset(f for f in outcomes[-1].state.facts if f.persists)
        for name, value in (
            *((str(s), ts) for s, ts in chosen.items()),
            ("receiver", str(receiver)),
            ("outputs", str(outputs)),
            ("outcomes", tuple(outcomes)),
        ):
            object.__setattr__(self, name, value)

    def techniques(self, stage: str) -> tuple[Technique, ...]:
        """Techniques of ``stage`` ("train", "infer" or "release"), sorted by name; empty where the stage is absent."""
        return {Stage.TRAIN: self.train, Stage.INFER: self.infer, Stage.RELEASE: self.release}[Stage(stage)]

    def holder(self, stage: str, role: str) -> Technique | None:
        """The technique that fills ``role`` (see ``phases.Role``) in ``stage``, or None."""
        for outcome in self.outcomes:
            if outcome.stage == stage:
                name = dict(outcome.roles).get(role)
                return next((t for t in outcome.techniques if t.name == name), None)
        return None

    def explain(self, *, collude: Iterable[str] = frozenset(), deployment: Literal["simulated", "deployed"] = "simulated") -> Explanation:
        """Who sees what, in which form, under which assumption.

        Args:
            collude: Parties that pool what they hold; their joined view is shown as well.
            deployment: ``"simulated"`` for one process that plays every party, ``"deployed"`` for parties on the network.

        Raises:
            PolicyError: ``collude`` names an unknown party, or ``deployment`` is neither.
        """
        return explain(self.outcomes, collude=collude, deployment=deployment)

    @classmethod
    def from_toml(cls, source: str | Path) -> Self:
        """Read a policy file.

        Args:
            source: A path; or the text itself, where it is a string with a line break or an equals sign.

        Raises:
            PolicyFileError: The file cannot be read or is malformed; the message names file, key and what is allowed.
            CompositionError: Its techniques cannot be composed.
        """
        document = load(source, resolve=resolve, names=registered)
        return cls(
            train=document.train, infer=document.infer, release=document.release, receiver=document.receiver, outputs=document.outputs
        )

    def to_toml(self) -> str:
        """The policy as the text of a policy file; ``Policy.from_toml`` gives an equal policy.

        Raises:
            PolicyFileError: A parameter has no TOML form, or is secret.
        """
        return dump({stage: self.techniques(stage) for stage in Stage}, self.receiver, self.outputs)


def _members(stage: Stage, given: object) -> tuple[Technique, ...]:
    """The techniques of one stage, names resolved, sorted by name."""
    if isinstance(given, str | Technique) or not isinstance(given, Iterable):
        shown = repr(given) if isinstance(given, str) else type(given).__name__
        raise refuse(stage, f"expected a list of techniques, got {shown}", "Put it in a list, e.g. infer=[MPC()]")
    members: list[Technique] = []
    for item in given:
        if isinstance(item, str):
            members.append(_by_name(stage, item))
        elif isinstance(item, Technique):
            members.append(item)
        elif inspect.isclass(item) and issubclass(item, Technique):
            raise refuse(stage, f"{item.__name__} is a class, not a technique", f"Write {item.__name__}() to make one")
        else:
            raise refuse(
                stage,
                f"{type(item).__name__} is not a technique",
                "Pass an object of a class derived from privtensors.policy.Technique, or a registered name",
            )
    return tuple(sorted(members, key=lambda t: (t.name, repr(t))))


def _by_name(stage: Stage, name: str) -> Technique:
    try:
        cls = resolve(name)
    except UnknownTechnique as error:
        raise UnknownTechnique(error.what, where=f"policy.{stage}", fix=error.fix) from error
    if missing := required(cls):
        raise refuse(stage, f"{name!r} has no default for {', '.join(missing)}", f"Write {cls.__name__}(...) with it", technique=name)
    return cls()
