"""One training step by each contender: AdamW, float32, the same batch again and again. And its clipped sum, without noise."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, Final, Literal, Protocol

import torch
from torch import Tensor, nn

from privtensors.testing.dp_models import Trial
from privtensors.train.bounding import make_bounder
from privtensors.train.calibration import Plan
from privtensors.train.dp_sgd import DPSGD
from privtensors.train.noising import GaussianNoiser
from privtensors.train.roles import Batch
from privtensors.train.sampling import PoissonSampler

CLIPPING_NORM: Final = 1.0
NOISE_MULTIPLIER: Final = 0.5
LEARNING_RATE: Final = 1e-5


class Stopwatch:
    """CPU and wall seconds of what ran under it."""

    def __init__(self) -> None:
        self.cpu_s = self.wall_s = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.cpu_s += time.process_time() - cpu
        self.wall_s += time.perf_counter() - wall


class Stepper(Protocol):
    """A way to train.

    Attributes:
        noise: What adding noise took so far.
    """

    noise: Stopwatch

    def step(self) -> None:
        """One step: gradients, noise, update."""

    def sums(self, batch: Batch, examples: int, clipping_norm: float) -> Mapping[str, Tensor]:
        """The clipped gradients' sum of a batch by parameter name, without noise. After it no step is taken."""

    def facts(self) -> list[str]:
        """What a reader must know."""


def adamw(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)


class Plain:
    """Without privacy."""

    def __init__(self, trial: Trial) -> None:
        self.noise, self._trial, self._optimizer = Stopwatch(), trial, adamw(trial.model)

    def step(self) -> None:
        self._trial.loss(self._trial.batch).backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def sums(self, batch: Batch, examples: int, clipping_norm: float) -> Mapping[str, Tensor]:
        raise NotImplementedError("it clips nothing")

    def facts(self) -> list[str]:
        return []


class _OneBatch:
    """A data set whose every sample is the same batch: :class:`~privtensors.train.data.Units` without the cost of data."""

    def __init__(self, batch: Batch, examples: int) -> None:
        self._batch, self._examples = batch, examples

    def __len__(self) -> int:
        return self._examples

    def batches(self, drawn: Tensor, size: int) -> Iterator[tuple[Batch, int]]:
        yield self._batch, self._examples

    def rows(self) -> Iterator[object]:
        return iter(())


class _TimedNoiser:
    """Our noise, on a stopwatch."""

    def __init__(self, watch: Stopwatch) -> None:
        self.noise_multiplier, self._watch, self._noiser = NOISE_MULTIPLIER, watch, GaussianNoiser(NOISE_MULTIPLIER)

    def add(self, sums: Mapping[str, Tensor], clipping_norm: float) -> None:
        with self._watch.running():
            self._noiser.add(sums, clipping_norm)


class Ours:
    """The private step of :class:`~privtensors.train.dp_sgd.DPSGD`, noise from the cryptographic generator included."""

    def __init__(self, trial: Trial, engine: Literal["auto", "loop"]) -> None:
        self.noise, self._trial = Stopwatch(), trial
        self._bounder = make_bounder(trial.model, CLIPPING_NORM, engine=engine)
        self._optimizer = adamw(trial.model)
        self._drawn = torch.arange(trial.examples)
        plan = Plan(
            noise_multiplier=NOISE_MULTIPLIER, rate=1.0, accounted=1.0, expected=float(trial.examples), steps=1, delta=1e-5,
            clipping_norm=CLIPPING_NORM,
        )  # fmt: skip
        self._private = DPSGD(
            trial.model, _OneBatch(trial.batch, trial.examples), trial.loss, PoissonSampler(trial.examples, 1.0), self._bounder,
            _TimedNoiser(self.noise), plan, microbatch=trial.examples,
        )  # fmt: skip

    def step(self) -> None:
        self._private.gradients(self._drawn)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def sums(self, batch: Batch, examples: int, clipping_norm: float) -> Mapping[str, Tensor]:
        self._bounder.clipping_norm = clipping_norm
        self._bounder.accumulate(batch, self._trial.loss, examples)
        return self._bounder.take()

    def facts(self) -> list[str]:
        """The engine it ended with, and in how many modules each method bounds."""
        counts = Counter(choice.method for choice in self._bounder.describe())
        return [f"engine {self._bounder.engine}; modules by method: {', '.join(f'{method} {count}' for method, count in counts.items())}"]


class Opacus:
    """Opacus as its users run it, on a model that it does not wrap; the batch-1 ids of positions made one row per example for it.

    Its default noise: torch's generator, not a cryptographic one.
    """

    def __init__(self, trial: Trial, mode: Literal["hooks", "ghost"]) -> None:
        from opacus import PrivacyEngine  # type: ignore[import-untyped]

        self.noise, self._trial, self._ghost = Stopwatch(), trial, mode == "ghost"
        expand_positions(trial.model)
        data = torch.utils.data.TensorDataset(torch.zeros(trial.examples, 1))
        made = PrivacyEngine(accountant="rdp").make_private(
            module=trial.model, optimizer=adamw(trial.model), data_loader=torch.utils.data.DataLoader(data, batch_size=trial.examples),
            noise_multiplier=NOISE_MULTIPLIER, max_grad_norm=CLIPPING_NORM, poisson_sampling=False, grad_sample_mode=mode,
            wrap_model=False, criterion=nn.CrossEntropyLoss(),
        )  # fmt: skip
        self._hooks: Any = made[0]
        self._optimizer: Any = made[1]
        self._optimizer.add_noise = timed(self._optimizer.add_noise, self.noise)

    def step(self) -> None:
        self._backward(self._trial.batch)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def sums(self, batch: Batch, examples: int, clipping_norm: float) -> Mapping[str, Tensor]:
        self._optimizer.noise_multiplier, self._optimizer.max_grad_norm = 0.0, clipping_norm
        self._optimizer.expected_batch_size = examples
        self._hooks.max_grad_norm = clipping_norm
        self._backward(batch)
        self._optimizer.pre_step()
        return {name: p.grad * examples for name, p in self._trial.model.named_parameters() if p.requires_grad and p.grad is not None}

    def _backward(self, batch: Batch) -> None:
        if self._ghost:
            from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping  # type: ignore[import-untyped]

            DPTensorFastGradientClipping(self._hooks, self._optimizer, self._trial.losses(batch)).backward()
        else:
            self._trial.loss(batch).backward()  # type: ignore[no-untyped-call]

    def facts(self) -> list[str]:
        return [f"version {version('opacus')}; its default noise, from torch's generator instead of a cryptographic one"]


def timed(call: Callable[[], None], watch: Stopwatch) -> Callable[[], None]:
    def measured() -> None:
        with watch.running():
            call()

    return measured


def expand_positions(model: nn.Module) -> None:
    """Have every trained embedding see one row of ids per example: Opacus 1.6 fails on the single row that transformers passes."""
    examples = 1

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal examples
        examples = len(kwargs["input_ids"])

    def expand(module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        ids = args[0][None] if args[0].dim() == 1 else args[0]
        return ((ids.expand(examples, *ids.shape[1:]) if len(ids) == 1 else ids).contiguous(),)

    model.register_forward_pre_hook(note, with_kwargs=True)
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.weight.requires_grad:
            module.register_forward_pre_hook(expand)
