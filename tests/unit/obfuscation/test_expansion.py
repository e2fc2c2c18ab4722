"""Streams: what is expanded from a key is uniform, exact where it claims to be, and the same for ever."""

from __future__ import annotations

import math
from collections import Counter
from itertools import permutations

import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from privtensors.errors import ParameterError
from privtensors.obfuscation.expansion import Stream
from privtensors.obfuscation.keys import ObfuscationKey

KEY = ObfuscationKey(bytes(range(7, 39)))
SEEDS = st.binary(min_size=32, max_size=32)
SIZES = st.integers(0, 40)
# Chi-square at 1e-9 for 23 and 255 degrees of freedom is 88 and 413; the streams here are fixed, so nothing is left to chance.


def chi_square(counts: list[int], expected: float) -> float:
    return sum((c - expected) ** 2 / expected for c in counts)


# Exactness and shape.


@given(SEEDS, SIZES)
def test_permutations_are_bijections(seed: bytes, n: int) -> None:
    p = Stream(seed).permutation(n)
    assert p.dtype == torch.int64 and p.shape == (n,) and sorted(p.tolist()) == list(range(n))


@given(SEEDS, st.integers(1, 24))
@settings(max_examples=40)
def test_orthogonal(seed: bytes, n: int) -> None:
    q = Stream(seed).orthogonal(n)
    assert q.dtype == torch.float64 and q.shape == (n, n)
    assert torch.allclose(q @ q.T, torch.eye(n, dtype=torch.float64), atol=1e-12)


