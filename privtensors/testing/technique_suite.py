"""``TechniqueSuite``: the tests that every technique passes. A plugin inherits them with one fixture.

class TestMine(TechniqueSuite):
    bad_parameters = ({"bits": 0},)

    @pytest.fixture
    def technique(self) -> Technique:
        return Mine()
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from itertools import combinations
from typing import Any, ClassVar, Literal, get_type_hints

import pytest

from privtensors.errors import CompositionError, ParameterError
from privtensors.policy import Guarantee, Outcome, Phase, Policy, Stage, Technique, Transition, resolve
from privtensors.policy.forms import Plaintext
from privtensors.policy.values import fits


class TechniqueSuite:
    """Inherit, name the class ``Test...``, and provide the fixture ``technique``.

    Class attributes:
        bad_parameters: Constructor arguments that must each raise ParameterError; at least one where there are parameters.
        receiver: Receiver of the policies that the tests build.
        outputs: How much of the outputs of inference those policies reveal.
    """

    bad_parameters: ClassVar[tuple[Mapping[str, Any], ...]] = ()
    receiver: ClassVar[str] = "client"
    outputs: ClassVar[Literal["full", "argmax"]] = "full"

    @pytest.fixture
    def technique(self) -> Technique:
        raise NotImplementedError("provide the fixture 'technique'")

    def companions(self, stage: Stage) -> tuple[Technique, ...]:
        """Techniques without which this one cannot stand in ``stage`` (noise needs something to aggregate). Default: none."""
        return ()

    def test_is_a_frozen_dataclass(self, technique: Technique) -> None:
        assert dataclasses.is_dataclass(technique)
        assert "__dataclass_params__" in vars(type(technique)), f"decorate {type(technique).__name__} itself with @dataclass(frozen=True)"
        assert type(technique).__dataclass_params__.frozen  # type: ignore[attr-defined]
        hash(technique)

    def test_name_is_registered(self, technique: Technique) -> None:
        assert technique.name and technique.name == technique.name.lower()
        assert resolve(technique.name) is type(technique)

    def test_is_documented(self, technique: Technique) -> None:
        doc = vars(type(technique)).get("__doc__") or ""
        assert doc and not doc.startswith(f"{type(technique).__name__}("), "write a docstring; the one dataclass makes up says nothing"

    def test_states_guarantee_and_assumptions(self, technique: Technique) -> None:
        assert isinstance(technique.guarantee, Guarantee)
        assert technique.assumptions, "every guarantee assumes something: say what"
        for sentence in technique.assumptions:
            assert isinstance(sentence, str) and sentence.strip() == sentence != "" and not sentence.endswith(".")

    def test_supports_a_stage(self, technique: Technique) -> None:
        assert technique.stages
        assert all(isinstance(stage, Stage) for stage in technique.stages)

    def test_transitions_are_typed(self, technique: Technique) -> None:
        for outcome in self._outcomes(technique):
            scene = outcome.scene(technique)
            steps = technique.transitions(scene)
            assert isinstance(steps, tuple) and steps
            assert steps == technique.transitions(scene), "transitions must be the same on every call"
            assert len({step.name for step in steps}) == len(steps), "transition names must differ"
            for step in steps:
                assert isinstance(step, Transition) and isinstance(step.phase, Phase) and step.name
                assert step.reason or step.optional or not step.needs, f"{step.name!r} has needs and no reason"

    def test_policy_builds_in_supported_stages(self, technique: Technique) -> None:
        for stage in technique.stages:
            policy = self._policy(stage, technique)
            assert technique in policy.techniques(stage)
            assert str(policy.explain()) and str(policy.explain(deployment="deployed"))

    def test_unsupported_stages_are_refused(self, technique: Technique) -> None:
        for stage in set(Stage) - technique.stages:
            with pytest.raises(CompositionError) as refused:
                self._policy(stage, technique)
            assert refused.value.reason and refused.value.technique == technique.name and refused.value.stage == stage

    def test_order_does_not_matter(self, technique: Technique) -> None:
        for stage in technique.stages:
            others = list(self.companions(stage))
            first = Policy(**{stage.value: [technique, *others]}, receiver=self.receiver, outputs=self._revealed(stage))
            last = Policy(**{stage.value: [*reversed(others), technique]}, receiver=self.receiver, outputs=self._revealed(stage))
            assert first == last and first.explain().to_dict() == last.explain().to_dict()

    def test_explain_has_every_row(self, technique: Technique) -> None:
        for stage in technique.stages:
            policy = self._policy(stage, technique)
            rows = {(row.party, row.asset): row for row in policy.explain(deployment="deployed").rows}
            (outcome,) = policy.outcomes
            assets = outcome.state.assets() | technique.hidden_from(outcome.scene(technique)).keys()
            for party in technique.parties(stage):
                for asset in assets:
                    assert (party, asset) in rows, f"explain() says nothing about {asset} at {party}"
                    row = rows[party, asset]
                    assert row.form and row.guarantee and row.assumption

    def test_promises_hold(self, technique: Technique) -> None:
        for outcome in self._outcomes(technique):
            for asset, parties in technique.hidden_from(outcome.scene(technique)).items():
                for party in parties:
                    assert party in technique.parties(outcome.stage), f"{party} is not a party of {technique.name}"
                    forms = outcome.state.joined([party]).get(asset, frozenset())
                    assert Plaintext() not in forms, f"{party} holds {asset} in plain, which {technique.name} promised to hide"

    def test_protection_comes_with_a_promise(self, technique: Technique) -> None:
        for outcome in self._outcomes(technique):
            hidden = technique.hidden_from(outcome.scene(technique))
            assert bool(hidden) == (technique.guarantee is not Guarantee.NONE), "a guarantee other than none hides something from somebody"

    def test_collusions_are_as_declared(self, technique: Technique) -> None:
        for outcome in self._outcomes(technique):
            declared = technique.breaks_under(outcome.scene(technique))
            parties = sorted(technique.parties(outcome.stage))
            for size in range(2, len(parties) + 1):
                for group in combinations(parties, size):
                    alone = frozenset().union(*(_plain(outcome, [p]) for p in group))
                    gained = _plain(outcome, list(group)) - alone
                    said = frozenset[str]().union(*(assets for who, assets in declared.items() if who <= set(group))) - alone
                    assert gained == said, f"{' + '.join(group)} learn {sorted(gained)} together; breaks_under() says {sorted(said)}"

    def test_toml_round_trip(self, technique: Technique) -> None:
        for stage in technique.stages:
            policy = self._policy(stage, technique)
            assert Policy.from_toml(policy.to_toml()) == policy

    def test_bad_parameters_are_refused(self, technique: Technique) -> None:
        fields = [f for f in dataclasses.fields(technique) if f.init]
        assert self.bad_parameters or not fields, "list parameters that must be refused in bad_parameters"
        for bad in self.bad_parameters:
            with pytest.raises(ParameterError):
                type(technique)(**{**_given(technique), **bad})
        hints = get_type_hints(type(technique))
        for field in fields:
            if not fits(hints[field.name], wrong := object()):
                with pytest.raises(ParameterError):
                    type(technique)(**{**_given(technique), field.name: wrong})

    def _policy(self, stage: Stage, technique: Technique) -> Policy:
        return Policy(**{stage.value: [technique, *self.companions(stage)]}, receiver=self.receiver, outputs=self._revealed(stage))

    def _revealed(self, stage: Stage) -> Literal["full", "argmax"]:
        return self.outputs if stage is Stage.INFER else "full"

    def _outcomes(self, technique: Technique) -> list[Outcome]:
        return [outcome for stage in sorted(technique.stages) for outcome in self._policy(stage, technique).outcomes]


def _given(technique: Technique) -> dict[str, Any]:
    return {f.name: getattr(technique, f.name) for f in dataclasses.fields(technique) if f.init}


def _plain(outcome: Outcome, parties: list[str]) -> frozenset[str]:
    return frozenset(asset for asset, forms in outcome.state.joined(parties).items() if Plaintext() in forms)
