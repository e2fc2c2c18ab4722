"""Attacks on the embedding: where each must succeed, and where it must fail."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from privtensors.audit.obfuscation import (
    Attack,
    ColumnMatching,
    Probe,
    RowMatching,
    Schemes,
    Signature,
    Spectral,
    Tables,
    Target,
    UnitMatching,
    View,
)
from privtensors.audit.obfuscation.nearest import nearest, nearest_absolute
from privtensors.errors import InvalidInput
from tests.unit.audit.obfuscation.small import SIZE, WIDTH, schemes, unrelated

KINDS = (Signature.ROW, Signature.CENTRED, Signature.DIFFERENCES, Signature.SORTED)
ROW, CENTRED, DIFFERENCES, SORTED = map(RowMatching, KINDS)
MOVED: tuple[Attack, ...] = (Spectral(0), Spectral(), ColumnMatching(), UnitMatching())
ALL: tuple[Attack, ...] = (ROW, CENTRED, DIFFERENCES, SORTED, RowMatching(Signature.DIRECTION), *MOVED)


def share(attack: Attack, target: Target, made: Schemes) -> float:
    view = View(SIZE, public=made.public, server=target.tables)
    probe = Probe.sampled(target.plain, torch.empty(0, dtype=torch.int64), SIZE)
    return probe.score(attack.recover(view, probe.ids)).tokens


def test_each_attack_breaks_what_it_is_made_for() -> None:
    made = schemes()
    glide = made.sentinel_compat(factor=3)
    expected: list[tuple[Attack, Target, float]] = [
        (ROW, made.vocabulary_only(), 1.0),
        (SORTED, made.hidden_permutation(), 1.0),
        (UnitMatching(), made.hidden_permutation(), 1.0),
        (ColumnMatching(), made.hidden_permutation(), 1.0),
        (Spectral(0), made.hidden_permutation(), 0.99),
        (Spectral(0), made.hidden_orthogonal(), 0.99),
        (CENTRED, glide, 1.0),
        (DIFFERENCES, glide, 1.0),
        (SORTED, made.equivariant(), 1.0),
        (UnitMatching(), made.sentinel_hardened(0.0), 1.0),
    ]
    for attack, target, least in expected:
        assert share(attack, target, made) >= least, (attack.name, target.scheme)


def test_each_attack_fails_on_what_it_does_not_undo() -> None:
    made = schemes()
    permuted, rotated = made.hidden_permutation(), made.hidden_orthogonal()
    for attack in (ROW, CENTRED, DIFFERENCES):
        assert share(attack, permuted, made) < 0.02, attack.name
    for one in (ROW, SORTED, ColumnMatching(), UnitMatching()):
        assert share(one, rotated, made) < 0.02, one.name


@pytest.mark.parametrize("attack", ALL, ids=lambda one: one.name)
def test_nothing_is_found_in_unrelated_weights(attack: Attack) -> None:
    made = schemes()
    target = replace(made.vocabulary_only(), tables=unrelated())
    assert share(attack, target, made) < 0.02


def test_noise_stops_sorted_rows_and_not_matched_units() -> None:
    made = schemes()
    shares = [share(SORTED, made.hidden_permutation(noise), made) for noise in (0.0, 0.3, 1.0)]
    assert shares[0] == 1.0 and shares[0] > shares[1] > shares[2] and shares[2] < 0.05
    assert share(UnitMatching(), made.hidden_permutation(1.0), made) > 0.8
    assert share(ColumnMatching(), made.hidden_permutation(0.3), made) > shares[1]  # 600 rows; real tables have 30,000


def test_refinement_reads_more_through_noise() -> None:
    made = schemes()
    target = made.hidden_orthogonal(0.3)
    assert share(Spectral(), target, made) > share(Spectral(0), target, made)


def test_no_units_no_guess() -> None:
    made = schemes()
    bare = Tables(made.vocabulary_only().tables.words)
    guesses = UnitMatching().recover(View(SIZE, public=made.public, server=bare), torch.arange(5))
    assert guesses.tolist() == [-1] * 5


def test_running_share_is_weighted_by_frequency() -> None:
    plain = torch.tensor([1, 0, 3, 2])
    probe = Probe.sampled(plain, torch.tensor([0, 0, 0, 1]), 4)
    found = probe.score(torch.tensor([1, 3, 3, 3]))
    assert found.tokens == pytest.approx(0.5) and found.running == pytest.approx(0.75)
    assert probe.score(torch.full((4,), -1)).running == 0.0


def test_nearest_agrees_with_cdist() -> None:
    draw = torch.Generator().manual_seed(0)
    points, table = torch.randn(300, WIDTH, generator=draw), torch.randn(500, WIDTH, generator=draw)
    found, squared = nearest(points, table)
    exact = torch.cdist(points.double(), table.double())
    assert torch.equal(found, exact.argmin(1)) and torch.allclose(squared.double(), exact.min(1).values ** 2, atol=1e-4)
    whole = nearest_absolute(points, table, shortlist=500)
    assert torch.equal(whole, torch.cdist(points.double(), table.double(), p=1).argmin(1))


def test_bad_tables_and_views_are_refused() -> None:
    with pytest.raises(InvalidInput, match="not finite"):
        Tables(torch.full((3, 2), torch.nan))
    with pytest.raises(InvalidInput, match="shape"):
        Tables(torch.zeros(3, 2), torch.zeros(3, 5))
    with pytest.raises(InvalidInput, match="needs server"):
        ROW.recover(View(3, public=Tables(torch.zeros(3, 2))), torch.arange(3))


def test_no_table_is_shown() -> None:
    assert "tensor(" not in repr(Tables(torch.zeros(2, 2))) + repr(View(2, stream=torch.zeros(2))) + repr(schemes().vocabulary_only())
