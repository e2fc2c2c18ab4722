"""The planted-bug table: every bug against every detector, and the right set-up against all of them."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from privtensors.accounting import Ledger
from privtensors.audit.detectors import SIGNIFICANCE, check_noise, check_oracle, check_sampler
from privtensors.audit.dp import AuditOptions, AuditResult, audit_run
from privtensors.audit.findings import Finding
from privtensors.audit.planted import Bug, planted_bugs
from privtensors.audit.setup import Setup
from privtensors.audit.subject import Subject, tiny_subject
from privtensors.audit.trainers import train_by
from privtensors.backends.dp.technique import DP
from privtensors.hf.fit_options import FitOptions
from privtensors.train.calibration import noise_for
from privtensors.train.preparation import Promise

DETECTORS: Final = ("oracle", "noise", "sampler", "audit")
RIGHT: Final = "nothing (the right set-up)"
_LEARNING_RATE: Final = 0.01


@dataclass(frozen=True)
class Schedule:
    """The run that is audited.

    Attributes:
        epsilon: Claimed for it.
        delta: Its δ; times the number of canaries it must stay small.
        rate: Sampling rate.
        steps: Number of steps.
        clipping_norm: C.
    """

    epsilon: float = 2.0
    delta: float = 1e-6
    rate: float = 0.2
    steps: int = 50
    clipping_norm: float = 1.0

    def noise_multiplier(self) -> float:
        """sigma with which it costs ``epsilon``; takes seconds."""
        return noise_for(self.epsilon, self.delta, self.rate, self.steps)

    def promise(self, noise_multiplier: float | None = None) -> Promise:
        """As a technique: at this noise, or calibrated."""
        target = self.epsilon if noise_multiplier is None else None
        return DP(dataset="audit", epsilon=target, noise_multiplier=noise_multiplier, delta=self.delta, clipping_norm=self.clipping_norm)

    def options(self, units: int) -> FitOptions:
        """For a data set of so many units, canaries included."""
        size = max(1, round(self.rate * units))
        return FitOptions(steps=self.steps, batch_size=size, microbatch=512, learning_rate=_LEARNING_RATE)


def check_audit(
    setup: Setup,
    subject: Subject,
    schedule: Schedule,
    noise_multiplier: float,
    *,
    options: AuditOptions | None = None,
    seed: int | None = None,
) -> tuple[Finding, AuditResult]:
    """A one-run audit of ``setup`` as a detector: it fails where the claim is refuted, on a ledger of its own.

    Args:
        setup: What is checked.
        subject: Trained in place.
        schedule: Of the run.
        noise_multiplier: ``schedule.noise_multiplier()``.
        options: Default: 2000 canaries, 400 guesses, confidence 1 - 10^-4.
        seed: Of the coins, for tests.
    """
    chosen = AuditOptions(confidence=1 - SIGNIFICANCE) if options is None else options
    units = chosen.canaries + len(next(iter(subject.dataset.values())))
    with tempfile.TemporaryDirectory() as folder:
        train = train_by(setup, schedule.promise(noise_multiplier), schedule.options(units), Ledger(Path(folder) / "audit.sqlite"))
        found = audit_run(subject.model, subject.dataset, subject.loss, train, schedule.clipping_norm, chosen, seed=seed)
    detail = f"ε at least {found.bound:.2f}, claimed {found.claim.epsilon:.2f}"
    return Finding("audit", found.passed, detail, found.bound, found.claim.epsilon), found


@dataclass(frozen=True)
class BugRow:
    """One bug and what every detector said.

    Attributes:
        bug: Its name; :data:`RIGHT` for the set-up without a bug.
        story: How it happens.
        caught_by: The detectors that must find it.
        findings: What each said.
    """

    bug: str
    story: str
    caught_by: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def fired(self) -> tuple[str, ...]:
        """The detectors that found something."""
        return tuple(one.detector for one in self.findings if not one.passed)

    @property
    def as_expected(self) -> bool:
        """Whether the named detectors found it; on the right set-up: whether none did."""
        return set(self.caught_by) <= set(self.fired) if self.caught_by else not self.fired

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "findings": [asdict(one) for one in self.findings], "as_expected": self.as_expected}


def bug_table(advance: Callable[[str], None] = lambda name: None, *, schedule: Schedule | None = None) -> tuple[BugRow, ...]:
    """Plant every bug and run every detector on it. Takes about half a minute.

    Args:
        advance: Called with a bug's name before it is planted.
        schedule: Of the audited runs.
    """
    chosen = Schedule() if schedule is None else schedule
    sigma = chosen.noise_multiplier()
    right = Bug(RIGHT, "", (), lambda setup: setup)
    rows = []
    for bug in (right, *planted_bugs()):
        advance(bug.name)
        setup = bug.plant(Setup())
        rows.append(BugRow(bug.name, bug.story, bug.caught_by, run_detectors(setup, chosen, sigma)))
    return tuple(rows)


def run_detectors(setup: Setup, schedule: Schedule, noise_multiplier: float) -> tuple[Finding, ...]:
    """Every detector on one set-up, with the small model."""
    subject = tiny_subject()
    checks = quick_checks(setup, subject)
    with quiet():
        audit, _ = check_audit(setup, subject, schedule, noise_multiplier)
    return (*checks, audit)


def quick_checks(setup: Setup, subject: Subject) -> tuple[Finding, ...]:
    """Every detector but the audit."""
    model, data, loss = subject.model, subject.dataset, subject.loss
    return check_oracle(setup, model, data, loss), check_noise(setup, model, data, loss), check_sampler(setup)


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings of this package meanwhile: runs on public data need none."""
    log = logging.getLogger("privtensors")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
