"""What a technique is: a frozen dataclass that states what it needs, gives, hides and assumes.

The policy machinery knows no technique by name. A plugin derives from :class:`Technique`, registers the class under
the entry-point group ``privtensors.techniques`` and inherits ``privtensors.testing.technique_suite.TechniqueSuite``.
"""

from __future__ import annotations

import dataclasses
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, get_type_hints

from privtensors.errors import ParameterError, RegistryError
from privtensors.policy.assets import Outputs
from privtensors.policy.phases import Stage
from privtensors.policy.state import Transition
from privtensors.policy.values import describe, fits


class Guarantee(StrEnum):
    """Guarantee classes, weakest first. None of them is information-theoretic: every deployment uses a PRG and TLS."""

    NONE = "none"
    HEURISTIC = "heuristic"
    HARDWARE = "hardware trust"
    STATISTICAL = "statistical"
    COMPUTATIONAL = "computational"

    @property
    def meaning(self) -> str:
        """The class in one sentence."""
        return {
            Guarantee.NONE: "no protection",
            Guarantee.HEURISTIC: "no proof; it holds as long as nobody finds a better attack",
            Guarantee.HARDWARE: "holds if the hardware and its maker are trusted",
            Guarantee.STATISTICAL: "differential privacy (epsilon, delta), against any computing power",
            Guarantee.COMPUTATIONAL: "holds against an adversary of bounded computing power",
        }[self]


@dataclass(frozen=True)
class Claim:
    """A role (see ``phases.Role``) that a technique fills. ``yields`` gives way to a technique that claims it firmly."""

    role: str
    yields: bool = False


@dataclass(frozen=True)
class Scene:
    """What a technique may know about the policy it stands in.

    Attributes:
        stage: The stage being executed.
        receiver: The party to which task outputs are revealed.
        roles: Roles that this technique won.
        filled: Every filled role of the stage, sorted.
        outputs: How much of the task outputs is revealed (see ``assets.Outputs``). A technique that opens outputs must
            establish ``facts.Reduced`` before the reveal where this is ``"argmax"``, or the policy is refused.
    """

    stage: Stage
    receiver: str
    roles: frozenset[str] = frozenset()
    filled: tuple[str, ...] = ()
    outputs: str = Outputs.FULL


@dataclass(frozen=True)
class Technique(ABC):
    """Base of every technique. Derive a frozen dataclass whose fields are the technique's parameters.

    Field types are checked at construction (from the annotations); :meth:`check` checks their values.

    Class attributes:
        name: Registered name, also the name in policy files.
        stages: Stages of life that it supports.
        guarantee: Guarantee class.
        assumptions: What must hold for the guarantee, one sentence each without a full stop.
        backend: Name of the backend that holds its tensors, or None.
    """

    name: ClassVar[str]
    stages: ClassVar[frozenset[Stage]]
    guarantee: ClassVar[Guarantee]
    assumptions: ClassVar[tuple[str, ...]]
    backend: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            if not fits(hints[field.name], getattr(self, field.name)):
                raise ParameterError(
                    f"must be {describe(hints[field.name])}, got {type(getattr(self, field.name)).__name__}",
                    where=f"{type(self).__name__}.{field.name}",
                )
        self.check()

    def check(self) -> None:  # noqa: B027  (a hook: most techniques have nothing to add to the type checks)
        """Check parameter values.

        Raises:
            ParameterError: One is out of range, or two contradict each other.
        """

    @abstractmethod
    def parties(self, stage: Stage) -> frozenset[str]:
        """Parties that take part in ``stage``, the network included where something crosses it."""

    @abstractmethod
    def transitions(self, scene: Scene) -> tuple[Transition, ...]:
        """What the technique does, phase by phase."""

    @abstractmethod
    def hidden_from(self, scene: Scene) -> Mapping[str, frozenset[str]]:
        """The promise: by asset, the parties that never hold it in plain. The policy is refused where it would break."""

    def breaks_under(self, scene: Scene) -> Mapping[frozenset[str], frozenset[str]]:
        """By minimal collusion, the assets it learns in plain though none of its members holds them alone."""
        return {}

    def receivers(self, stage: Stage) -> frozenset[str]:
        """Parties to which outputs can be revealed; empty for no say in it."""
        return frozenset()

    def claims(self, stage: Stage) -> frozenset[Claim]:
        """Roles it fills. Two techniques that claim one role firmly cannot be composed."""
        return frozenset()

    def owners(self, stage: Stage) -> Mapping[str, frozenset[str]]:
        """By asset, the parties that hold it in plain when ``stage`` starts, where that differs from the default."""
        return {}

    def remarks(self, scene: Scene) -> tuple[str, ...]:
        """Further plain sentences for ``explain()``, without a full stop."""
        return ()

    def why_not(self, stage: Stage) -> str:
        """Why ``stage`` is not supported."""
        return f"{type(self).__name__} does not support stage {stage}"


def resolve(name: str) -> type[Technique]:
    """The technique class registered as ``name``.

    Raises:
        UnknownTechnique: None is.
        RegistryError: The entry point is broken, or is not a technique.
    """
    from privtensors.core.registry import technique_class  # late: core imports torch

    found = technique_class(name)
    if not (inspect.isclass(found) and issubclass(found, Technique)):
        fix = "reinstall the package that provides it"
        raise RegistryError(f"{name!r} is not a subclass of Technique", where="privtensors.techniques", fix=fix)
    return found


def registered() -> tuple[str, ...]:
    """Names of every registered technique, sorted."""
    from privtensors.core.registry import TECHNIQUES, registry

    return registry().names(TECHNIQUES)


def required(cls: type[Technique]) -> tuple[str, ...]:
    """Parameters without a default."""
    unset = dataclasses.MISSING
    return tuple(f.name for f in dataclasses.fields(cls) if f.init and f.default is unset and f.default_factory is unset)


def parameters(technique: Technique) -> dict[str, object]:
    """The technique's parameters by name; those declared ``repr=False`` (secrets) are left out."""
    return {f.name: getattr(technique, f.name) for f in dataclasses.fields(technique) if f.repr}
