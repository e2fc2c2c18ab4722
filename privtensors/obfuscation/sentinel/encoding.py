"""Rows of token ids from texts and sentences, for the plain model and for the keyed one, with labels where they belong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from privtensors.errors import FileFormatError
from privtensors.obfuscation.sentinel.data import Example
from privtensors.obfuscation.sentinel.words import KeyedWords

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, list[int] | int]

IGNORED: Final = -100
"""The label that torch's cross entropy leaves out."""


@dataclass(frozen=True)
class Encoded:
    """Rows for a model, and where their words begin.

    Attributes:
        rows: ``input_ids``, ``attention_mask`` and ``labels`` of each example.
        starts: For sentences: per token the number of the word that begins there, None elsewhere; empty for texts.
    """

    rows: list[Row]
    starts: list[list[int | None]]


class Encoder(Protocol):
    """Turns text into the token ids that a model reads."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the model's side; pads."""
        ...

    def texts(self, texts: Sequence[str], length: int) -> list[list[int]]:
        """Token ids of each text, framed, at most ``length``."""
        ...

    def sentences(self, sentences: Sequence[Sequence[str]], length: int) -> list[tuple[list[int], list[int | None]]]:
        """Token ids of each sentence in words, and for each id the number of the word that begins there; None elsewhere."""
        ...


class PlainEncoder:
    """The plain model's own tokenizer: what the keyed model is compared with."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._tokenizer

    def texts(self, texts: Sequence[str], length: int) -> list[list[int]]:
        return _ids(self._tokenizer(list(texts), truncation=True, max_length=length))

    def sentences(self, sentences: Sequence[Sequence[str]], length: int) -> list[tuple[list[int], list[int | None]]]:
        found = self._tokenizer([list(one) for one in sentences], is_split_into_words=True, truncation=True, max_length=length)
        return [(ids, _starts(found.word_ids(row))) for row, ids in enumerate(_ids(found))]


class KeyedEncoder:
    """Keyed text by the owner's words, then ids by the keyed tokenizer: the two sides of a request.

    Args:
        words: The owner's.
        tokenizer: The keyed one, of the model's side.
    """

    def __init__(self, words: KeyedWords, tokenizer: PreTrainedTokenizerBase) -> None:
        self._words, self._tokenizer = words, tokenizer

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._tokenizer

    def texts(self, texts: Sequence[str], length: int) -> list[list[int]]:
        return _ids(self._tokenizer([str(self._words.encode(text)) for text in texts], truncation=True, max_length=length))

    def sentences(self, sentences: Sequence[Sequence[str]], length: int) -> list[tuple[list[int], list[int | None]]]:
        keyed = [self._words.encode_words(one) for one in sentences]
        found = self._tokenizer([list(one.words) for one in keyed], is_split_into_words=True, truncation=True, max_length=length)
        rows = []
        for row, ids in enumerate(_ids(found)):
            pieces = found.word_ids(row)  # a keyed word is one token, so this numbers tokens; the owner knows their words
            rows.append((ids, _starts([None if piece is None else keyed[row].word_ids[piece] for piece in pieces])))
        return rows


def encode_texts(encoder: Encoder, examples: Sequence[Example], names: Sequence[str], length: int) -> Encoded:
    """Rows for sequence classification.

    Args:
        encoder: Plain or keyed.
        examples: Texts with labels.
        names: The labels in the order of the model's outputs.
        length: At most so many tokens.

    Raises:
        FileFormatError: A label is not in ``names``.
    """
    order = {name: index for index, name in enumerate(names)}
    labels = [_order_of(order, str(one.label)) for one in examples]
    ids = encoder.texts([str(one.text) for one in examples], length) if examples else []
    rows: list[Row] = [{"input_ids": r, "attention_mask": [1] * len(r), "labels": label} for r, label in zip(ids, labels, strict=True)]
    return Encoded(rows, [])


def encode_sentences(encoder: Encoder, examples: Sequence[Example], names: Sequence[str], length: int) -> Encoded:
    """Rows for token classification: the tag of a word stands at its first token, everything else is :data:`IGNORED`.

    The published script left the framing tokens out of the labels but not out of the ids, so every tag stood one token too early.

    Raises:
        FileFormatError: A tag is not in ``names``.
    """
    order = {name: index for index, name in enumerate(names)}
    found = encoder.sentences([one.text for one in examples], length) if examples else []
    rows: list[Row] = []
    for example, (ids, starts) in zip(examples, found, strict=True):
        tags = [IGNORED if word is None else _order_of(order, example.label[word]) for word in starts]
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": tags})
    return Encoded(rows, [starts for _, starts in found])


def _order_of(order: dict[str, int], name: str) -> int:
    if name not in order:
        known = ", ".join(ascii(one) for one in list(order)[:10])
        raise FileFormatError("a label that the model does not know", where="dataset", fix=f"It knows {known}")
    return order[name]


def _ids(found: Any) -> list[list[int]]:
    return [[int(number) for number in row] for row in found["input_ids"]]


def _starts(words: Sequence[int | None]) -> list[int | None]:
    """The number of a word where it begins, None where it goes on."""
    return [word if word != before else None for before, word in zip([None, *words], words, strict=False)]
