"""A store with bundles of toy programs, made without a model."""

from __future__ import annotations

from pathlib import Path

import torch

from privtensors.backends.mpc.program import Program, Tracer
from privtensors.core.meter import Meter
from privtensors.deploy.bundle import Wanted
from privtensors.deploy.store import Store, fill

TERMS = {"policy": "p", "model layout": "m"}
KIND = "ab" * 32


def double(value: torch.Tensor) -> torch.Tensor:
    return 2 * value


def toy_programs(size: int = 5) -> tuple[Program, Program]:
    """A set-up that draws one mask, and a request that shares an expression of it and of a mask of its own."""
    tracer = Tracer(Meter())
    tracer.begin()
    weight = tracer.mask((size,))
    setup = tracer.end()
    tracer.begin()
    own = tracer.mask((size,))
    tracer.share(torch.mul, weight.hidden, own.hidden, shape=(size,))
    return setup, tracer.end()


def filled(folder: Path, *, count: int = 3, bundles: int = 1, size: int = 5) -> tuple[Program, Program]:
    """Deal bundles of ``count`` toy requests into ``folder``; the programs."""
    setup, request = toy_programs(size)
    for _ in range(bundles):
        fill(folder, TERMS, setup, [Wanted(KIND, request, count)], lambda size: None)
    return setup, request


def opened(folder: Path) -> Store:
    """The store, by the dealer of the toy deployment."""
    return Store(folder, TERMS, toy_programs()[0].digest)
