"""The noise of a step: its size, and that no two entries, tensors, steps or objects share it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from privtensors.errors import ParameterError
from privtensors.train.noising import GaussianNoiser

SIZE = 200_000


def drawn(noiser: GaussianNoiser, clipping_norm: float = 0.5) -> dict[str, Tensor]:
    sums = {"a": torch.zeros(SIZE // 2, 2), "b": torch.zeros(SIZE)}
    noiser.add(sums, clipping_norm)
    return sums


def test_the_standard_deviation_is_sigma_times_the_clipping_norm() -> None:
    for sigma, norm in ((1.0, 0.5), (3.0, 2.0)):
        for x in drawn(GaussianNoiser(sigma), norm).values():
            z = x.double().flatten() / (sigma * norm)
            assert abs(z.mean()) < 5 / math.sqrt(SIZE) and abs(z.var() - 1) < 5 * math.sqrt(2 / SIZE)
            assert abs((z**4).mean() - 3) < 5 * math.sqrt(96 / SIZE)  # normal, not only of the right width


def test_noise_is_never_shared() -> None:
    noiser = GaussianNoiser(1.0)
    torch.manual_seed(0)
    first = drawn(noiser)
    torch.manual_seed(0)
    parts = [*first.values(), *drawn(noiser).values(), *drawn(GaussianNoiser(1.0)).values()]
    flat = torch.stack([part.flatten() for part in parts])
    correlations = torch.corrcoef(flat) - torch.eye(len(parts))
    assert correlations.abs().max() < 5.5 / math.sqrt(SIZE)
    neighbours = torch.corrcoef(torch.stack([flat[0][1:], flat[0][:-1]]))[0, 1]
    assert abs(neighbours) < 5 / math.sqrt(SIZE)


def test_noise_is_added_to_what_is_there() -> None:
    sums = {"a": torch.full((1000,), 7.0)}
    GaussianNoiser(1e-3).add(sums, 1.0)
    assert 0 < (sums["a"] - 7).abs().max() < 0.01


def test_without_noise_nothing_changes() -> None:
    assert not any(x.any() for x in drawn(GaussianNoiser(0.0)).values())


@pytest.mark.parametrize("sigma", [-1.0, math.nan, math.inf])
def test_bad_input(sigma: float) -> None:
    with pytest.raises(ParameterError):
        GaussianNoiser(sigma)
