"""Vocabulary and Labels: bijections of a key that show nothing of themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from privtensors.errors import InvalidInput, ParameterError
from privtensors.obfuscation.keys import ObfuscationKey
from privtensors.obfuscation.vocabulary import Labels, Vocabulary
from tests.unit.obfuscation.vocabulary.tokenizers import KEY


@given(size=st.integers(1, 300), secret=st.binary(min_size=32, max_size=32), data=st.data())
def test_a_bijection_that_keeps_what_is_fixed(size: int, secret: bytes, data: st.DataObject) -> None:
    fixed = data.draw(st.sets(st.integers(0, size - 1), max_size=5))
    vocabulary = Vocabulary.from_key(ObfuscationKey(secret), size, fixed=fixed)
    ids = torch.arange(size).reshape(1, -1)
    assert torch.equal(vocabulary.decode(vocabulary.encode(ids)), ids) and torch.equal(vocabulary.plain[vocabulary.keyed], ids[0])
    assert all(int(vocabulary.keyed[number]) == number for number in fixed)
    assert torch.equal(Vocabulary.from_key(ObfuscationKey(secret), size, fixed=fixed).keyed, vocabulary.keyed)


def test_it_is_uniform() -> None:
    """Over 3,000 keys each of six bijections of three labels comes about 500 times: within five standard deviations."""
    seen = torch.zeros(6)
    orders = {order: n for n, order in enumerate([(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])}
    for n in range(3000):
        seen[orders[tuple(Labels.from_key(ObfuscationKey(n.to_bytes(32)), 3).keyed.tolist())]] += 1
    assert float((seen - 500).abs().max()) < 5 * (3000 * 1 / 6 * 5 / 6) ** 0.5


def test_few_ids_keep_their_place() -> None:
    keyed = Vocabulary.from_key(KEY, 30522).keyed
    assert int((keyed == torch.arange(30522)).sum()) < 10
    assert not torch.equal(keyed, Vocabulary.from_key(ObfuscationKey(bytes(32)), 30522).keyed)


def test_labels_and_vocabulary_are_unrelated() -> None:
    assert not torch.equal(Vocabulary.from_key(KEY, 50).keyed, Labels.from_key(KEY, 50).keyed)


@given(size=st.integers(1, 20), secret=st.binary(min_size=32, max_size=32))
def test_logits_come_back_in_plain_order(size: int, secret: bytes) -> None:
    labels = Labels.from_key(ObfuscationKey(secret), size)
    plain = torch.randn(2, 3, size)
    assert torch.equal(labels.decode_logits(plain[..., labels.plain]), plain)


@pytest.mark.parametrize(
    "ids", [torch.tensor([-1]), torch.tensor([10]), torch.tensor([1.0]), torch.tensor([True]), torch.tensor([3, -100])]
)
def test_ids_that_are_none(ids: torch.Tensor) -> None:
    vocabulary = Vocabulary.from_key(KEY, 10)
    for way in (vocabulary.encode, vocabulary.decode):
        with pytest.raises(InvalidInput, match=r"0\.\.9|integers"):
            way(ids)
    assert vocabulary.encode(torch.zeros(0, 4, dtype=torch.int32)).shape == (0, 4)


@pytest.mark.parametrize("values", [[0, 0], [0, 2], [0.0, 1.0], [[0, 1]], []])
def test_what_is_no_bijection(values: Any) -> None:
    with pytest.raises(ParameterError):
        Vocabulary(torch.tensor(values))


@pytest.mark.parametrize(("size", "fixed"), [(0, ()), (-1, ()), (5, (5,)), (5, (-1,))])
def test_sizes_that_are_none(size: int, fixed: tuple[int, ...]) -> None:
    with pytest.raises(ParameterError):
        Vocabulary.from_key(KEY, size, fixed=fixed)
    if not fixed:
        with pytest.raises(ParameterError):
            Labels.from_key(KEY, size)


@pytest.mark.parametrize("logits", [torch.zeros(3), torch.zeros(2, 5), torch.tensor(1.0)])
def test_logits_of_another_model(logits: torch.Tensor) -> None:
    with pytest.raises(InvalidInput, match="number of labels, 4"):
        Labels.from_key(KEY, 4).decode_logits(logits)


def test_nothing_is_shown() -> None:
    for one in (Vocabulary.from_key(KEY, 30), Labels.from_key(KEY, 30)):
        text: Any = repr(one)
        assert text == f"{type(one).__name__}(size=30)" == str(one)
