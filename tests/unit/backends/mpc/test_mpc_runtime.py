"""Rounds, bytes and running protocols side by side."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from privtensors.backends.mpc.protocols.activation import activate
from privtensors.backends.mpc.protocols.arithmetic import lift, open_wire
from privtensors.backends.mpc.protocols.compare import at_least
from privtensors.backends.mpc.protocols.softmax import softmax
from privtensors.backends.mpc.runtime import Open, Protocol, parallel
from tests.unit.backends.mpc.harness import Lab, PackedChannel, value, worst


def steps(rounds: int, label: int, widths: list[int]) -> Protocol[tuple[int, list[int]]]:
    """Opens ``label`` in each round, with one message per entry of ``widths``."""
    seen = []
    for i in range(rounds):
        words = torch.stack([torch.full((3,), label * 100 + i), torch.zeros(3, dtype=torch.int64)])
        replies = yield [Open(words, width) for width in widths]
        assert len(replies) == len(widths)
        seen += [int(r[0]) for r in replies]
    return rounds, seen


@given(st.lists(st.tuples(st.integers(0, 6), st.lists(st.sampled_from([16, 32, 64]), min_size=1, max_size=3)), max_size=5))
def test_protocols_side_by_side_take_the_rounds_of_the_longest(parts: list[tuple[int, list[int]]]) -> None:
    lab = Lab()
    results = lab.run(parallel(*(steps(rounds, k, widths) for k, (rounds, widths) in enumerate(parts))))
    assert lab.meter.rounds == max((rounds for rounds, _ in parts), default=0)
    assert lab.meter.bytes_sent == sum(rounds * 3 * sum(widths) // 8 for rounds, widths in parts)
    for k, ((rounds, widths), (got, seen)) in enumerate(zip(parts, results, strict=True)):
        assert got == rounds and seen == [k * 100 + i for i in range(rounds) for _ in widths]


def test_nesting() -> None:
    lab = Lab()
    inner = parallel(steps(2, 1, [64]), steps(3, 2, [64]))
    (a, b), c = lab.run(parallel(inner, steps(4, 3, [64])))
    assert (a[0], b[0], c[0]) == (2, 3, 4) and lab.meter.rounds == 4


def test_real_protocols_side_by_side_give_what_they_give_alone() -> None:
    lab = Lab()
    x = torch.linspace(-6, 6, 60).view(5, 12)
    gelu, rows, lifted = lab.run(
        parallel(activate(lab.rt, lab.share(x), "gelu"), softmax(lab.rt, lab.share(x)), lift(lab.rt, lab.share(x, 30), 10))
    )
    alone = Lab()
    alone.run(softmax(alone.rt, alone.share(x)))
    assert lab.meter.rounds == alone.meter.rounds
    assert worst(value(gelu), torch.nn.functional.gelu(x.double())) <= 1e-3
    assert worst(value(rows), x.double().softmax(-1)) <= 6e-3
    assert worst(value(lifted), x.double()) <= 2.0**-9


def test_an_error_in_one_protocol_reaches_the_caller() -> None:
    def broken() -> Protocol[None]:
        yield [Open(torch.zeros(2, 1, dtype=torch.int64), 64)]
        raise ValueError("planted")

    with pytest.raises(ValueError, match="planted"):
        Lab().run(parallel(steps(3, 1, [64]), broken()))


def test_openings_add_or_combine_by_exclusive_or() -> None:
    def both() -> Protocol[list[torch.Tensor]]:
        words = torch.tensor([[5, 6], [1, 3]])
        return (yield [Open(words, 64), Open(words, 64, xor=True)])

    added, combined = Lab().run(both())
    assert added.tolist() == [6, 9] and combined.tolist() == [4, 5]


@pytest.mark.parametrize("width", [1, 6, 20, 33, 64])
def test_the_meter_counts_the_bytes_a_socket_would_carry(width: int) -> None:
    channel = PackedChannel()
    lab = Lab(channel)
    lab.run(steps(3, 0, [width, 1]))
    assert lab.meter.bytes_sent == channel.sent


def test_the_meter_counts_the_bytes_of_whole_protocols() -> None:
    channel = PackedChannel()
    lab = Lab(channel)
    x = torch.linspace(-6, 6, 60).view(5, 12)
    lab.run(activate(lab.rt, lab.share(x), "silu"))
    lab.run(softmax(lab.rt, lab.share(x)))
    lab.run(at_least(lab.rt, lab.share(x), [3], frac=6, range_bits=20))
    lab.run(open_wire(lab.rt, lab.share(x, 30, 53), 12))
    assert lab.meter.bytes_sent == channel.sent > 0
