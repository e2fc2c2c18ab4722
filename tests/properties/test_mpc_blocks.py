"""Layer normalisation, softmax and attention on shares, against float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from privtensors.backends.mpc.protocols.normalise import layer_norm
from privtensors.backends.mpc.protocols.softmax import LEAST_HIGH, attention, centred, scale_of, softmax, softmax_parts
from tests.unit.backends.mpc.harness import FRAC, Lab, value, worst

seeds = st.integers(0, 2**20)


@given(st.integers(8, 1024), st.floats(-4, 4), st.booleans(), st.sampled_from([1e-5, 1e-6, 1e-12]), st.floats(-3, 3), seeds)
@settings(max_examples=30)
def test_layer_norm(n: int, log_variance: float, with_gain: bool, eps: float, offset: float, number: int) -> None:
    lab = Lab(number=number)
    deviation = 10.0 ** (log_variance / 2)
    x = (torch.randn(6, n, generator=lab.generator).double() + offset) * deviation
    gain = torch.rand(n, generator=lab.generator).double() * 2 if with_gain else None
    with lab.meter.scope() as scope:
        out = lab.run(layer_norm(lab.rt, lab.share(x), lab.share(gain) if gain is not None else None, eps))
    want = F.layer_norm(x, [n], gain, None, eps)
    assert scope.spent.rounds <= 10 and (out.frac, out.ring) == (FRAC, 64)
    # The input is held with this many fractional bits, which small variances feel.
    bits = math.ceil(math.log2(n))
    step = 2.0 ** -min(18, (62 - 15 - 2 * bits) // 2)
    bound = 2e-4 + 4 * step / deviation * (1 + float(want.abs().max()))
    assert worst(value(out), want) <= bound * (2 if with_gain else 1)


def test_layer_norm_of_a_constant_row_is_zero() -> None:
    lab = Lab()
    out = lab.run(layer_norm(lab.rt, lab.share(torch.full((3, 64), 7.25)), None, 1e-5))
    assert worst(value(out), torch.zeros(3, 64)) <= 0.05  # 1/sqrt(eps) times the rounding of the mean


def test_layer_norm_of_one_outlier_per_row() -> None:
    """GPT-2 and others keep a few channels hundreds of times larger than the rest."""
    lab = Lab()
    x = torch.randn(5, 768, generator=lab.generator)
    x[:, 138] += 800.0
    out = lab.run(layer_norm(lab.rt, lab.share(x), None, 1e-5))
    assert worst(value(out), F.layer_norm(x.double(), [768])) <= 2e-3


@given(st.integers(1, 300), st.floats(0.05, 35), st.floats(-1000, 1000), seeds)
@settings(max_examples=40)
def test_softmax(n: int, scale: float, offset: float, number: int) -> None:
    lab = Lab(number=number)
    s = torch.randn(5, n, generator=lab.generator).double() * scale
    s -= s.mean(-1, keepdim=True)
    s *= (50 / s.amax(-1, keepdim=True).clamp(min=1e-9)).clamp(max=1.0)
    s += offset * torch.arange(-2, 3).unsqueeze(-1)  # every row its own offset
    out = lab.run(softmax(lab.rt, lab.share(s, 16)))
    assert worst(value(out), s.softmax(-1)) <= 6e-3
    assert worst(value(out).sum(-1), torch.ones(5)) <= 6e-3


def test_softmax_sums_stay_where_the_reciprocal_works() -> None:
    lab = Lab()
    for n in (1, 2, 77, 300):
        s = torch.randn(200, n, generator=lab.generator) * 8
        e, total = lab.run(softmax_parts(lab.rt, lab.run(centred(lab.rt, lab.share(s))), None, 1.0))
        assert (e.frac, total.frac) == (12, 12)
        assert float(value(total).min()) >= 0.1 and float(value(total).max()) <= 10 * n


def test_softmax_between_the_limits_is_accurate_and_beyond_them_ties() -> None:
    """Entries further above their row's mean than the scale's limit are all treated as equal to it: documented."""
    lab = Lab()
    n = 200
    limit = scale_of(1.0).high
    assert limit >= LEAST_HIGH
    s = torch.zeros(3, n)
    s[0, 0], s[0, 1] = limit - 1.5, limit - 5.0  # inside
    s[1, 0], s[1, 1] = limit + 28.0, limit - 22.0  # one beyond, the others well below: still the maximum
    s[2, 0], s[2, 1] = limit + 28.0, limit + 8.0  # two beyond: a tie
    got = value(lab.run(softmax(lab.rt, lab.share(s))))
    want = s.double().softmax(-1)
    assert worst(got[:2], want[:2]) <= 6e-3
    assert worst(got[2, :2], torch.tensor([0.5, 0.5])) <= 3e-3


def test_rows_of_one_and_equal_rows() -> None:
    lab = Lab()
    assert worst(value(lab.run(softmax(lab.rt, lab.share(torch.tensor([[3.0], [-900.0]]))))), torch.ones(2, 1)) <= 1e-3
    out = value(lab.run(softmax(lab.rt, lab.share(torch.full((4, 37), -12.5)))))
    assert worst(out, torch.full((4, 37), 1 / 37)) <= 2e-3


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0), (2, 0, 5)])
def test_softmax_of_nothing(shape: tuple[int, ...]) -> None:
    lab = Lab()
    out = lab.run(softmax(lab.rt, lab.share(torch.zeros(shape))))
    assert out.shape == shape and (out.frac, out.ring) == (FRAC, 64)


@pytest.mark.parametrize(("batch", "length", "keys"), [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_attention_of_nothing(batch: int, length: int, keys: int) -> None:
    lab = Lab()
    q, k, v = (lab.share(torch.randn(batch, n, 8)) for n in (length, keys, keys))
    out = lab.run(attention(lab.rt, q, k, v, None, None, 0.25))
    assert out.shape == (batch, length, 8) and not bool(value(out).any())


@given(
    st.integers(1, 12),
    st.integers(1, 40),
    st.sampled_from([8, 32, 64, 80]),
    st.floats(0.2, 3.5),
    st.sampled_from(["none", "causal", "padded", "bias", "random"]),
    seeds,
)
@settings(max_examples=25)
def test_attention(length: int, keys: int, width: int, spread: float, kind: str, number: int) -> None:
    lab = Lab(number=number)
    q = torch.randn(2, 3, length, width, generator=lab.generator) * spread
    k = torch.randn(2, 3, keys, width, generator=lab.generator) * min(spread, 3.0)
    v = torch.randn(2, 3, keys, width, generator=lab.generator) * 3
    factor = 1 / math.sqrt(width)
    keep, bias = None, None
    if kind == "causal":
        keep = torch.ones(length, keys, dtype=torch.bool).tril()
    elif kind == "padded":
        keep = torch.ones(2, 1, 1, keys, dtype=torch.bool)
        keep[1, ..., keys // 2 + 1 :] = False
    elif kind == "random":
        keep = torch.rand(2, 1, length, keys, generator=lab.generator) < 0.6
        keep[..., 0] = True
    elif kind == "bias":
        bias = torch.randn(1, 3, length, keys, generator=lab.generator) * 2
    with lab.meter.scope() as scope:
        out = lab.run(attention(lab.rt, lab.share(q), lab.share(k), lab.share(v), keep, bias, factor))
    assert scope.spent.rounds <= 24
    mask = keep if keep is not None else bias.double() if bias is not None else None
    want = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=mask)
    assert worst(value(out), want) <= 1e-2 * float(v.abs().max()) / 3


def test_attention_rows_with_nothing_to_attend_to_are_zero() -> None:
    lab = Lab()
    q = torch.randn(1, 1, 4, 16, generator=lab.generator)
    keep = torch.ones(4, 6, dtype=torch.bool)
    keep[2] = False
    out = value(
        lab.run(attention(lab.rt, lab.share(q), lab.share(torch.randn(1, 1, 6, 16)), lab.share(torch.randn(1, 1, 6, 16)), keep, None, 0.25))
    )
    assert not bool(out[0, 0, 2].any()) and bool(out[0, 0, 1].any())


@pytest.mark.parametrize("raw", [28.0, 120.0, 200.0])
def test_attention_scores_of_real_models(raw: float) -> None:
    """Raw scores of ±200 at a head width of 32 are ±35 after scaling: layer 0 of MiniLM and a margin."""
    lab = Lab()
    q = torch.eye(32).view(1, 1, 32, 32) * 8
    k = (torch.rand(1, 1, 60, 32, generator=lab.generator) * 2 - 1) * raw / 8
    v = torch.randn(1, 1, 60, 32, generator=lab.generator)
    out = lab.run(attention(lab.rt, lab.share(q), lab.share(k), lab.share(v), None, None, 32**-0.5))
    want = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    error = worst(value(out), want)
    print(f"attention, raw scores ±{raw:.0f}: error {error:.1e}")
    assert error <= 1e-2
