"""Packing, unpacking, sizes and the in-process channel."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privtensors.errors import TransportError
from privtensors.testing.strategies import shapes
from privtensors.transport.base import Message, pack, packed_size, unpack
from privtensors.transport.memory import MemoryChannel


def words(shape: tuple[int, ...], number: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randint(-(1 << 62), 1 << 62, shape, generator=generator) * 2 + torch.randint(0, 2, shape, generator=generator)


def low(x: torch.Tensor, bits: int) -> torch.Tensor:
    return x if bits == 64 else x & ((1 << bits) - 1)


@given(st.integers(1, 64), shapes(), st.integers(0, 2**20))
@settings(max_examples=200)
def test_round_trip(bits: int, shape: tuple[int, ...], number: int) -> None:
    x = words(shape, number)
    data = pack(x, bits)
    assert len(data) == packed_size(x.numel(), bits)
    back = unpack(data, bits, shape)
    assert back.shape == x.shape and back.dtype == torch.int64
    assert torch.equal(back, low(x, bits))


@pytest.mark.parametrize("bits", range(1, 65))
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9])
def test_every_width_and_a_few_counts(bits: int, count: int) -> None:
    x = words((count,), bits)
    assert torch.equal(unpack(pack(x, bits), bits, (count,)), low(x, bits))


@pytest.mark.parametrize(
    ("dtype", "bits"), [(torch.int8, 1), (torch.int8, 8), (torch.int16, 6), (torch.int32, 20), (torch.int32, 32), (torch.int64, 52)]
)
def test_narrow_words_are_not_sign_extended_into_the_message(dtype: torch.dtype, bits: int) -> None:
    x = words((50,), 3).to(dtype)
    assert torch.equal(unpack(pack(x, bits), bits, (50,)), low(x.to(torch.int64), bits))


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("bits", [9, 16, 20, 24, 32, 40, 45, 48, 56, 63])
def test_many_words(dtype: torch.dtype, bits: int) -> None:
    """Words are written over each other's upper bytes, so the order in which they are written counts."""
    if bits > torch.iinfo(dtype).bits:
        return
    x = words((100_003,), bits).to(dtype)
    assert torch.equal(unpack(pack(x, bits), bits, (100_003,)), low(x.to(torch.int64), bits))


def test_strided_words() -> None:
    x = words((6, 8), 1)
    assert torch.equal(unpack(pack(x.t(), 33), 33, (8, 6)), low(x.t(), 33))
    assert torch.equal(unpack(pack(x[:, ::2], 64), 64, (6, 4)), x[:, ::2])


@given(st.integers(1, 64), st.integers(0, 20), st.integers(1, 9), st.booleans())
def test_a_message_of_the_wrong_length_is_refused(bits: int, count: int, by: int, longer: bool) -> None:
    data = pack(words((count,), 0), bits)
    wrong = data + bytes(by) if longer else data[: max(0, len(data) - by)]
    if len(wrong) == len(data):
        return
    with pytest.raises(TransportError, match="cannot hold"):
        unpack(wrong, bits, (count,))


@pytest.mark.parametrize("bits", [0, -1, 65])
def test_an_impossible_width_is_refused(bits: int) -> None:
    with pytest.raises(TransportError):
        pack(torch.zeros(2, dtype=torch.int64), bits)
    with pytest.raises(TransportError):
        unpack(b"", bits, (0,))


@given(st.integers(1, 64), st.integers(0, 100))
def test_size_is_whole_bytes_but_for_the_narrowest(bits: int, count: int) -> None:
    size = packed_size(count, bits)
    assert size * 8 >= count * bits
    assert size == (-(-count * bits // 8) if bits in (1, 2, 4) else count * -(-bits // 8))
    assert Message(torch.zeros(2, count, dtype=torch.int64), bits).size() == size


def test_one_party_held_here_has_the_same_size() -> None:
    assert Message(torch.zeros(1, 5, dtype=torch.int64), 40).size() == Message(torch.zeros(2, 5, dtype=torch.int64), 40).size() == 25


def test_the_memory_channel_delivers_the_other_party_and_shows_both() -> None:
    seen: list[Message] = []
    channel = MemoryChannel(observe=seen.append)
    messages = [Message(words((2, 3), 1), 64), Message(words((2, 4), 2).to(torch.int8), 1)]
    received = channel.exchange(messages)
    assert channel.parties == (0, 1)
    assert all(torch.equal(r, m.words[1]) for r, m in zip(received, messages, strict=True))
    assert all(a is b for a, b in zip(seen, messages, strict=True))


def test_an_unobserved_channel() -> None:
    assert MemoryChannel().exchange([]) == []
