"""Statistics on what crosses the wire: is it uniform, and is the difference of any two messages?

A test that runs on fixed seeds gives the same p-values in every run, so a fixed threshold is no source of chance failures.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.unit.backends.mpc.harness import Round

REJECT = 1e-8  # some ten thousand tests per layer: the smallest p-value of honest ones is near 1e-4
_SAMPLE = 4096


def chi_square(symbols: Tensor, count: int) -> list[float]:
    """p-values that each row of ``symbols`` is uniform on 0 … count - 1 (Pearson, 1900)."""
    rows = len(symbols)
    offsets = torch.arange(rows).unsqueeze(1) * count
    seen = torch.bincount((symbols + offsets).flatten(), minlength=rows * count).view(rows, count).double()
    expected = symbols.shape[1] / count
    statistic = ((seen - expected) ** 2 / expected).sum(1)
    return torch.special.gammaincc(torch.full((rows,), (count - 1) / 2, dtype=torch.float64), statistic / 2).tolist()


def p_values(words: Tensor, bits: int) -> list[float]:
    """p-values of uniformity of the top bits, the low bits and the bits in between of ``bits``-bit words; few words, few bins.

    Args:
        words: One tensor, or several of one shape stacked along a first axis of a 2-d tensor.
    """
    flat = words if words.dim() == 2 else words.reshape(1, -1)
    if flat.shape[1] > _SAMPLE:  # evenly spread, so that a part which was never masked cannot hide
        flat = flat[:, torch.linspace(0, flat.shape[1] - 1, _SAMPLE).long()]
    width = next((w for w in (4, 2, 1) if w <= bits and flat.shape[1] >= 8 << w), 0)
    if not width:
        return []
    places = sorted({0, bits - width, (bits - width) // 2})
    return chi_square(torch.cat([(flat >> place) & ((1 << width) - 1) for place in places]), 1 << width)


def joint_p_values(words: Tensor, bits: int) -> list[float]:
    """p-values that the two parties' words are uniform and independent: each, their sum, their exclusive or."""
    first, second = words[0].flatten(), words[1].flatten()
    return p_values(torch.stack([first, second, first + second, first ^ second]), bits)


@dataclass(frozen=True)
class Finding:
    """A message, or a pair of them, that is not uniform."""

    what: str
    index: tuple[int, ...]
    shape: tuple[int, ...]
    bits: int
    p: float


def findings(messages: Sequence[Round], *, pairs: bool = True, most_pairs: int = 400) -> tuple[list[Finding], list[float]]:
    """Messages that are not uniform, pairs whose difference is not; and every p-value.

    Pairs are those with equally many words, compared on the bits both have. In groups with more than ``most_pairs`` pairs
    each message is compared with the ones near it and with a spread of the others.
    """
    found: list[Finding] = []
    values: list[float] = []

    def check(what: str, index: tuple[int, ...], of: list[float], message: Round) -> None:
        values.extend(of)
        if of and min(of) < REJECT:
            found.append(Finding(what, index, tuple(message.words.shape[1:]), message.bits, min(of)))

    groups: dict[int, list[int]] = defaultdict(list)
    opened = []
    for i, m in enumerate(messages):
        check("message", (i,), joint_p_values(m.words, m.bits), m)
        groups[m.words[0].numel()].append(i)
        flat = m.words.reshape(2, -1)
        opened.append((flat[0] + flat[1], flat[0] ^ flat[1]))
    for members in groups.values() if pairs else ():
        for i, j in _pairs(members, most_pairs):
            # What both parties learn is value + mask, or value xor mask; which of the two, a message does not say.
            differences = torch.stack([opened[i][0] - opened[j][0], opened[i][1] ^ opened[j][1]])
            check("difference", (i, j), p_values(differences, min(messages[i].bits, messages[j].bits)), messages[i])
    return found, values


def _pairs(members: list[int], most: int) -> Iterator[tuple[int, int]]:
    every = list(itertools.combinations(members, 2))
    if len(every) <= most:
        return iter(every)
    near = {(members[i], members[i + k]) for k in (1, 2) for i in range(len(members) - k)}
    step = max(1, len(every) // max(1, most - len(near)))
    return iter(sorted(near | set(every[::step])))


def skew(values: Sequence[float]) -> float:
    """How many times more p-values below 0.01 there are than uniform messages give."""
    return sum(p < 0.01 for p in values) / max(1.0, 0.01 * len(values))
