"""The pseudo-random generator and the dealer: streams, what they hide, and that nothing is drawn twice."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from privtensors.backends.mpc.dealer import Dealer, Mask
from privtensors.backends.mpc.hidden import Hidden, itself
from privtensors.backends.mpc.protocols.arithmetic import open_wire
from privtensors.backends.mpc.randomness import Prg
from privtensors.core.meter import Meter
from privtensors.errors import ParameterError
from privtensors.testing.strategies import shapes
from privtensors.transport.base import packed_size
from tests.unit.backends.mpc.harness import Lab, seed
from tests.unit.backends.mpc.uniformity import REJECT, p_values

DTYPES = [torch.int8, torch.int16, torch.int32, torch.int64]


def same_seeds() -> Dealer:
    return Dealer(Meter(), (seed(1), seed(2)), (seed(3), seed(4)))


@given(shapes(), st.sampled_from(DTYPES))
def test_one_seed_one_stream(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    a, b = Prg(seed(1)), Prg(seed(1))
    for _ in range(2):
        x = a.words(shape, dtype)
        assert x.shape == shape and x.dtype == dtype and torch.equal(x, b.words(shape, dtype))


def test_the_stream_does_not_depend_on_how_it_is_cut() -> None:
    """Word counts that are no multiple of AES's block, small and larger than one internal chunk."""
    counts = [1, 3, 16, 17, 255, (1 << 24) + 5, 40]
    parts, whole = Prg(seed(4)), Prg(seed(4))
    cut = torch.cat([parts.words((n,), torch.int8) for n in counts])
    assert torch.equal(cut, whole.words((sum(counts),), torch.int8))


def test_generators_and_calls_never_repeat() -> None:
    """Blocks of 16 bytes: by the birthday bound two equal ones among 2^20 have probability 2^-89."""
    streams = [Prg(), Prg(), Prg(seed(1)), Prg(seed(2))]
    blocks = torch.cat([s.words((1 << 14, 2)) for s in streams for _ in range(3)])
    assert len(torch.unique(blocks, dim=0)) == len(blocks)


def test_words_are_uniform() -> None:
    generator = Prg(seed(9))
    for dtype in DTYPES:
        bits = torch.iinfo(dtype).bits
        assert min(p_values(generator.words((4096,), dtype).to(torch.int64), bits)) > REJECT


@given(shapes(), st.sampled_from(DTYPES))
def test_a_pair_is_row_by_row_two_streams(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    a, b, c, d = (Prg(seed(n)) for n in (5, 6, 5, 6))
    for _ in range(3):
        both = a.pair(b, shape, dtype)
        assert both.shape == (2, *shape)
        assert torch.equal(both[0], c.words(shape, dtype)) and torch.equal(both[1], d.words(shape, dtype))


@given(st.integers(0, 70), st.sampled_from(DTYPES))
def test_the_first_row_alone_leaves_the_second_to_the_caller(count: int, dtype: torch.dtype) -> None:
    """The generator may write a little beyond the first row; what the caller writes into the second stays, and neither moves."""
    a, c = Prg(seed(5)), Prg(seed(5))
    both = a.first_of_pair((count,), dtype)
    both[1] = 7
    a.words((3,))
    assert torch.equal(both[0], c.words((count,), dtype)) and bool((both[1] == 7).all())


def test_rows_of_a_pair_are_independent() -> None:
    a, b = Prg(seed(1)), Prg(seed(2))
    both = a.pair(b, (4096,))
    for combined in (both[0] + both[1], both[0] ^ both[1], both[0] - both[1].roll(1), both[0] - both[1].roll(-1)):
        assert min(p_values(combined, 64)) > REJECT


def test_nothing_is_shown() -> None:
    generator, dealer = Prg(seed(77)), same_seeds()
    mask = dealer.mask((3,))
    wire = Lab().run(open_wire(Lab().rt, Lab().share(torch.ones(2))))
    shares = Lab().share(torch.ones(2))
    for thing in (generator, dealer, mask, wire, shares):
        text = f"{thing!r} {thing}"
        assert "tensor" not in text and "77" not in text
        assert not any(str(int(w)) in text for w in mask.shares.flatten())
    assert repr(generator) == "Prg(seed=hidden)" and repr(dealer) == "Dealer(seeds=hidden)"
    assert repr(mask) == "Mask(shape=(3,))"


@given(shapes(), st.sampled_from(DTYPES))
def test_masks_add_up(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    dealer = same_seeds()
    a, b = dealer.mask(shape, dtype), dealer.xor_mask(shape, dtype)
    assert isinstance(a, Mask) and a.hidden.value().dtype == dtype
    assert torch.equal(a.shares.sum(0).to(dtype), a.hidden.value()) and torch.equal(b.shares[0] ^ b.shares[1], b.hidden.value())
    assert dealer.meter.dealer_bytes == 0  # both shares come from seeds


@given(shapes(), st.sampled_from(DTYPES), st.sampled_from([None, 1, 20]))
def test_shares_add_up_and_are_counted(shape: tuple[int, ...], dtype: torch.dtype, bits: int | None) -> None:
    dealer = same_seeds()
    value = Prg(seed(8)).words(shape, dtype)
    width = bits or torch.iinfo(dtype).bits
    node = Hidden(value=value)
    assert torch.equal(dealer.share(itself, node, shape=shape, dtype=dtype, bits=bits).sum(0).to(dtype), value)
    x = dealer.xor_share(itself, node, shape=shape, dtype=dtype, bits=bits)
    assert torch.equal(x[0] ^ x[1], value)
    assert dealer.meter.dealer_bytes == 2 * packed_size(value.numel(), width)
    before = dealer.meter.dealer_bytes
    for owner in (0, 1):
        assert torch.equal(dealer.input_shares(value, owner).sum(0).to(dtype), value)
    assert dealer.meter.dealer_bytes == before


@given(shapes(), st.sampled_from(DTYPES))
def test_a_filled_table_is_shared(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    dealer = same_seeds()
    node = Hidden(value=Prg(seed(8)).words(shape, dtype))

    def fill(value: torch.Tensor, base: torch.Tensor, out: torch.Tensor) -> None:
        torch.sub(value * 3, base, out=out)

    assert torch.equal(dealer.filled(fill, node, shape=shape, dtype=dtype).sum(0).to(dtype), node.value() * 3)
    assert dealer.meter.dealer_bytes == math.prod(shape) * torch.iinfo(dtype).bits // 8


def test_seeds_are_an_opt_in() -> None:
    a, b = Dealer(Meter()), Dealer(Meter())
    assert not torch.equal(a.mask((8,)).hidden.value(), b.mask((8,)).hidden.value())
    assert not torch.equal(a.input_shares(torch.zeros(8, dtype=torch.int64), 0), b.input_shares(torch.zeros(8, dtype=torch.int64), 0))
    c, d = same_seeds(), same_seeds()
    assert torch.equal(c.mask((8,)).hidden.value(), d.mask((8,)).hidden.value())
    assert torch.equal(c.input_shares(torch.zeros(8, dtype=torch.int64), 0), d.input_shares(torch.zeros(8, dtype=torch.int64), 0))


def test_equal_seeds_are_refused() -> None:
    with pytest.raises(ParameterError, match="same seed"):
        Dealer(Meter(), (seed(1), seed(1)))