@given(SEEDS, st.integers(1, 24))
@settings(max_examples=40)
def test_mean_fixing(seed: bytes, n: int) -> None:
    q, ones = Stream(seed).mean_fixing_orthogonal(n), torch.ones(n, dtype=torch.float64)
    assert torch.allclose(q @ q.T, torch.eye(n, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(q @ ones, ones, atol=1e-12) and torch.allclose(ones @ q, ones, atol=1e-12)
    x = torch.linspace(-3, 5, n, dtype=torch.float64) ** 2
    norm = torch.nn.functional.layer_norm
    assert torch.allclose(norm(x @ q, (n,)), norm(x, (n,)) @ q, atol=1e-9), "layer normalisation commutes with it"


@given(SEEDS, st.integers(1, 16), st.floats(1.0, 100.0))
@settings(max_examples=40)
def test_condition_is_bounded(seed: bytes, n: int, condition: float) -> None:
    m = Stream(seed).invertible(n, condition=condition)
    assert m.shape == (n, n) and m.dtype == torch.float64
    assert float(torch.linalg.cond(m)) <= condition * (1 + 1e-9)
    assert torch.allclose(m @ torch.linalg.inv(m), torch.eye(n, dtype=torch.float64), atol=1e-9)


@given(SEEDS, SIZES, st.floats(1.0, 50.0))
def test_scales_and_signs(seed: bytes, n: int, largest: float) -> None:
    stream = Stream(seed)
    s, signs = stream.scales(n, largest=largest), stream.signs(n)
    assert s.shape == signs.shape == (n,) and s.dtype == signs.dtype == torch.float64
    assert bool(((s >= 1 / largest) & (s <= largest)).all()) and set(signs.tolist()) <= {-1.0, 1.0}


def test_shapes_and_empty() -> None:
    stream = KEY.stream("x")
    assert stream.uniform((2, 0, 3)).shape == (2, 0, 3) and stream.normal(3).shape == (3,) and stream.normal(()).shape == ()
    assert stream.orthogonal(0).shape == (0, 0) and stream.mean_fixing_orthogonal(1).tolist() == [[1.0]]


# Determinism.


@given(SEEDS, SIZES)
def test_same_seed_same_values(seed: bytes, n: int) -> None:
    first, second = Stream(seed), Stream(seed)
    for draw in (Stream.permutation, Stream.signs, Stream.uniform, Stream.normal, Stream.orthogonal, Stream.scales):
        assert torch.equal(draw(first, n), draw(second, n))


def test_purposes_keys_and_positions_differ() -> None:
    other = ObfuscationKey(bytes(32))
    drawn = [KEY.stream("a"), KEY.stream("b"), KEY.stream("a "), other.stream("a")]
    values = [tuple(s.permutation(30).tolist()) for s in drawn]
    values.append(tuple(drawn[0].permutation(30).tolist()))
    assert len(set(values)) == len(values)


def test_values_of_other_machines() -> None:
    """Fixed for ever: a change would orphan every converted model."""
    stream = KEY.stream("vocabulary")
    assert stream.permutation(12).tolist() == [11, 3, 2, 6, 7, 5, 8, 10, 1, 4, 9, 0]
    assert stream.signs(8).tolist() == [-1, -1, 1, -1, 1, 1, -1, -1]
    assert stream.uniform(2).tolist() == pytest.approx([0.6834021097383302, 0.2745724039234537], abs=0)


def test_expansion_is_aes_in_counter_mode() -> None:
    """Against the standard, by another road: little-endian words of the key stream, ranked."""
    seed, n = bytes(range(32)), 100
    raw = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor().update(bytes(8 * n + 8))
    words = [int.from_bytes(raw[8 * i : 8 * i + 8], "little") for i in range(n + 1)]
    stream = Stream(seed)
    assert stream.permutation(n).tolist() == sorted(range(n), key=words.__getitem__)
    assert float(stream.uniform(1)) == (words[n] >> 11) / 2**53


def test_ties_are_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    draws = iter([np.array([5, 5, 1], dtype=np.uint64), np.array([2, 0, 1], dtype=np.uint64)])
    monkeypatch.setattr(Stream, "_words", lambda self, count: next(draws))
    assert Stream(bytes(32)).permutation(3).tolist() == [1, 2, 0]


# Uniformity, on fixed streams.


def test_permutations_of_four_are_uniform() -> None:
    stream, rounds = KEY.stream("uniform"), 4800
    counts = Counter(tuple(stream.permutation(4).tolist()) for _ in range(rounds))
    assert set(counts) == set(permutations(range(4)))
    assert chi_square(list(counts.values()), rounds / 24) < 88


def test_places_in_a_large_permutation_are_uniform() -> None:
    p = KEY.stream("large").permutation(1 << 16)
    places = (p.view(256, 256) // 256).flatten()  # from where each block of 256 places is filled
    counts = torch.stack([torch.bincount(block, minlength=256) for block in places.view(256, 256)])
    assert float(((counts.double() - 1.0) ** 2).sum()) / (255 * 255) == pytest.approx(1.0, abs=0.05)


def test_bytes_uniforms_and_normals() -> None:
    stream, n = KEY.stream("moments"), 100_000
    u, z, s = stream.uniform(n), stream.normal(n), stream.signs(n)
    assert chi_square(torch.bincount((u * 256).long(), minlength=256).tolist(), n / 256) < 413
    assert float(u.min()) >= 0 and float(u.max()) < 1
    assert abs(float(z.mean())) < 0.02 and abs(float(z.var()) - 1) < 0.03 and abs(float((z**4).mean()) - 3) < 0.2
    assert abs(float((z[: n // 2] * z[n // 2 :]).mean())) < 0.03 and abs(float(s.mean())) < 0.02
    assert float((z.abs() > 1.959964).double().mean()) == pytest.approx(0.05, abs=0.005)


def test_orthogonal_is_haar_and_not_plain_qr() -> None:
    """Entries have mean 0 and variance 1/n, both determinants occur, and eigenvalue angles are spread as Haar's are."""
    stream, n, rounds = KEY.stream("haar"), 6, 800
    drawn = torch.stack([stream.orthogonal(n) for _ in range(rounds)])
    assert float(drawn.mean(0).abs().max()) < 5 / math.sqrt(n * rounds)
    assert torch.allclose((drawn**2).mean(0), torch.full((n, n), 1 / n, dtype=torch.float64), atol=0.04)
    assert 0.4 < float((torch.linalg.det(drawn) > 0).double().mean()) < 0.6
    trace = torch.stack([q.trace() for q in drawn])  # Haar: mean 0, variance 1; QR without the correction of signs is far off
    assert abs(float(trace.mean())) < 0.2 and float(trace.var()) == pytest.approx(1.0, abs=0.2)


def test_scales_are_log_uniform() -> None:
    logs = KEY.stream("scales").scales(20_000, largest=2.0).log2()
    assert abs(float(logs.mean())) < 0.02 and float(logs.var()) == pytest.approx(1 / 3, abs=0.01)


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.permutation(-1), lambda s: s.signs(-1), lambda s: s.uniform((2, -1)), lambda s: s.orthogonal(-2),
        lambda s: s.invertible(3, condition=0.5), lambda s: s.invertible(3, condition=math.inf), lambda s: s.scales(3, largest=math.nan),
        lambda s: s.scales(3, largest=0.0),
    ],
)  # fmt: skip
def test_bad_sizes_and_bounds(call: object) -> None:
    with pytest.raises(ParameterError):
        call(KEY.stream("x"))  # type: ignore[operator]
