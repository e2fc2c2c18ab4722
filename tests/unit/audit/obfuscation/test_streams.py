"""Attacks on the id stream, known plaintext, seeds and the contest."""

from __future__ import annotations

import pytest
import torch

from privtensors.audit.obfuscation import (
    Attack,
    Attacker,
    Decipherment,
    FrequencyRank,
    HillClimbing,
    IdsAsTheyAre,
    KnownPlaintext,
    Probe,
    RandomGuess,
    SeedEnumeration,
    View,
    brute_force_digits,
    material,
    play,
)
from privtensors.audit.obfuscation.decipher import sinkhorn
from privtensors.audit.obfuscation.seeds import likely_seeds, swaps
from privtensors.errors import InvalidInput
from privtensors.obfuscation.sentinel.compat import involution, seed_of
from tests.unit.audit.obfuscation.small import SIZE, SPECIAL, WORDS, language, schemes

TEXT, CORPUS = language(12_000, seed=1), language(40_000, seed=2)
KEYED = torch.randperm(200, generator=torch.Generator().manual_seed(3))
PLAIN = torch.argsort(KEYED)


def read(attack: Attack, volume: int, corpus: torch.Tensor = CORPUS) -> float:
    stream = KEYED[TEXT[:volume]]
    probe = Probe.of_stream(PLAIN, stream)
    return probe.score(attack.recover(View(200, stream=stream, corpus=corpus), probe.ids)).running


def test_bigrams_read_more_than_frequencies_and_more_with_volume() -> None:
    attack = Decipherment(common=200, start=50)
    shares = [read(attack, volume) for volume in (100, 1_000, 12_000)]
    assert shares[0] < shares[2] and shares[2] > 0.9, shares
    assert read(FrequencyRank(), 12_000) < shares[2] - 0.2


def test_climbing_reads_more_than_frequencies() -> None:
    assert read(HillClimbing(steps=150, tried=64, common=200), 800) > read(FrequencyRank(), 800)


@pytest.mark.parametrize(
    "attack", [FrequencyRank(), Decipherment(common=200), HillClimbing(steps=20, common=200)], ids=lambda one: one.name
)
def test_no_text_no_reading(attack: Attack) -> None:
    noise = torch.randint(200, (3_000,), generator=torch.Generator().manual_seed(4))
    stream = KEYED[noise]
    probe = Probe.of_stream(PLAIN, stream)
    found = probe.score(attack.recover(View(200, stream=stream, corpus=torch.arange(1500) % 200), probe.ids))
    assert found.running < 0.05


def test_short_streams_are_no_error() -> None:
    for volume in (1, 2, 3):
        assert 0 <= read(Decipherment(common=200), volume) <= 1
        assert 0 <= read(HillClimbing(steps=3, common=200), volume) <= 1


def test_sinkhorn_is_doubly_stochastic() -> None:
    found = sinkhorn(torch.randn(40, 40, generator=torch.Generator().manual_seed(0)) * 3, rounds=200)
    assert torch.allclose(found.sum(0), torch.ones(40), atol=1e-3) and torch.allclose(found.sum(1), torch.ones(40), atol=1e-3)


def test_known_plaintext_reads_all_it_has_seen_and_nothing_else() -> None:
    seen, later = TEXT[:500], TEXT[6_000:]
    probe = Probe.of_stream(PLAIN, KEYED[later])
    guesses = KnownPlaintext().recover(View(200, known=(seen, KEYED[seen])), probe.ids)
    known = torch.isin(probe.plain, seen)
    assert torch.equal(guesses[known], probe.plain[known]) and bool((guesses[~known] == -1).all())
    assert probe.score(guesses).running == pytest.approx(float(torch.isin(later, seen).float().mean()))


@pytest.mark.parametrize("passkey", ["languagemodel123", "nlp2023", "x"])
def test_swaps_are_the_published_ones(passkey: str) -> None:
    published = involution(passkey, (*SPECIAL, *WORDS), SPECIAL)
    assert swaps(seed_of(passkey), WORDS, SIZE).tolist() == [published[number] for number in range(SIZE)]


def test_a_seed_is_found_among_those_tried_and_not_among_others() -> None:
    made = schemes()
    target = made.sentinel_compat("nlp2023", factor=3)
    probe = Probe.sampled(target.plain, torch.empty(0, dtype=torch.int64), SIZE)
    view = View(SIZE, public=made.public, server=target.tables)
    near = tuple(range(seed_of("nlp2023") - 20, seed_of("nlp2023") + 1))
    assert probe.score(SeedEnumeration(Attacker.SERVER, WORDS, near).recover(view, probe.ids)).tokens == 1.0
    missed = SeedEnumeration(Attacker.SERVER, WORDS, near[:-1]).recover(view, probe.ids)
    assert bool((missed == -1).all())
    hardened = View(SIZE, public=made.public, server=made.sentinel_hardened(0.0).tables)
    assert bool((SeedEnumeration(Attacker.SERVER, WORDS, near).recover(hardened, probe.ids) == -1).all())
    assert sorted(likely_seeds()) == list(range(10_000))


def test_a_reader_finds_the_seed_by_what_the_text_then_says() -> None:
    target = schemes().sentinel_compat("nlp2023", shuffle=True)
    stream = target.keyed[TEXT[:300] + 5]
    probe = Probe.of_stream(target.plain, stream)
    near = tuple(range(seed_of("nlp2023") - 30, seed_of("nlp2023") + 30))
    view = View(SIZE, stream=stream, corpus=CORPUS + 5)
    assert probe.score(SeedEnumeration(Attacker.READER, WORDS, near).recover(view, probe.ids)).running == 1.0
    with pytest.raises(InvalidInput):
        SeedEnumeration(Attacker.INFORMED, WORDS, near).recover(view, probe.ids)


def test_ids_that_do_not_move_are_read() -> None:
    target = schemes().sentinel_compat(shuffle=False)
    probe = Probe.of_stream(target.plain, target.keyed[TEXT])
    assert probe.score(IdsAsTheyAre().recover(View(SIZE), probe.ids)).running == 1.0


def test_the_contest_counts_ten_and_minus_one() -> None:
    stream = KEYED[TEXT[:120]]
    types = len(stream.unique())
    view = View(200, stream=stream, corpus=CORPUS, known=(TEXT[:120], stream))
    random, known = play([RandomGuess(), KnownPlaintext()], view, PLAIN)
    assert (known.right, known.wrong, known.points) == (types, 0, 10 * types) and known.highest == 10 * types
    assert random.right + random.wrong == types and random.points == 10 * random.right - random.wrong < known.points / 5
    one = KEYED[TEXT[:1]]
    few = play([KnownPlaintext()], View(200, stream=stream, known=(TEXT[:1], one)), PLAIN)[0]
    assert (few.right, few.wrong, few.points) == (1, 0, 10)


def test_brute_force_is_out_of_reach() -> None:
    assert brute_force_digits(2, 5) == pytest.approx(1.30103)  # 20 mappings
    assert brute_force_digits(150, 30_522) > 600


def test_material_is_disjoint_and_large_enough() -> None:
    texts = [f"{number}" for number in range(40)]

    def encode(block: object) -> list[list[int]]:
        return [[int(text)] * 5 for text in block]  # type: ignore[attr-defined]

    found = material(texts, encode, 50)
    parts = [set(one.tolist()) for one in (found.victim, found.day, found.corpus)]
    assert len(found.victim) == 50 and not (parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]) and len(parts[1]) == 2
    with pytest.raises(InvalidInput, match="texts give"):
        material(texts, encode, 150)
