"""Entity F1 against known cases and against the evaluation script's own rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privtensors.errors import InvalidInput
from privtensors.obfuscation.sentinel.entities import entities, entity_scores

TAGS = st.lists(st.sampled_from(["O", *(f"{p}-{x}" for p in "BIESLU" for x in ("PER", "LOC"))]), max_size=9)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O", set()),
        ("B-PER I-PER O B-LOC", {("PER", 0, 2), ("LOC", 3, 4)}),
        ("B-PER B-PER", {("PER", 0, 1), ("PER", 1, 2)}),
        ("I-PER I-PER", {("PER", 0, 2)}),
        ("I-PER B-PER", {("PER", 0, 1), ("PER", 1, 2)}),
        ("B-PER I-LOC I-LOC", {("PER", 0, 1), ("LOC", 1, 3)}),
        ("B-PER I-PER E-PER I-PER", {("PER", 0, 3), ("PER", 3, 4)}),
        ("S-LOC S-LOC", {("LOC", 0, 1), ("LOC", 1, 2)}),
        ("B-NORP-X I-NORP-X", {("NORP-X", 0, 2)}),
    ],
)
def test_known_cases(tags: str, expected: set[tuple[str, int, int]]) -> None:
    assert entities(tags.split()) == expected


def script_chunks(tags: list[str]) -> set[tuple[str, int, int]]:
    """conlleval's endOfChunk and startOfChunk, rule by rule (L and U are its E and S)."""
    found, start = set(), 0
    before, kind = "O", ""
    for at, full in enumerate([*tags, "O"]):
        tag, _, label = full.partition("-")
        tag = {"L": "E", "U": "S"}.get(tag, tag)
        end = (before in ("B", "I") and tag in ("B", "S", "O")) or (before in ("E", "S")) or (before != "O" and kind != label)
        begin = (
            tag in ("B", "S")
            or (before in ("E", "S", "O") and tag in ("E", "I"))
            or (tag != "O" and kind != label)
        )
        if end and before != "O":
            found.add((kind, start, at))
        if begin:
            start = at
        before, kind = tag, label
    return found


@given(TAGS)
def test_entities_are_those_of_the_evaluation_script(tags: list[str]) -> None:
    assert entities(tags) == script_chunks(tags)


def test_scores_of_a_known_case() -> None:
    true = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-ORG"]]
    found = [["B-PER", "O", "O", "B-LOC"], ["O", "B-MISC"]]
    result = entity_scores(true, found)
    assert (result.true, result.found, result.correct) == (3, 3, 1)
    assert result.precision == result.recall == result.f1 == pytest.approx(1 / 3)
    assert entity_scores([["O"]], [["O"]]).f1 == 0.0
    assert entity_scores([["B-A"]], [["O"]]).precision == 0.0


@given(TAGS)
def test_the_truth_scores_one(tags: list[str]) -> None:
    assert entity_scores([tags], [tags]).f1 == float(bool(entities(tags)))


@pytest.mark.parametrize("tag", ["PER", "B", "B-", "X-PER", "", "O-PER"])
def test_malformed_tags_are_refused(tag: str) -> None:
    with pytest.raises(InvalidInput):
        entities([tag])


def test_different_lengths_are_refused() -> None:
    with pytest.raises(InvalidInput):
        entity_scores([["O"]], [["O", "O"]])
    with pytest.raises(InvalidInput):
        entity_scores([["O"]], [])
