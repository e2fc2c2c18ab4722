"""10^8 truncations over the whole allowed range: not one wrap-around. A shorter count of 10^6 runs by default."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from privtensors.backends.mpc.protocols.arithmetic import lift_words
from tests.unit.backends.mpc.harness import Lab

_BATCH = 1 << 19


def words(generator: torch.Generator, count: int, bits: int) -> Tensor:
    """A third uniform in ±2^bits, a third of every magnitude, a third next to powers of two and to the extremes ±(2^bits - 1)."""
    limit = (1 << bits) - 1
    parts = [torch.randint(-limit, limit + 1, (count,), generator=generator)]
    magnitude = torch.randint(0, bits + 1, (count,), generator=generator)
    sign = torch.randint(0, 2, (count,), generator=generator) * 2 - 1
    parts.append(sign * (parts[0].abs() >> magnitude))
    near = torch.randint(-2, 3, (count,), generator=generator)
    parts.append(
        (sign * ((torch.ones_like(sign) << torch.randint(0, bits + 1, (count,), generator=generator)) + near)).clamp(-limit, limit)
    )
    return torch.where(near == 0, parts[0], torch.where(near > 0, parts[1], parts[2]))


def errors(out: Tensor, plain: Tensor, shift: int) -> int:
    """How many results are neither the floor nor the ceiling; taken in the results' own units, or a wrap would vanish modulo 2^64."""
    off = out - (plain >> shift)
    return int(((off != 0) & (off != 1)).sum())


def truncate(total: int, rings: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """(truncations made, results off by a unit or more)."""
    lab = Lab(seeded=False)
    made = wrong = 0
    while made < total:
        ring, shift = rings[(made // _BATCH) % len(rings)]
        plain = words(lab.generator, min(_BATCH, total - made), ring - 2)
        # Shares with every low bit used: party 0's is uniform.
        first = lab.rt.dealer.mask(tuple(plain.shape)).hidden.value()
        out = lab.run(lift_words(lab.rt, torch.stack([first, plain - first]), ring, shift))
        wrong += errors(out.sum(0), plain, shift)
        made += len(plain)
    return made, wrong


FULL = ((64, 18), (64, 1), (64, 36), (64, 61), (63, 18), (52, 14), (33, 9), (32, 10), (20, 4))


def test_a_million_truncations() -> None:
    made, wrong = truncate(10**6, ((64, 18), (52, 14)))
    print(f"{made:,} truncations, {wrong} wrap-arounds")
    assert (made, wrong) == (10**6, 0)


@pytest.mark.slow
def test_a_hundred_million_truncations() -> None:
    made, wrong = truncate(10**8, FULL)
    print(f"{made:,} truncations, {wrong} wrap-arounds")
    assert (made, wrong) == (10**8, 0)


def test_the_count_would_see_a_wrap_around() -> None:
    """Shifting both shares locally (SecureML, 2017) wraps for values of this size."""
    lab = Lab()
    plain = words(lab.generator, 10_000, 62)
    first = lab.rt.dealer.mask(tuple(plain.shape)).hidden.value()
    local = (first >> 18) + ((plain - first) >> 18)
    assert errors(local, plain, 18) > 1000


def test_values_beyond_the_promise_do_wrap() -> None:
    """The promise is |value| < 2^(ring - 2): at half the ring nothing is right any more."""
    lab = Lab()
    plain = torch.full((1000,), -(1 << 62) - (1 << 61))
    first = lab.rt.dealer.mask(tuple(plain.shape)).hidden.value()
    out = lab.run(lift_words(lab.rt, torch.stack([first, plain - first]), 64, 18))
    assert errors(out.sum(0), plain, 18) > 0
