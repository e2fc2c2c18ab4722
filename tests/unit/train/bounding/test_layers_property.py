"""Layers of any shape, alone and shared, against as many backward passes as examples."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from privtensors.testing.dp_models import Trial
from privtensors.testing.dp_oracle import difference, oracle
from privtensors.train.bounding import make_bounder
from privtensors.train.roles import Batch


def check(model: nn.Module, batch: dict[str, Tensor], clip: float) -> None:
    """One clipped sum in one batch and in two, at a clipping norm between the smallest and the largest norm."""
    examples = len(batch["x"])

    def losses(b: Batch) -> Tensor:
        out: Tensor = model(b["x"])
        return out.flatten(1).pow(2).mean(1) + out.flatten(1).sum(1) * 0.1

    trial = Trial("", model, batch, lambda b: losses(b).mean(), losses, examples)
    norms = oracle(trial, 1.0).norms
    low, high = max(float(norms.min()), 0.05 * float(norms.max())), float(norms.max())  # an example of padding alone has norm 0
    truth = oracle(trial, low + clip * (high - low) or 1.0)
    bounder = make_bounder(model, truth.clipping_norm, engine="bookkeeping")
    for half in torch.arange(examples).tensor_split(2):
        bounder.accumulate({"x": batch["x"][half]}, trial.loss, len(half))
    halves = bounder.take()
    bounder.accumulate(batch, trial.loss, examples)
    whole = bounder.take()
    assert difference(halves, truth)[0] <= 1e-5 and difference(whole, truth)[0] <= 1e-5


sizes = st.integers(1, 9)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 6), sizes, sizes, sizes, st.booleans(), st.booleans(), st.floats(0, 1), st.integers(0, 99))
def test_linear(examples: int, length: int, width: int, out: int, bias: bool, freeze: bool, clip: float, seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(width, out, bias=bias), nn.Tanh(), nn.Linear(out, 3))
    model[0].weight.requires_grad_(not freeze)
    check(model, {"x": torch.randn(examples, length, width)}, clip)


class Tied(nn.Module):
    """An embedding and the head tied to it, used once or several times, of as many words as there are."""

    def __init__(self, words: int, width: int, padding: int | None, uses: int, bias: bool) -> None:
        super().__init__()
        self.words, self.uses = nn.Embedding(words, width, padding_idx=padding), uses
        self.head = nn.Linear(width, words, bias=bias)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.words(x)
        if self.words.padding_idx is not None:
            hidden = hidden + 0.5  # the padding row is zero
        out: Tensor = self.head(hidden)
        for _ in range(self.uses - 1):
            out = out + self.head(torch.tanh(self.words(x.flip(1))))
        return out


@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 5), st.integers(1, 5), st.integers(2, 60), st.integers(1, 20), st.booleans(), st.integers(1, 2), st.booleans(),
    st.floats(0, 1), st.integers(0, 99),
)  # fmt: skip
def test_tied(examples: int, length: int, words: int, width: int, pad: bool, uses: int, bias: bool, clip: float, seed: int) -> None:
    torch.manual_seed(seed)
    model = Tied(words, width, 1 if pad else None, uses, bias)
    check(model, {"x": torch.randint(0, min(words, 5), (examples, length))}, clip)


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 5), sizes, sizes, st.sampled_from([None, 0, 3, -1]), st.floats(0, 1), st.integers(0, 99))
def test_embedding(examples: int, length: int, width: int, padding: int | None, clip: float, seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Embedding(4, width, padding_idx=padding), nn.Tanh())
    with torch.no_grad():
        model[0].weight.normal_()  # the padding row too
    check(model, {"x": torch.randint(0, 4, (examples, length))}, clip)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 4), st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(0, 2), st.integers(1, 2),
    st.booleans(), st.floats(0, 1), st.integers(0, 99),
)  # fmt: skip
def test_convolution(
    examples: int, groups: int, channels: int, kernel: int, stride: int, padding: int, dilation: int, bias: bool, clip: float, seed: int
) -> None:
    torch.manual_seed(seed)
    conv = nn.Conv2d(groups * channels, groups * 2, kernel, stride, padding, dilation, groups, bias)
    model = nn.Sequential(conv, nn.GroupNorm(groups, groups * 2))
    check(model, {"x": torch.randn(examples, groups * channels, 6, 7)}, clip)
