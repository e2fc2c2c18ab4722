"""The samplers against the distributions they claim: chi-square and Kolmogorov-Smirnov tests with fixed seeds, and known answers."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from scipy import stats

from privtensors.backends.dp.noise import discrete
from privtensors.backends.dp.noise.gaussian import STEPS, GaussianNoise
from privtensors.core.randomness import ByteStream
from privtensors.errors import InvalidInput, ParameterError

P = 1e-4  # of a right sampler failing; seeds are fixed, so a passing test stays one
COUNT = 200_000
KNOWN_GAUSSIAN = [-64, -1063, 540, -1007, -90, 800, -761, 589]
KNOWN_LAPLACE = [-80, 1897, 129, 3317, 3021, 4, 182, -78]


def stream(seed: int) -> ByteStream:
    return ByteStream(bytes([seed]) * 32)


def chi_square(sample: np.ndarray, law: dict[int, float]) -> float:
    """p-value of integers against a law, values expected fewer than 10 times put together."""
    common = {k: p for k, p in law.items() if p * len(sample) >= 10}
    observed = [int((sample == k).sum()) for k in common]
    expected = [p * len(sample) for p in common.values()]
    rest = len(sample) - sum(expected)
    if rest >= 10:
        observed.append(len(sample) - sum(observed))
        expected.append(rest)
    else:  # too rare to test for, so too rare to count
        expected = [e * sum(observed) / sum(expected) for e in expected]
    return float(stats.chisquare(observed, expected).pvalue)


@pytest.mark.parametrize("std", [1, 2, 5, 30])
def test_discrete_gaussian(std: int) -> None:
    weights = {k: math.exp(-(k**2) / (2 * std**2)) for k in range(-12 * std, 12 * std + 1)}
    total = sum(weights.values())
    sample = discrete.discrete_gaussian(stream(std), std, COUNT)
    assert chi_square(sample, {k: w / total for k, w in weights.items()}) > P


@pytest.mark.parametrize("scale", [1, 2, 7, 40])
def test_discrete_laplace(scale: int) -> None:
    q = math.exp(-1 / scale)
    law = {k: (1 - q) / (1 + q) * q ** abs(k) for k in range(-40 * scale, 40 * scale + 1)}
    assert chi_square(discrete.discrete_laplace(stream(100 + scale), scale, COUNT), law) > P


@pytest.mark.parametrize("scale", [1, 3, 20])
def test_rounded_laplace(scale: int) -> None:
    law = {k: float(stats.laplace.cdf(k + 0.5, scale=scale) - stats.laplace.cdf(k - 0.5, scale=scale)) for k in range(-400, 401)}
    assert chi_square(discrete.rounded_laplace(stream(200 + scale), scale, COUNT), law) > P


def test_on_the_grids_that_releases_use() -> None:
    std, scale = (1 << 23) + 12_345, (1 << 30) + 7
    assert stats.kstest(discrete.discrete_gaussian(stream(1), std, COUNT) / std, "norm").pvalue > P
    assert stats.kstest(discrete.rounded_laplace(stream(2), scale, COUNT) / scale, "laplace").pvalue > P
    low = discrete.discrete_gaussian(stream(3), std, COUNT) % 64
    assert chi_square(low, {k: 1 / 64 for k in range(64)}) > P, "the low bits of the noise are not uniform"


@pytest.mark.parametrize(("numerator", "denominator"), [(0, 1), (1, 7), (3, 3), (5, 2), (12, 5)])
def test_bernoulli_exp(numerator: int, denominator: int) -> None:
    sample = discrete.bernoulli_exp(stream(4), np.full(COUNT, numerator, dtype=np.int64), denominator)
    p = math.exp(-numerator / denominator)
    assert abs(sample.mean() - p) <= 5 * math.sqrt(p * (1 - p) / COUNT)


@pytest.mark.parametrize("bound", [1, 2, 3, 1000, (1 << 62) + 1])
def test_uniform_below(bound: int) -> None:
    sample = discrete.uniform_below(stream(5), bound, COUNT)
    assert sample.min() >= 0 and sample.max() < bound
    if bound > 1000:
        assert stats.kstest(sample / bound, "uniform").pvalue > P
    elif bound > 1:
        assert chi_square(sample, {k: 1 / bound for k in range(bound)}) > P


def test_known_answers() -> None:
    """The samplers are whole-number arithmetic on the byte stream: the same on every machine."""
    assert discrete.discrete_gaussian(stream(9), 1000, 8).tolist() == KNOWN_GAUSSIAN
    assert discrete.rounded_laplace(stream(9), 1000, 8).tolist() == KNOWN_LAPLACE
    # AES-256 in counter mode, key 9 repeated, counter 0: the first block is AES(key, 0).
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    block = Cipher(algorithms.AES(bytes([9]) * 32), modes.ECB()).encryptor().update(bytes(16))
    assert stream(9).words(2).tobytes() == block


@pytest.mark.parametrize("scale", [0, -1, 1 << 60, 2.5])
def test_impossible_scales(scale: int) -> None:
    for sample in (discrete.discrete_gaussian, discrete.rounded_laplace, discrete.geometric):
        with pytest.raises(ParameterError):
            sample(stream(1), scale, 1)


# --- noise for training ------------------------------------------------------------------------------------------------------


def drawn(count: int, seed: int = 7, std: float = 1.0) -> torch.Tensor:
    x = torch.zeros(count, dtype=torch.float64)
    GaussianNoise(bytes([seed]) * 32).add_(x, std)
    return x


def test_normal() -> None:
    x = drawn(2_000_000).numpy()
    assert stats.kstest(x[:500_000], "norm").pvalue > P
    inside, edges = np.histogram(x, bins=np.linspace(-4.5, 4.5, 91))
    expected = np.diff(stats.norm.cdf(edges)) * len(x)
    observed = np.append(inside, len(x) - inside.sum())
    assert stats.chisquare(observed, np.append(expected, len(x) - expected.sum())).pvalue > P
    assert abs(x.mean()) < 5 / math.sqrt(len(x)) and abs(x.var() - 1) < 5 * math.sqrt(2 / len(x))
    assert abs(stats.kurtosis(x)) < 5 * math.sqrt(24 / len(x))


def test_entries_are_independent() -> None:
    x = drawn(1_000_000)
    for lag in (1, 2, 1 << 15, 1 << 16):
        for y in (x, x.square() - 1):
            correlation = float((y[lag:] * y[:-lag]).mean() / y.var())
            assert abs(correlation) < 5 / math.sqrt(len(x) - lag), f"lag {lag}"


def test_the_tail_is_there() -> None:
    """Beyond 5.5 standard deviations: 53 more bits are drawn for radii that 31 bits cannot tell apart."""
    far = sum(int((drawn(5_000_000, seed).abs() > 5).sum()) for seed in range(4))
    mean = 20_000_000 * 2 * stats.norm.sf(5)
    assert abs(far - mean) < 5 * math.sqrt(mean)
    noise = GaussianNoise(bytes(32))
    smallest = np.full(1000, 0.5, dtype=np.float32)
    noise._refine(smallest)
    assert len(np.unique(smallest)) > 990 and (smallest > 0).all() and (smallest < 1).all()


def test_results_lie_on_the_grid() -> None:
    """Whatever the values are: which numbers can come out tells nothing about them."""
    for std in (1.0, 0.3, 1e-3):
        x = torch.randn(10_000, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 1e-5 + math.pi
        GaussianNoise(bytes(32)).add_(x, std)
        steps = x / (std / STEPS)
        assert (steps - steps.round()).abs().max() < 1e-4


def test_low_bits_do_not_depend_on_the_value() -> None:
    for value in (0.0, 0.1, 1e-9):
        x = torch.full((100_000,), value, dtype=torch.float64)
        GaussianNoise(bytes([3]) * 32).add_(x, 1.0)
        low = (x * STEPS).round().long().numpy() % 16
        assert chi_square(low, {k: 1 / 16 for k in range(16)}) > P


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_add(dtype: torch.dtype) -> None:
    x = torch.full((3, 40_000), 2.0, dtype=dtype).t()  # strides that allow no flat view
    before = x.data_ptr()
    GaussianNoise(bytes([1]) * 32).add_(x, 0.5)
    assert x.data_ptr() == before and x.dtype is dtype and x.is_contiguous() is False
    assert abs(float(x.float().mean()) - 2) < 0.01 and abs(float(x.float().std()) - 0.5) < 0.01


def test_small_tensors_share_no_noise() -> None:
    """Pieces of one chunk, of chunks prepared ahead, and whole chunks: nothing is handed out twice."""
    noise = GaussianNoise(bytes([2]) * 32)
    noise.prepare(70_000)
    pieces = [noise._take(size).copy() for size in (1, 384, 60_000, 65_536, 7, 65_536, 20_000, 3, 65_000, 65_536, 1)]
    everything = np.concatenate(pieces)
    # Of the 2^39 values that are likely, two in this many draws coincide with probability 0.1.
    assert len(np.unique(everything)) >= len(everything) - 2


def test_fill_and_gradients() -> None:
    x = torch.nn.Parameter(torch.full((1000,), 5.0))
    GaussianNoise(bytes(32)).fill_(x, 2.0)
    assert abs(float(x.detach().mean())) < 0.4 and abs(float(x.detach().std()) - 2) < 0.3 and x.grad_fn is None
    empty = torch.zeros(0)
    GaussianNoise().add_(empty, 1.0)
    assert torch.equal(torch.zeros(100) + 0, torch.zeros(100)) and not torch.equal(drawn(100, 1), drawn(100, 2))


@pytest.mark.parametrize("std", [0.0, -1.0, math.inf, math.nan, True])
def test_impossible_std(std: float) -> None:
    with pytest.raises(ParameterError):
        GaussianNoise().add_(torch.zeros(3), std)


def test_integers_hold_no_noise() -> None:
    with pytest.raises(InvalidInput):
        GaussianNoise().add_(torch.zeros(3, dtype=torch.int64), 1.0)


def test_streams_are_fresh_and_stay_put() -> None:
    a, b = (torch.zeros(64) for _ in range(2))
    GaussianNoise().add_(a, 1.0)
    GaussianNoise().add_(b, 1.0)
    assert not torch.equal(a, b)
    import copy
    import pickle

    for way in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError):
            way(ByteStream())


def test_the_smoothed_law_is_as_private_as_the_normal_one() -> None:
    """The density of N: moving it by t changes its logarithm by what a normal density changes, within the bound that the module states."""
    width = 2.0**-4
    a = math.sqrt(1 - width**2 / 12)

    def log_density(x: np.ndarray) -> np.ndarray:
        left, right = (np.abs(x) + s * width / 2 for s in (-1, 1))
        return np.log(stats.norm.sf(left / a) - stats.norm.sf(right / a)) - math.log(width)

    x = np.linspace(-6, 6, 1201)
    for t in (0.001, 0.01, 0.1, 1.0):
        change = log_density(x + t) - log_density(x)
        normal = -((x + t) ** 2 - x**2) / 2
        assert (np.abs(change - normal) <= 2**-8 * t * np.maximum(np.abs(x), np.abs(x + t)) ** 2 + 2**-17).all()


def test_about_as_fast_as_torch() -> None:
    """Loose: this machine is shared. `python -m tests.bench dp` quotes figures."""
    x, noise = torch.zeros(4_000_000), GaussianNoise()

    def best(job: object) -> float:
        times = []
        for _ in range(5):
            start = time.process_time()
            job()  # type: ignore[operator]
            times.append(time.process_time() - start)
        return min(times)

    assert best(lambda: noise.add_(x, 1.0)) < 5 * best(lambda: x.add_(torch.empty_like(x).normal_()))
