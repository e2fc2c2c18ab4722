"""Text for attacks on id streams: what the victim sends, and what the attacker has of the same kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from privtensors.errors import InvalidInput

Encode = Callable[[Sequence[str]], list[list[int]]]
"""From texts to plain ids, special tokens included, nothing cut off."""

_BATCH: Final = 512


@dataclass(frozen=True, eq=False, repr=False)
class Material:
    """Plain ids.

    Attributes:
        victim: What is sent under one key, in order, int64 (n,).
        corpus: What the attacker has: other texts, int64 (m,).
        day: One prompt and one answer, for the contest, int64 (k,).
    """

    victim: Tensor
    corpus: Tensor
    day: Tensor


def encode_with(tokenizer: Any) -> Encode:
    """By a transformers tokenizer."""

    def encode(texts: Sequence[str]) -> list[list[int]]:
        found: list[list[int]] = tokenizer(list(texts), truncation=False, padding=False, verbose=False)["input_ids"]
        return found

    return encode


def material(texts: Iterable[str], encode: Encode, volume: int, corpus: int = 1_000_000) -> Material:
    """The first texts are the victim's, up to ``volume`` tokens; the next two are the contest's day; the rest is the attacker's.

    Args:
        texts: Distinct ones, in an order that has nothing to do with what they say.
        encode: The open model's tokenizer.
        volume: Tokens that the victim sends.
        corpus: Tokens that the attacker has, at most.

    Raises:
        InvalidInput: The texts have fewer than twice ``volume`` tokens, or there are fewer than four.
    """
    stream = _encoded(texts, encode)
    victim = _taken(stream, volume)
    day = [one for one, _ in zip(stream, range(2), strict=False)]
    rest = _taken(stream, corpus)
    if len(victim) < volume or len(rest) < volume or len(day) < 2:
        what = f"the texts give {len(victim):,} tokens to send and {len(rest):,} to an attacker, at least {volume:,} each are needed"
        raise InvalidInput(what, where="audit obfuscation, texts", fix="Give more text, one document a line, or smaller --volumes")
    return Material(victim[:volume], rest, torch.tensor([number for one in day for number in one]))


def _encoded(texts: Iterable[str], encode: Encode) -> Any:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == _BATCH:
            yield from encode(batch)
            batch = []
    if batch:
        yield from encode(batch)


def _taken(stream: Any, number: int) -> Tensor:
    found: list[int] = []
    while len(found) < number:
        one = next(stream, None)
        if one is None:
            break
        found += one
    return torch.tensor(found, dtype=torch.int64)
