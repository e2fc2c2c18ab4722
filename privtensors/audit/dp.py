"""The audit of a private run: train with canaries, guess who was in, and hold the claim against what the guesses refute."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from privtensors.accounting import SampledGaussian
from privtensors.audit.canaries import CanaryData, CanaryModel, Claim, ModelLoss, Observer, canary_loss, scores
from privtensors.audit.guessing import Outcome, check_guesses, play
from privtensors.audit.one_run import check_confidence, epsilon_lower_bound
from privtensors.audit.tradeoff import PrivacyCurve, curve_p_value, refutes, schedule_lower_bound
from privtensors.audit.trainers import Job, Trainer
from privtensors.errors import AuditError, InvalidInput


@dataclass(frozen=True)
class AuditOptions:
    """How a run is audited.

    Attributes:
        canaries: m. More give larger bounds; each is one unit of the data set and one more parameter.
        guesses: How many guesses, fixed before the run; None for a fifth of the canaries. Several are tried together, and the
            confidence is divided among them.
        confidence: That every bound of the audit together is right.
    """

    canaries: int = 2000
    guesses: tuple[int, ...] | None = None
    confidence: float = 0.999

    def __post_init__(self) -> None:
        if type(self.canaries) is not int or self.canaries < 10:
            raise InvalidInput(f"{self.canaries!r} canaries", where="audit, canaries", fix="Give at least 10; 1000 or more say something")
        for one in self.numbers:
            check_guesses(one, self.canaries)
        check_confidence(self.confidence)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of guesses that are tried."""
        return (self.canaries // 10 * 2,) if self.guesses is None else self.guesses


@dataclass(frozen=True)
class AuditResult:
    """What an audit found.

    Attributes:
        claim: What the run says of itself.
        outcomes: Of the guessing games.
        lower_bound: ε at the claim's δ that the run does not keep below, by the theorem of Steinke, Nasr and Jagielski (2023),
            which assumes nothing of the mechanism.
        schedule_bound: The same by the f-DP theorem (Mahloujifar, Melis and Chaudhuri 2025), for a mechanism that is the
            claimed schedule at another noise; None without noise, where there is no schedule to compare with.
        p_value: Of the claimed mechanism, an upper bound, corrected for everything that was tried; None without noise.
        confidence: That both bounds, together, are below the true ε.
    """

    claim: Claim
    outcomes: tuple[Outcome, ...]
    lower_bound: float
    schedule_bound: float | None
    p_value: float | None
    confidence: float

    @property
    def bound(self) -> float:
        """The larger of the bounds."""
        return max(self.lower_bound, self.schedule_bound or 0.0)

    @property
    def passed(self) -> bool:
        """Whether nothing that was found contradicts the claim."""
        return self.bound <= self.claim.epsilon

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; an infinite ε is the text "inf"."""
        found = asdict(self)
        if math.isinf(self.claim.epsilon):
            found["claim"]["epsilon"] = "inf"
        return {**found, "outcomes": [asdict(one) for one in self.outcomes], "passed": self.passed}

    def __str__(self) -> str:
        verdict = "the claim stands" if self.passed else "the claim is REFUTED"
        refined = "" if self.schedule_bound is None else f", {self.schedule_bound:.2f} for this schedule"
        return (
            f"claimed ε {self.claim.epsilon:.3g} at δ {self.claim.delta:.1g}; ε is at least {self.lower_bound:.2f}{refined} "
            f"with confidence {self.confidence:g}: {verdict}"
        )


def audit_run(
    model: nn.Module,
    dataset: Any,
    loss: ModelLoss,
    train: Trainer,
    clipping_norm: float,
    options: AuditOptions | None = None,
    *,
    seed: int | None = None,
) -> AuditResult:
    """Train ``model`` once with canaries and bound from below the ε that the run really had.

    The adversary is the one that DP-SGD is accounted against: it sees the noisy gradient of every step, the model and all data
    but the coins. A run spends privacy like any other and is charged like any other: canaries make it no more private.

    Args:
        model: Trained in place, and given back without the canary layer.
        dataset: The user's examples, as for ``fit``: mappings by index, or a mapping of columns.
        loss: Of ``model`` and a batch of ``dataset``, the mean over examples, computed from what the model returns.
        train: The run: :func:`~privtensors.audit.trainers.train_by_fit` or ``train_by``.
        clipping_norm: C of the run.
        options: How hard to look.
        seed: Of the coins, for tests; default fresh ones.

    Raises:
        AuditError: Canaries do not work with this model or loss, or the run was not observed.
        InvalidInput, PrivTensorsError: As the run.
    """
    chosen = AuditOptions() if options is None else options
    coins = np.random.default_rng(seed).random(chosen.canaries) < 0.5
    wrapped = CanaryModel(model, chosen.canaries, loss)
    try:
        data = CanaryData(dataset, coins, clipping_norm)
        observer = Observer(wrapped.canaries)
        claim = train(Job(wrapped, data, canary_loss, observer.watch))
        seen = observer.gradients
    finally:
        wrapped.release()
    if claim.clipping_norm != clipping_norm or len(seen) != claim.steps:
        what = f"{len(seen)} steps at clipping norm {clipping_norm:g} were observed, {claim.steps} at {claim.clipping_norm:g} are claimed"
        raise AuditError(what, where="audit", fix="Give the run's own clipping norm, and step the optimizer once per step")
    return judge(seen, coins, claim, chosen)


def judge(seen: Tensor, coins: NDArray[np.bool_], claim: Claim, options: AuditOptions) -> AuditResult:
    """The bounds from what an adversary saw.

    Args:
        seen: The canaries' part of the private gradients, (steps, m).
        coins: (m,).
        claim: Of the run.
        options: As for the run.
    """
    found = scores(seen, claim)
    outcomes = tuple(play(found, coins, number) for number in options.numbers)
    noisy = claim.noise_multiplier > 0 and claim.steps > 0
    # Every bound that is quoted shares the chance of error: a union bound.
    tried = len(outcomes) * (2 if noisy else 1)
    each = 1 - (1 - options.confidence) / tried
    lower = max(epsilon_lower_bound(one, claim.delta, each) for one in outcomes)
    if not noisy:
        return AuditResult(claim, outcomes, lower, None, None, options.confidence)
    schedule = SampledGaussian(claim.noise_multiplier, claim.rate, claim.steps)
    curve = PrivacyCurve.sampled_gaussian(schedule)
    p_value = min(1.0, len(outcomes) * min(curve_p_value(one, curve) for one in outcomes))
    refined = max(schedule_lower_bound(one, schedule, claim.delta, each) for one in outcomes)
    if not any(refutes(one, curve, 1 - each) for one in outcomes):
        refined = min(refined, claim.epsilon)  # the two differ only by the search's width
    return AuditResult(claim, outcomes, lower, refined, p_value, options.confidence)
