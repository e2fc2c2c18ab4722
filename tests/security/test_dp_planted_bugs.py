"""Every planted bug is found by the detectors that the table names; the right set-up passes them all."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from scipy import stats

from privtensors.audit import Bug, Finding, Schedule, Setup, check_audit, check_noise, check_oracle, check_sampler, planted_bugs
from privtensors.audit.planted import DividedNoise
from privtensors.audit.subject import tiny_subject
from privtensors.audit.table import quick_checks, quiet

BUGS = {bug.name: bug for bug in planted_bugs()}
SIGMA = 3.4317  # of Schedule(): ε = 2 at δ = 1e-6
AUDITED = [name for name, bug in BUGS.items() if "audit" in bug.caught_by]
SAFE = 1e-8  # of false alarms in this file: it runs often


def audited(setup: Setup, seed: int) -> Finding:
    with quiet():
        finding, _ = check_audit(setup, tiny_subject(), Schedule(), SIGMA, seed=seed)
    return finding


def test_the_table_names_what_must_be_there() -> None:
    words = ("no clipping", "world size", "Poisson", "padding", "generator", "divisor")
    assert len(BUGS) == len(words) and all(any(word in name for name in BUGS) for word in words)
    assert all(bug.caught_by for bug in BUGS.values())
    assert AUDITED == ["no clipping", "noise divided by world size (4)"]


def test_the_right_set_up_passes() -> None:
    subject, setup = tiny_subject(), Setup()
    assert check_oracle(setup, subject.model, subject.dataset, subject.loss, tolerance=1e-5).passed
    assert check_noise(setup, subject.model, subject.dataset, subject.loss, significance=SAFE).passed
    assert check_sampler(setup, significance=SAFE).passed
    assert check_sampler(setup, units=60, rate=0.5, steps=200, significance=SAFE).passed


@pytest.mark.parametrize("bug", BUGS.values(), ids=lambda bug: bug.name)
def test_named_detectors_find_the_bug_and_others_do_not_cry(bug: Bug) -> None:
    found = {one.detector for one in quick_checks(bug.plant(Setup()), tiny_subject()) if not one.passed}
    assert found == set(bug.caught_by) - {"audit"}


@pytest.mark.parametrize("name", AUDITED)
def test_audit_refutes(name: str) -> None:
    finding = audited(BUGS[name].plant(Setup()), 0)
    assert not finding.passed and finding.value > finding.limit == pytest.approx(2.0, abs=0.01)


def test_audit_does_not_refute_what_is_right() -> None:
    assert audited(Setup(), 0).passed


@pytest.mark.slow
@pytest.mark.parametrize("name", AUDITED)
def test_audit_refutes_in_each_of_five_runs(name: str) -> None:
    assert [audited(BUGS[name].plant(Setup()), seed).passed for seed in range(5)] == [False] * 5


@pytest.mark.slow
def test_audit_is_silent_on_the_right_set_up_in_each_of_twenty_runs() -> None:
    assert all(audited(Setup(), seed).passed for seed in range(20))


@pytest.mark.slow
def test_statistical_detectors_cry_as_rarely_as_they_say() -> None:
    # At a significance that can be counted: the p-values are the same at any.
    runs, level, subject, setup = 1500, 0.02, tiny_subject(), Setup()
    noise = sum(
        not check_noise(setup, subject.model, subject.dataset, subject.loss, entries=4000, significance=level).passed
        for _ in range(runs // 3)
    )
    sampler = sum(not check_sampler(setup, units=300, steps=300, significance=level).passed for _ in range(runs))
    assert stats.binom.sf(noise - 1, runs // 3, level) > 1e-5 and stats.binom.sf(sampler - 1, runs, level) > 1e-5


@pytest.mark.parametrize("world", [2, 8])
def test_the_noise_test_finds_any_factor(world: int) -> None:
    subject, setup = tiny_subject(), replace(Setup(), noiser=partial(DividedNoise, world=world))
    assert not check_noise(setup, subject.model, subject.dataset, subject.loss).passed
