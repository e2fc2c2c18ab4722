"""Worker of one contender: ``python -m tests.bench.dp_engines.worker {plain,ours,loop,ghost,hooks}``."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import torch

from privtensors.core.allocator import keep_freed_memory
from privtensors.testing.dp_models import Trial
from privtensors.testing.dp_oracle import difference, oracle
from tests.bench.dp_engines.settings import SETTINGS, Setting
from tests.bench.dp_engines.steppers import Opacus, Ours, Plain, Stepper, Stopwatch
from tests.bench.peers.frames import Arrays, Handler, Header, serve

ORACLE_EXAMPLES: Final = 4

STEPPERS: Final[Mapping[str, Callable[[Trial], Stepper]]] = MappingProxyType(
    {
        "plain": Plain,
        "ours": lambda trial: Ours(trial, "auto"),
        "loop": lambda trial: Ours(trial, "loop"),
        "ghost": lambda trial: Opacus(trial, "ghost"),
        "hooks": lambda trial: Opacus(trial, "hooks"),
    }
)


def step(stepper: Stepper) -> dict[str, float]:
    """CPU and wall seconds of one step, and of the noise in it."""
    watch, noise = Stopwatch(), stepper.noise
    cpu, wall = noise.cpu_s, noise.wall_s
    with watch.running():
        stepper.step()
    return {"cpu_s": watch.cpu_s, "wall_s": watch.wall_s, "noise_cpu_s": noise.cpu_s - cpu, "noise_wall_s": noise.wall_s - wall}


def exactness(stepper: Stepper, setting: Setting, trial: Trial) -> dict[str, float]:
    """Without noise, on the first examples and the initial weights, against one backward pass per example; C is the median norm."""
    batch = {name: value[:ORACLE_EXAMPLES] for name, value in trial.batch.items()}
    fresh = setting.trial(setting.model(), batch)
    truth = oracle(fresh)
    with torch.no_grad():
        for mine, initial in zip(trial.model.parameters(), fresh.model.parameters(), strict=True):
            mine.copy_(initial)
    error, worst = difference(stepper.sums(batch, fresh.examples, truth.clipping_norm), truth)
    return {"relative": error, "worst": worst}


def handler(role: str) -> Handler:
    """Commands ``load`` (with a setting and its batch), ``step``, ``exactness`` and ``facts``."""
    loaded: tuple[Stepper, Setting, Trial] | None = None
    stepped = False

    def handle(header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
        nonlocal loaded, stepped
        if header["do"] == "load":
            torch.set_num_threads(header["threads"])
            setting = SETTINGS[header["setting"]]
            trial = setting.trial(setting.model(), {name: torch.from_numpy(array) for name, array in arrays.items()})
            loaded = STEPPERS[role](trial), setting, trial
            return {"parameters": sum(p.numel() for p in trial.model.parameters() if p.requires_grad)}, {}
        assert loaded is not None
        if header["do"] == "exactness":
            return dict(exactness(*loaded)), {}
        if header["do"] == "facts":
            return {"facts": loaded[0].facts()}, {}
        try:
            spent = step(loaded[0])
        except (NotImplementedError, ValueError) as error:
            if stepped or role not in ("ghost", "hooks"):
                raise
            return {"refused": f"{type(error).__name__}: {error}"}, {}  # how Opacus says no
        stepped = True
        return dict(spent), {}

    return handle


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    keep_freed_memory()  # as the command line does, for all contenders alike
    serve(handler(sys.argv[1]))
