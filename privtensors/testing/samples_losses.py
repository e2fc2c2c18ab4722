"""Samples of the loss rows, of what they are made of, and of their backward rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import torch

from privtensors.testing.samples_types import Sample, ramp, rand, sample

_a: Final = torch.ops.aten
_NONE, _MEAN, _SUM = 0, 1, 2


def _nll() -> list[Sample]:
    scores, labels = rand(5, 3, seed=70).log_softmax(-1), torch.tensor([0, 2, 1, 1, 0])
    row = _a.nll_loss_forward.default
    return [
        sample(row, "mean", scores, labels, None, _MEAN, -100, mixes=((0, 1), (0,), (1,))),
        sample(row, "each", scores, labels, None, _NONE, -100, mixes=((0, 1), (0,))),
        sample(row, "ignored", scores, torch.tensor([0, 2, -100, 1, 0]), None, _MEAN, -100, mixes=((0,),)),
        sample(row, "weights", scores, labels, torch.tensor([0.5, 1.0, 2.0]), _SUM, -100, mixes=((0,),)),
    ]


def _nll_backward() -> list[Sample]:
    scores, labels = rand(5, 3, seed=70).log_softmax(-1), torch.tensor([0, 2, 1, 1, 0])
    row, total = _a.nll_loss_backward.default, torch.tensor(5.0)
    return [
        sample(row, "mean", torch.tensor(0.7), scores, labels, None, _MEAN, -100, total, mixes=((0, 1, 2, 6), (0, 1), (0, 1, 6), (0,))),
        sample(row, "each", rand(5, seed=71), scores, labels, None, _NONE, -100, total, mixes=((0, 1, 2), (0, 1))),
    ]


def _bce() -> list[Sample]:
    x, soft, hard = ramp(-15, 15, 4, 8), rand(4, 8, seed=72).sigmoid(), (rand(4, 8, seed=73) > 0).float()
    row = _a.binary_cross_entropy_with_logits.default
    return [
        sample(row, "soft", x, soft, mixes=((0, 1), (0,), (1,))),
        sample(row, "hard", x, hard, None, None, _SUM, mixes=((0, 1), (0,))),
        sample(row, "odd", rand(3, 5, seed=74, scale=3.0), rand(3, 5, seed=75).sigmoid(), mixes=((0, 1), (0,))),
        sample(row, "weighted", x, soft, rand(4, 8, seed=76).abs(), None, _NONE, mixes=((0,), (0, 1))),
        sample(row, "positives", x, hard, None, torch.tensor([2.0] * 8), _NONE, mixes=((0,), (0, 1))),
    ]


def _elementwise(name: str, *options: float) -> list[Sample]:
    row = getattr(_a, name).default
    return [sample(row, "ramp", rand(4, 16, seed=77), ramp(-20, 20, 4, 16), *options)]


def _log_sigmoid_backward() -> list[Sample]:
    x = ramp(-20, 20, 4, 16)
    _, buffer = _a.log_sigmoid_forward.default(x)
    return [sample(_a.log_sigmoid_backward.default, "ramp", rand(4, 16, seed=78), x, buffer, mixes=((0, 1), (0,), (1,)))]


def _mse_backward() -> list[Sample]:
    x, y = rand(3, 5, seed=79), rand(3, 5, seed=80)
    row = _a.mse_loss_backward.default
    return [sample(row, "mean", torch.tensor(0.7), x, y, _MEAN), sample(row, "each", rand(3, 5, seed=81), x, y, _NONE)]


LOSSES: Final[Mapping[str, Callable[[], list[Sample]]]] = MappingProxyType(
    {
        "log": lambda: [sample(_a.log.default, "ramp", ramp(0.2, 150, 8, 33)), sample(_a.log.default, "large", ramp(200, 9e4, 40))],
        "softplus": lambda: [
            sample(_a.softplus.default, "ramp", ramp(-30, 30, 8, 16)),
            sample(_a.softplus.default, "beta", ramp(-9, 9, 32), 2.0),
        ],
        "log_sigmoid": lambda: [sample(_a.log_sigmoid_forward.default, "ramp", ramp(-30, 30, 8, 16))],
        "log_softmax": lambda: [
            sample(_a._log_softmax.default, "rows", rand(4, 5, seed=82, scale=4.0), -1, False),
            sample(_a._log_softmax.default, "two", rand(6, 2, seed=83, scale=9.0), 1, False),
            sample(_a._log_softmax.default, "first axis", rand(3, 4, seed=84), 0, False),
            sample(_a._log_softmax.default, "wide", ramp(-90, 90, 3, 5), -1, False),
        ],
        "nll_loss": _nll,
        "bce_with_logits": _bce,
        "mse_loss": lambda: [
            sample(_a.mse_loss.default, "mean", rand(3, 5, seed=85), rand(3, 5, seed=86)),
            sample(_a.mse_loss.default, "each", rand(3, 5, seed=85), rand(3, 5, seed=86), _NONE),
            sample(_a.mse_loss.default, "sum", rand(3, 5, seed=85), rand(3, 5, seed=86), _SUM),
        ],
        "softplus_backward": lambda: _elementwise("softplus_backward", 1.0, 20.0),
        "log_sigmoid_backward": _log_sigmoid_backward,
        "log_softmax_backward": lambda: [
            sample(
                _a._log_softmax_backward_data.default, "rows", rand(4, 5, seed=87), rand(4, 5, seed=88).log_softmax(-1), -1, torch.float32
            )
        ],
        "nll_loss_backward": _nll_backward,
        "mse_loss_backward": _mse_backward,
    }
)
