"""Named entities in tag sequences and their F1, by the rules of the CoNLL-2000 evaluation script (Tjong Kim Sang and Buchholz, 2000)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from privtensors.errors import InvalidInput

Span = tuple[str, int, int]
"""Kind, first word, word after the last."""


@dataclass(frozen=True, slots=True)
class EntityScores:
    """Exact matches of kind and both ends, over all sentences.

    Attributes:
        precision: Of the entities found, the share that is right; 0 where none was found.
        recall: Of the true entities, the share that was found; 0 where there are none.
        f1: Their harmonic mean.
        found: How many were found.
        true: How many there are.
        correct: How many of them agree.
    """

    precision: float
    recall: float
    f1: float
    found: int
    true: int
    correct: int


def entities(tags: Sequence[str]) -> frozenset[Span]:
    """The entities of one sentence, tagged O, B-X, I-X (IOB1 or IOB2), E-X, S-X, L-X or U-X.

    An entity begins at B, S and U, after E, S, L and U, after O, and where the kind changes; it ends before the next one begins or at O.
    So an I without a B begins an entity, as in IOB1.

    Raises:
        InvalidInput: A tag is of another form.
    """
    spans: set[Span] = set()
    start, kind, before = 0, "", "O"
    for at, tag in enumerate([*tags, "O"]):
        prefix, _, label = tag.partition("-")
        if not (tag == "O" or (prefix in ("B", "I", "E", "S", "L", "U") and label)):
            raise InvalidInput(f"the tag {tag[:40]!r} is none of O, B-X, I-X, E-X, S-X, L-X, U-X", where="entities")
        begins = tag != "O" and (prefix in ("B", "S", "U") or before in ("O", "E", "S", "L", "U") or label != kind)
        if kind and (tag == "O" or begins):
            spans.add((kind, start, at))
            kind = ""
        if begins:
            start, kind = at, label
        before = prefix
    return frozenset(spans)


def entity_scores(true: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> EntityScores:
    """Entity precision, recall and F1 over sentences.

    Args:
        true: Tags of each word of each sentence.
        found: The predicted ones, as many.

    Raises:
        InvalidInput: The numbers of sentences or words differ, or a tag is malformed.
    """
    if len(true) != len(found) or any(len(a) != len(b) for a, b in zip(true, found, strict=True)):
        raise InvalidInput("true and predicted tags differ in number", where="entity_scores")
    pairs = [(entities(a), entities(b)) for a, b in zip(true, found, strict=True)]
    correct = sum(len(a & b) for a, b in pairs)
    truths, guesses = sum(len(a) for a, _ in pairs), sum(len(b) for _, b in pairs)
    precision, recall = correct / guesses if guesses else 0.0, correct / truths if truths else 0.0
    f1 = 2 * correct / (guesses + truths) if guesses + truths else 0.0
    return EntityScores(precision, recall, f1, guesses, truths, correct)
