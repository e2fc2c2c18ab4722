"""What a run of the demo found out, as plain frozen data, and whether it counts as a success."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from privtensors.core.meter import Reading
    from privtensors.policy import Explanation

LOGIT_TOLERANCE: Final = 0.05
"""A private logit further than this from the plain one fails the run: the model's activations left the protocols' ranges."""


@dataclass(frozen=True)
class Text:
    """A text to classify; ``label`` is its true class where that is known."""

    text: str
    label: str | None = None


@dataclass(frozen=True)
class Answer:
    """Both answers for one text.

    Attributes:
        text: The text.
        label: Its true class, or None.
        tokens: How many tokens of it the model read.
        truncated: Whether there were more.
        plain: Class by the plain model.
        private: Class by the private model.
        plain_confidence: Probability of ``plain``.
        private_confidence: Probability of ``private``.
        plain_margin: Largest plain logit less the second largest.
        logit_error: Largest absolute difference of a private logit and its plain one.
        plain_logits: One per class.
        private_logits: One per class.
    """

    text: str
    label: str | None
    tokens: int
    truncated: bool
    plain: str
    private: str
    plain_confidence: float
    private_confidence: float
    plain_margin: float
    logit_error: float
    plain_logits: tuple[float, ...]
    private_logits: tuple[float, ...]


@dataclass(frozen=True)
class Cost:
    """What a stretch of private work took.

    Attributes:
        forwards: Model calls; 0 for the set-up.
        offline_seconds: Wall seconds for correlated randomness.
        online_seconds: The other wall seconds.
        cpu_seconds: CPU seconds of all parties and the dealer together.
        rounds: Sequential exchanges between the two computing parties.
        bytes_sent_per_party: Bytes that each computing party sends.
        dealer_bytes: Bytes that the dealer sends to the computing parties, offline.
    """

    forwards: int
    offline_seconds: float
    online_seconds: float
    cpu_seconds: float
    rounds: int
    bytes_sent_per_party: int
    dealer_bytes: int

    @classmethod
    def of(cls, forwards: int, spent: Reading, wall: float, cpu: float) -> Cost:
        online = max(0.0, wall - spent.offline_seconds)
        return cls(forwards, spent.offline_seconds, online, cpu, spent.rounds, spent.bytes_sent, spent.dealer_bytes)


@dataclass(frozen=True)
class Training:
    """What was trained, on what, in which time.

    Attributes:
        reviews: Number of training reviews.
        trained_parameters: Of the last layer, the pooler and the classifier.
        epochs: Passes over the reviews.
        accuracy: Fraction of the training reviews that end up right, with dropout off.
        seconds: Wall seconds, the frozen layers included.
        cpu_seconds: CPU seconds of the same.
    """

    reviews: int
    trained_parameters: int
    epochs: int
    accuracy: float
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class LedgerVerdict:
    """What the ledger holds after the run; its chain was verified.

    Attributes:
        path: The file.
        rows: All rows, each of them checked.
        rows_of_this_run: Reveals of this run; one per forward, or the run has failed.
        head: ``INDEX:HASH``, to be noted elsewhere.
    """

    path: str
    rows: int
    rows_of_this_run: int
    head: str


@dataclass(frozen=True)
class Job:
    """Everything a run of the demo found out.

    Attributes:
        model: Name of the model.
        model_class: Its transformers class.
        parameters: How many it has.
        max_tokens: How much of a text it reads.
        training: How its head was trained; None for the user's own model.
        check_texts: Held-out reviews on which the plain model alone was checked; 0 for none.
        check_accuracy: Fraction of them it got right.
        answers: One per text, in the order given.
        setup: Sharing the weights, once per model.
        forwards: All forwards together.
        ledger: Its verdict.
        explanation: Who sees what.
        simulated: Whether one process held every party's view.
    """

    model: str
    model_class: str
    parameters: int
    max_tokens: int
    training: Training | None
    check_texts: int
    check_accuracy: float | None
    answers: tuple[Answer, ...]
    setup: Cost
    forwards: Cost
    ledger: LedgerVerdict
    explanation: Explanation
    simulated: bool

    @property
    def flips(self) -> tuple[Answer, ...]:
        """Texts whose private class differs from the plain one."""
        return tuple(answer for answer in self.answers if answer.plain != answer.private)

    @property
    def largest_logit_error(self) -> float:
        return max(answer.logit_error for answer in self.answers)

    def accuracy(self, which: str) -> float | None:
        """Fraction of right answers of ``"plain"`` or ``"private"`` where true classes are known, else None."""
        known = [answer for answer in self.answers if answer.label is not None]
        return sum(getattr(a, which) == a.label for a in known) / len(known) if known else None

    def failures(self) -> tuple[str, ...]:
        """Why the run does not count as a success; empty where it does."""
        error = self.largest_logit_error
        found = [
            f"the answer flipped from {a.plain} to {a.private} although the plain margin {a.plain_margin:.4g} is not under twice"
            f" the largest logit error {error:.4g}"
            for a in self.flips
            if not a.plain_margin < 2 * error
        ]
        if not error <= LOGIT_TOLERANCE:  # also true of NaN
            found.append(f"the largest logit error {error:.4g} is over {LOGIT_TOLERANCE}: activations left the ranges of the protocols")
        if self.ledger.rows_of_this_run != self.forwards.forwards:
            found.append(f"the ledger holds {self.ledger.rows_of_this_run} reveals of this run for {self.forwards.forwards} forwards")
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """JSON values; keys carry their units."""
        known = [answer for answer in self.answers if answer.label is not None]
        count = self.forwards.forwards
        per_forward = {
            name: getattr(self.forwards, name) / count
            for name in ("offline_seconds", "online_seconds", "cpu_seconds", "rounds", "bytes_sent_per_party", "dealer_bytes")
        }
        failures = self.failures()
        return {
            "ok": not failures,
            "failures": list(failures),
            "simulated": self.simulated,
            "model": {"name": self.model, "class": self.model_class, "parameters": self.parameters, "max_tokens": self.max_tokens},
            "training": dataclasses.asdict(self.training) if self.training else None,
            "plain_check": {"texts": self.check_texts, "accuracy_fraction": self.check_accuracy},
            "answers": [dataclasses.asdict(answer) for answer in self.answers],
            "summary": {
                "texts": len(self.answers),
                "agreeing_texts": len(self.answers) - len(self.flips),
                "texts_with_known_label": len(known),
                "plain_accuracy_fraction": self.accuracy("plain"),
                "private_accuracy_fraction": self.accuracy("private"),
                "largest_logit_error": self.largest_logit_error,
                "logit_error_limit": LOGIT_TOLERANCE,
                "smallest_plain_margin": min(answer.plain_margin for answer in self.answers),
            },
            "cost": {
                "setup_once_per_model": dataclasses.asdict(self.setup),
                "forwards": dataclasses.asdict(self.forwards),
                "mean_per_forward": per_forward,
            },
            "who_sees_what": self.explanation.to_dict(),
            "ledger": {**dataclasses.asdict(self.ledger), "verified": True},
        }
