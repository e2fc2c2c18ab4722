"""The DP technique: parameters, who sees what, what it refuses."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from privtensors import DP, MPC, Policy
from privtensors.errors import CompositionError, ParameterError, PolicyFileError
from privtensors.policy import Stage, Technique
from privtensors.policy.facts import Bounded, Noised, Sampled
from privtensors.policy.forms import NoisedValue, Plaintext
from privtensors.testing.technique_suite import TechniqueSuite


class TestDP(TechniqueSuite):
    bad_parameters = (
        {"dataset": ""},
        {"dataset": " x"},
        {"dataset": "a\nb"},
        {"dataset": "x" * 201},
        {"epsilon": 0.0},
        {"epsilon": -3.0},
        {"epsilon": math.nan},
        {"noise_multiplier": math.inf, "epsilon": None},
        {"delta": 0.0},
        {"delta": 1.0},
        {"clipping_norm": 0.0},
        {"clipping_norm": math.inf},
        {"noise_multiplier": 1.0},  # beside epsilon
        {"unit": "client"},
        {"unit": "user"},
        {"unit": "user", "user_column": "author"},
        {"unit": "user", "user_column": "author", "max_per_user": 0},
        {"user_column": "author"},
        {"max_per_user": 3},
        {"sampling": "weighted"},
        {"bounds": (1.0, 1.0)},
        {"bounds": (2.0, 1.0)},
        {"bounds": (0.0, math.inf)},
        {"bounds": (0.0,)},
    )

    @pytest.fixture
    def technique(self) -> Technique:
        return DP(epsilon=3.0, dataset="reviews-2026", bounds=(0.0, 1.0))


class TestDPByNoise(TestDP):
    bad_parameters = ({"epsilon": 3.0}, {"noise_multiplier": 0.0})

    @pytest.fixture
    def technique(self) -> Technique:
        return DP(noise_multiplier=1.1, dataset="reviews-2026", sampling="fixed", amplification=False)


class TestDPForPublic(TestDP):
    receiver = "public"


class TestDPPerUser(TestDP):
    bad_parameters = ({"max_per_user": None}, {"user_column": None}, {"unit": "example"})

    @pytest.fixture
    def technique(self) -> Technique:
        return DP(epsilon=3.0, dataset="reviews-2026", unit="user", user_column="author", max_per_user=5)

    # A tensor's rows cannot be told apart by user, so the release stage is refused for this unit.
    @pytest.fixture(autouse=True)
    def _training_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(DP, "stages", frozenset({Stage.TRAIN}))


def test_training_tells_who_sees_what() -> None:
    policy = Policy(train=[DP(epsilon=3.0, delta=1e-6, dataset="reviews-2026", clipping_norm=0.5)])
    explained = policy.explain()
    view = explained.view("public")
    assert view["trained weights"] == {NoisedValue(3.0, 1e-6, "example", "public")}
    assert all(not forms for asset, forms in view.items() if asset != "trained weights")
    facts = policy.outcomes[0].state.facts
    assert {type(f) for f in facts} >= {Sampled, Bounded, Noised}
    (bounded,) = (f for f in facts if isinstance(f, Bounded))
    assert (bounded.norm, bounded.unit) == (0.5, "example")
    assert any("one ledger row per run" in r.ledger for r in explained.reveals)
    text = str(explained)
    assert "noised (eps 3, delta 1e-06, per example" in text and "zero" in text


def test_the_largest_delta_is_shown_where_none_is_stated() -> None:
    policy = Policy(train=[DP(epsilon=3.0, dataset="d")])
    assert policy.explain().view("public")["trained weights"] == {NoisedValue(3.0, 1e-5, "example", "public")}


def test_a_reference_run_protects_nothing_and_says_so() -> None:
    explained = Policy(train=[DP(epsilon=math.inf, dataset="d")]).explain()
    assert explained.view("public")["trained weights"] == {Plaintext()}
    assert any("without noise" in text for _, text in explained.remarks)


def test_noise_alone_says_that_epsilon_follows() -> None:
    remarks = Policy(train=[DP(noise_multiplier=1.0, dataset="d")]).explain().remarks
    assert any("follows from the noise multiplier" in text for _, text in remarks)


@pytest.mark.parametrize(
    ("technique", "said"),
    [
        (DP(dataset="d"), "epsilon or noise_multiplier must be stated"),
        (DP(epsilon=3.0, dataset="d", sampling="fixed"), "amplified ε counts on Poisson sampling"),
        (DP(epsilon=3.0, dataset="d", unit="row"), 'unit must be "example" or "user"'),
    ],
)
def test_refused_in_training(technique: DP, said: str) -> None:
    with pytest.raises(CompositionError) as refused:
        Policy(train=[technique])
    assert said in refused.value.reason and refused.value.fix and refused.value.technique == "dp"


def test_without_amplification_any_sampling_will_do() -> None:
    assert Policy(train=[DP(epsilon=3.0, dataset="d", sampling="fixed", amplification=False)])


def test_releases_tell_who_sees_what() -> None:
    policy = Policy(release=[DP(unit="row", dataset="table", bounds=(0, 2))])
    view = policy.explain().view("public")
    assert view["released statistics"] == {NoisedValue(math.inf, 1e-5, "row", "public")}
    assert not view["training examples"] and not view["labels"]
    with pytest.raises(CompositionError, match="row"):
        Policy(release=[DP(dataset="d", unit="user", user_column="u", max_per_user=2)])


def test_a_later_stage_knows_that_the_weights_were_noised() -> None:
    policy = Policy(train=[DP(epsilon=3.0, dataset="d")], infer=[MPC()])
    assert any(isinstance(f, Noised) for f in policy.outcomes[-1].state.facts)
    assert Policy.from_toml(policy.to_toml()) == policy


def test_policy_file() -> None:
    text = 'version = 1\n[[train]]\ntechnique = "dp"\nepsilon = 3.0\ndataset = "d"\nbounds = [0, 1]\n'
    assert Policy.from_toml(text) == Policy(train=[DP(epsilon=3.0, dataset="d", bounds=(0, 1))])
    with pytest.raises(PolicyFileError, match=r"dataset.*missing"):
        Policy.from_toml('version = 1\n[[train]]\ntechnique = "dp"\nepsilon = 3.0\n')


def test_the_data_set_is_mandatory() -> None:
    with pytest.raises(TypeError, match="dataset"):
        DP(epsilon=3.0)  # type: ignore[call-arg]
    with pytest.raises(CompositionError, match="dataset"):
        Policy(train=["dp"])
    with pytest.raises(ParameterError, match="dataset"):
        DP(epsilon=3.0, dataset=7)  # type: ignore[arg-type]


def test_the_technique_needs_no_torch() -> None:
    code = "import sys; from privtensors.backends.dp import DP, Gaussian, Laplace; DP(dataset='d'); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
