"""Schemes under attack: what their server holds, and the truth about it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor

from privtensors.audit.obfuscation.attack import Tables
from privtensors.obfuscation.equivariant import basis_of, hidden_map, maps_of, transform
from privtensors.obfuscation.keys import ObfuscationKey
from privtensors.obfuscation.sentinel.compat import DEFAULT_PASSKEY, glide, involution
from privtensors.obfuscation.sentinel.hardened import harden
from privtensors.obfuscation.vocabulary import Vocabulary

Answers = Callable[[Tensor, Tensor], Tensor]
"""From plain ids and attention mask (batch, n) to the server's last hidden states in the plain basis, (batch, n, width)."""

_UNITS: Final = ("layernorm", "layer_norm", "position_embeddings", "wpe")


@dataclass(frozen=True, eq=False, repr=False)
class Target:
    """One scheme.

    Attributes:
        scheme: Its name.
        noise: On the embedding, in units of its standard deviation (hardened: of each row's).
        plain: The truth, ``plain[keyed id]``, int64 (size,).
        tables: What the server holds.
        model: The server's model; None where there are only tables.
        answers: What the owner gets; None where there is no model of this function.
    """

    scheme: str
    noise: float
    plain: Tensor
    tables: Tables
    model: Any = None
    answers: Answers | None = None

    @property
    def keyed(self) -> Tensor:
        """``keyed[plain id]``, int64 (size,)."""
        return torch.argsort(self.plain)


def tables_of(model: Any) -> Tables:
    """The token embedding of a stock transformers model, and every parameter with a column per hidden unit that moves with it alone."""
    words = model.get_input_embeddings().weight
    base = getattr(model, "base_model", model)
    named = ((name, one) for name, one in base.named_parameters() if any(part in name.lower() for part in _UNITS))
    units = [one.detach().float().cpu().reshape(-1, words.shape[1]) for _, one in named if one.shape[-1] == words.shape[1]]
    return Tables(words, torch.cat(units) if units else None)


def answers_of(model: Any, keyed: Tensor, back: Callable[[Tensor], Tensor] | None = None) -> Answers:
    """What the owner of a key gets from the server's model.

    Args:
        model: A stock model; only its encoder is run.
        keyed: ``keyed[plain id]``.
        back: From the server's hidden states to the plain basis; None for none.
    """
    encoder = getattr(model, "base_model", model)

    @torch.no_grad()
    def answers(ids: Tensor, mask: Tensor) -> Tensor:
        states: Tensor = encoder(input_ids=keyed[ids], attention_mask=mask).last_hidden_state
        return states if back is None else back(states).float()

    return answers


