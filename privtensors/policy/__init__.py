"""Policies: sets of techniques per stage of life, checked by abstract execution. This package knows no technique by name."""

from __future__ import annotations

from privtensors.policy.assets import Asset, Party
from privtensors.policy.execution import Outcome, execute
from privtensors.policy.explain import Explanation
from privtensors.policy.phases import Phase, Role, Stage
from privtensors.policy.policy import Policy
from privtensors.policy.state import Transition
from privtensors.policy.technique import Claim, Guarantee, Scene, Technique, resolve

__all__ = [
    "Asset",
    "Claim",
    "Explanation",
    "Guarantee",
    "Outcome",
    "Party",
    "Phase",
    "Policy",
    "Role",
    "Scene",
    "Stage",
    "Technique",
    "Transition",
    "execute",
    "resolve",
]
