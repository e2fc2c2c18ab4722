"""Stages of a model's life, phases of one stage, and the roles that techniques fill."""

from __future__ import annotations

from enum import IntEnum, StrEnum


class Stage(StrEnum):
    """A stage of a model's life. A policy names a set of techniques for each."""

    TRAIN = "train"
    INFER = "infer"
    RELEASE = "release"


class Phase(IntEnum):
    """The order in which the transitions of one stage run, whatever the order in which techniques were listed."""

    SAMPLE = 1
    BOUND = 2
    NOISE_OWNER = 3
    SHARE = 4
    COMPUTE = 5
    NOISE_CENTRAL = 6
    REVEAL = 7
    RELEASE = 8

    def __str__(self) -> str:
        return _PHASE_TEXT[self.value - 1]


_PHASE_TEXT = (
    "sample",
    "bound",
    "noise at the owner",
    "share/encrypt",
    "aggregate/compute",
    "central noise",
    "reveal",
    "release",
)


class Role(StrEnum):
    """What at most one technique of a stage may do. A plugin may use further names: a role is any string."""

    LINEAR = "linear layers"
    NONLINEAR = "nonlinear layers"
    TRAINER = "trainer"
    SAMPLER = "sampler"
    BOUNDER = "bounder"
    NOISER = "noiser"
    AGGREGATOR = "aggregator"