@dataclass(frozen=True, eq=False, repr=False)
class Schemes:
    """Makes targets from one open model and one key.

    Attributes:
        model: A stock encoder, in evaluation mode; left untouched.
        special: Ids of the special tokens.
        words: Ids of the other tokens of the tokenizer, ascending.
        key: The owner's.
    """

    model: Any
    special: tuple[int, ...]
    words: tuple[int, ...]
    key: ObfuscationKey = field(default_factory=ObfuscationKey.generate)

    @cached_property
    def public(self) -> Tables:
        """What everybody has."""
        return tables_of(self.model)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary.from_key(self.key, self.public.size)

    @cached_property
    def _noise(self) -> tuple[Tensor, Tensor | None]:
        """Of one standard deviation, for words and units."""
        words, units = self.public.words, self.public.units
        stream = self.key.stream("audit/noise")
        of_words = stream.normal(tuple(words.shape)).float() * words.std()
        return of_words, None if units is None else stream.normal(tuple(units.shape)).float() * units.std(1, keepdim=True)

    def _noised(self, noise: float) -> Tables:
        if not noise:
            return self.public
        words, units = self._noise
        named = self.public.units
        return Tables(self.public.words + noise * words, None if units is None or named is None else named + noise * units)

    def vocabulary_only(self, noise: float = 0.0) -> Target:
        """A bijection of the ids: rows of the embedding in another order."""
        plain = self._vocabulary.plain
        model = copy.deepcopy(self.model)
        _put(model, self._noised(noise).words[plain])
        return Target("vocabulary", noise, plain, tables_of(model), model, answers_of(model, self._vocabulary.keyed))

    def hidden_permutation(self, noise: float = 0.0) -> Target:
        """And one permutation of the hidden units, with noise on the embedding and on what else names the units."""
        units = self.key.stream("audit/units").permutation(self.public.words.shape[1])
        return self._hidden("vocabulary + hidden permutation", noise, lambda rows: rows[:, units])

    def hidden_orthogonal(self, noise: float = 0.0) -> Target:
        """And one orthogonal matrix on the hidden units, whether or not the model has room for it: the tables are attacked alone."""
        rotation = self.key.stream("audit/rotation").orthogonal(self.public.words.shape[1])
        return self._hidden("vocabulary + orthogonal", noise, lambda rows: (rows.double() @ rotation).float())

    def _hidden(self, name: str, noise: float, moved: Callable[[Tensor], Tensor]) -> Target:
        tables, plain = self._noised(noise), self._vocabulary.plain
        twin = self.model
        if noise:  # of the same function as the server's, whose basis cancels
            twin = copy.deepcopy(self.model)
            _put(twin, tables.words)
        server = Tables(moved(tables.words[plain]), None if tables.units is None else moved(tables.units))
        return Target(name, noise, plain, server, None, answers_of(twin, torch.arange(len(plain))))

    def equivariant(self) -> Target:
        """The scheme ``equivariant`` whole."""
        vocabulary, labels = maps_of(self.model, self.key)
        assert vocabulary is not None  # a model of text
        model = transform(self.model, self.key, vocabulary=vocabulary, labels=labels)
        return Target("equivariant", 0.0, vocabulary.plain, tables_of(model), model, self._answers(model, vocabulary))

    def sentinel_compat(self, passkey: str = DEFAULT_PASSKEY, factor: int = 3, *, shuffle: bool = True) -> Target:
        """The published SentinelLMs: "glide3" with shuffle by default."""
        swapped = involution(passkey, (*self.special, *self.words), self.special) if shuffle else {}
        plain = torch.arange(self.public.size)
        plain[torch.tensor(list(swapped), dtype=torch.int64)] = torch.tensor(list(swapped.values()), dtype=torch.int64)
        model = copy.deepcopy(self.model)
        _put(model, glide(self.public.words, passkey, factor).float()[plain])
        name = f"sentinel compat, glide{factor}" + (" + shuffle" if shuffle else "")
        return Target(name, 0.0, plain, tables_of(model), model, answers_of(model, plain))

    def sentinel_hardened(self, noise: float) -> Target:
        """The scheme ``sentinel`` as it is by default, with so much noise."""
        vocabulary = Vocabulary.from_key(self.key, self.public.size, fixed=self.special)
        model = harden(self.model, self.key, vocabulary, noise=noise)
        return Target("sentinel hardened", noise, vocabulary.plain, tables_of(model), model, self._answers(model, vocabulary))

    def unrelated(self) -> Target:
        """The control: normal numbers of the embedding's variance. No attack on the weights may find anything."""
        stream = self.key.stream("audit/control")
        words = stream.normal(tuple(self.public.words.shape)).float() * self.public.words.std()
        units = None if self.public.units is None else stream.normal(tuple(self.public.units.shape)).float()
        return Target("control: unrelated weights", 0.0, self._vocabulary.plain, Tables(words, units))

    def _answers(self, model: Any, vocabulary: Vocabulary) -> Answers:
        basis = hidden_map(self.key, int(self.model.config.hidden_size), basis_of(self.model)).inverse
        return answers_of(model, vocabulary.keyed, lambda states: basis.apply(states.double(), states.ndim - 1))


def _put(model: Any, rows: Tensor) -> None:
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(rows)
