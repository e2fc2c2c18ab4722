"""The ``DP`` technique: training with clipped and noised gradients, and tensors that leave only with noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from privtensors.errors import ParameterError
from privtensors.policy.assets import Asset, Party
from privtensors.policy.facts import Bounded, Local, Noised, Sampled
from privtensors.policy.phases import Phase, Role, Stage
from privtensors.policy.state import Establishes, Has, Lacks, Need, Opens, State, Transition
from privtensors.policy.technique import Claim, Guarantee, Scene, Technique

PUBLIC: Final = "public"
"""Whoever is given what was released. Nothing that was not released may reach this party."""

TRAINED: Final = "trained weights"
STATISTICS: Final = "released statistics"
LARGEST_DELTA: Final = 1e-5
"""The δ where none is stated: min(1e-5, 1 / (10 n)) for n units."""

_RELATION: Final = "zero_out"
_LOCAL: Final = "only whoever holds the data in plain can bound what one unit adds"


@dataclass(frozen=True)
class Stated(Need):
    """A parameter that this stage cannot do without."""

    what: str
    stated: bool

    def met(self, state: State) -> bool:
        return self.stated

    def __str__(self) -> str:
        return self.what


@dataclass(frozen=True, kw_only=True)
class DP(Technique):
    """Differential privacy under zero-out neighbours: data sets that differ in one unit, whose contribution is replaced by zero.

    In ``Policy(train=[DP(...)])`` it is DP-SGD (Abadi et al. 2016): each unit's gradient is clipped to ``clipping_norm``, the sum
    gets Gaussian noise, and every step is charged to the ledger. In ``protect(table, DP(unit="row", ...))`` it is a tensor whose
    sensitivity is tracked through every operation and that leaves only with noise.

    Guarantee class: statistical, (ε, δ) for whoever sees what is released. The owner of the data sees everything.

    Attributes:
        dataset: The data's name; everything released from it adds up under that name. Mandatory.
        unit: Whose contribution is hidden. ``"example"``: one example of a training set, or one row of a table. ``"row"``: one row
            of a table. ``"user"``: everything of one user, named in ``user_column``.
        epsilon: ε that a training run may spend in all. State it or ``noise_multiplier``, not both. Infinite for a reference run
            without noise, which protects nothing and is refused for data that has a budget.
        delta: δ of it; default min(1e-5, 1 / (10 n)) for n units.
        clipping_norm: C, the L2 norm to which a unit's gradient is clipped.
        noise_multiplier: Standard deviation of a step's noise over C, in place of ``epsilon``.
        sampling: How a step's batch is drawn. ``"poisson"``: every unit by its own coin. ``"fixed"``: batches of one size.
        amplification: Whether ε counts on nobody learning who was sampled. Only Poisson sampling earns it.
        user_column: Column that names the user of an example; with ``unit="user"`` only.
        max_per_user: Most examples of one user that are used; with ``unit="user"`` only.
        bounds: Smallest and largest value that an entry of a protected tensor can have; entries are clamped to them. Without
            it, call ``clamp`` before anything is summed.

    Raises:
        ParameterError: A parameter is out of range or of a wrong type, or two contradict each other.
    """

    name: ClassVar[str] = "dp"
    backend: ClassVar[str | None] = "dp"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.TRAIN, Stage.RELEASE})
    guarantee: ClassVar[Guarantee] = Guarantee.STATISTICAL
    assumptions: ClassVar[tuple[str, ...]] = (
        "the owner of the data runs the mechanism as written and publishes nothing else that depends on the data",
        "neighbouring data sets differ in one unit, whose contribution is replaced by zero; their number is public",
        "AES in counter mode, keyed by the operating system, is as good as random",
        "everything released from the data is on one ledger under one name",
    )

    dataset: str
    unit: Literal["example", "row", "user"] = "example"
    epsilon: float | None = None
    delta: float | None = None
    clipping_norm: float = 1.0
    noise_multiplier: float | None = None
    sampling: Literal["poisson", "fixed"] = "poisson"
    amplification: bool = True
    user_column: str | None = None
    max_per_user: int | None = None
    bounds: tuple[float, float] | None = None

    def check(self) -> None:
        name = self.dataset
        if not (0 < len(name) <= 200 and name.isprintable() and name == name.strip()):
            raise ParameterError("must be 1 to 200 printable characters", where="DP.dataset", fix='e.g. dataset="reviews-2026"')
        for field in ("epsilon", "clipping_norm", "noise_multiplier"):
            value = getattr(self, field)
            reference = field == "epsilon" and value == math.inf
            if value is not None and not (0 < value < math.inf or reference):
                raise ParameterError(f"must be finite and above 0, got {value}", where=f"DP.{field}", fix="leave it out, or e.g. 1.0")
        if self.delta is not None and not 0 < self.delta < 1:
            raise ParameterError(f"must be between 0 and 1, got {self.delta}", where="DP.delta", fix="well below 1 / n, e.g. 1e-6")
        if self.epsilon is not None and self.noise_multiplier is not None:
            raise ParameterError(
                "given beside noise_multiplier: each follows from the other", where="DP.epsilon", fix="state one of the two"
            )
        self._check_user()
        if self.bounds is not None:
            low, high = self.bounds
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ParameterError(f"must be finite and increasing, got {self.bounds}", where="DP.bounds", fix="e.g. bounds=(0, 1)")

    def _check_user(self) -> None:
        if self.unit == "user":
            if self.user_column is None or self.max_per_user is None:
                fix = 'DP(unit="user", user_column="author", max_per_user=10, …)'
                raise ParameterError("a user's examples must be told apart and limited", where="DP.user_column, DP.max_per_user", fix=fix)
            if self.max_per_user < 1:
                raise ParameterError(f"must be at least 1, got {self.max_per_user}", where="DP.max_per_user", fix="e.g. max_per_user=10")
        elif self.user_column is not None or self.max_per_user is not None:
            what = f'limits users, but the unit is "{self.unit}"'
            raise ParameterError(what, where="DP.user_column, DP.max_per_user", fix='DP(unit="user", …), or drop it')

    def parties(self, stage: Stage) -> frozenset[str]:
        return frozenset({Party.CLIENT, PUBLIC})

    def claims(self, stage: Stage) -> frozenset[Claim]:
        return frozenset({Claim(Role.SAMPLER), Claim(Role.BOUNDER), Claim(Role.NOISER)}) if stage is Stage.TRAIN else frozenset()

    def owners(self, stage: Stage) -> Mapping[str, frozenset[str]]:
        return {Asset.GRADIENTS: frozenset({str(Party.CLIENT)})} if stage is Stage.TRAIN else {Asset.WEIGHTS: frozenset()}

    def transitions(self, scene: Scene) -> tuple[Transition, ...]:
        return self._train() if scene.stage is Stage.TRAIN else self._release()

    def hidden_from(self, scene: Scene) -> Mapping[str, frozenset[str]]:
        hidden = (Asset.EXAMPLES, Asset.LABELS, Asset.METRICS)
        released = TRAINED if scene.stage is Stage.TRAIN else STATISTICS
        gradients = (Asset.GRADIENTS,) if scene.stage is Stage.TRAIN else ()
        kept = () if scene.stage is Stage.TRAIN and self._is_reference else (released,)
        return {asset: frozenset({PUBLIC}) for asset in (*hidden, *gradients, *kept)}

    def remarks(self, scene: Scene) -> tuple[str, ...]:
        if scene.stage is Stage.RELEASE:
            return (
                "Every reveal names its own mechanism; the ledger adds them up per data set and unit",
                "Values that were not released stay in the process of their owner",
            )
        none = "epsilon is infinite: a reference run without noise, whose weights may say anything about the examples"
        free = "ε follows from the noise multiplier, the sampling and the number of steps; the ledger counts it"
        return (
            "The owner sees examples, gradients and every intermediate state; noise protects what is given away",
            "Metrics on private examples stay with the owner: a metric that leaves is a release of its own",
            *((free,) if self.epsilon is None else (none,) if self._is_reference else ()),
        )

    @property
    def _is_reference(self) -> bool:
        return self.epsilon == math.inf

    def _noised(self, asset: str) -> Establishes:
        epsilon = math.inf if self.epsilon is None else float(self.epsilon)
        return Establishes(Noised(asset, epsilon, self.delta or LARGEST_DELTA, self.unit, _RELATION, PUBLIC))

    def _train(self) -> tuple[Transition, ...]:
        held = (("party", str(Party.CLIENT)),)
        examples = Stated('unit must be "example" or "user"', self.unit != "row")
        draw = Transition(
            "sample every unit by its own coin",
            Phase.SAMPLE,
            (Has(Local, Asset.EXAMPLES, held),),
            # The rate is the batch size over the number of units, which a policy does not know.
            (Establishes(Sampled(Asset.EXAMPLES, 1.0, frozenset({PUBLIC}))),),
            "only whoever holds the examples can sample them in secret",
            "Let the client hold the training examples",
        )
        return (
            *((draw,) if self.sampling == "poisson" else ()),
            Transition(
                "clip the gradients",
                Phase.BOUND,
                (Has(Local, Asset.GRADIENTS, held), examples),
                (Establishes(Bounded(Asset.GRADIENTS, self.clipping_norm, self.unit)),),
                _LOCAL,
                'Let the client compute the gradients, per unit="example" or unit="user"',
            ),
            *(() if self._is_reference else (self._add_noise(),)),
            Transition(
                "release the trained weights",
                Phase.RELEASE,
                () if self._is_reference else (Has(Noised, TRAINED),),
                (Opens(TRAINED, PUBLIC, "run"), Opens(TRAINED, Party.CLIENT, "run")),
                "what was not noised may not leave",
            ),
        )

    def _add_noise(self) -> Transition:
        amount = Stated("epsilon or noise_multiplier must be stated", self.epsilon is not None or self.noise_multiplier is not None)
        sampled = (Has(Sampled, Asset.EXAMPLES),) if self.amplification else ()
        return Transition(
            "add noise to the sum",
            Phase.NOISE_CENTRAL,
            (Has(Bounded, Asset.GRADIENTS), Lacks(Noised, TRAINED), amount, *sampled),
            (self._noised(TRAINED),),
            "noise hides only what is bounded, and an amplified ε counts on Poisson sampling that nobody sees",
            "DP(epsilon=…, sampling='poisson'), or DP(amplification=False) to count every step in full",
        )

    def _release(self) -> tuple[Transition, ...]:
        # Nothing says here how much one unit adds: every operation tracks it, and a reveal without a bound is refused.
        norm = math.inf if self.bounds is None else max(map(abs, self.bounds))
        return (
            Transition(
                "track what one unit adds",
                Phase.BOUND,
                (
                    Has(Local, Asset.EXAMPLES, (("party", str(Party.CLIENT)),)),
                    Stated('unit must be "row" or "example"', self.unit != "user"),
                ),
                (Establishes(Bounded(Asset.EXAMPLES, norm, self.unit)),),
                _LOCAL,
                'DP(unit="row", …) for tables',
            ),
            Transition(
                "add noise to a statistic",
                Phase.NOISE_CENTRAL,
                (Has(Bounded, Asset.EXAMPLES), Lacks(Noised, STATISTICS)),
                (self._noised(STATISTICS),),
                "noise hides only what is bounded",
            ),
            Transition(
                "release statistics",
                Phase.RELEASE,
                (Has(Noised, STATISTICS),),
                (Opens(STATISTICS, PUBLIC, "reveal"), Opens(STATISTICS, Party.CLIENT, "reveal")),
                "what was not noised may not leave",
            ),
        )

    def why_not(self, stage: Stage) -> str:
        return f"DP does not support stage {stage}: noise hides what a training set or a table says, and a model's inputs are neither"
