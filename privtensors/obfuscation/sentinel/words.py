"""Keyed text: every token of the plain tokenizer replaced by a keyed hash, and the tokenizer that turns such text into keyed ids.

The owner's side splits text exactly as the plain model does, replaces each token ("film", "##ing", "Ġthe") by the keyed BLAKE2b-128
(RFC 7693) of its characters in 32 hexadecimal digits, and joins them by spaces. The model's side has a table from such words to ids.
Mishra, Li and Deo (AAAI 2024). Guarantee class: heuristic. Equal tokens give equal words, so frequencies and known texts reveal them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, NoReturn

from privtensors.errors import InvalidInput, ObfuscationError, ParameterError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    from privtensors.obfuscation.keys import ObfuscationKey

DIGEST_BYTES: Final = 16
LONGEST_PASSKEY: Final = 64
"""Bytes of UTF-8 that BLAKE2b takes as a key."""

_PERSON: Final = b"privtensors/word"  # BLAKE2b's personalisation, 16 bytes: these words equal no other keyed hash
_PURPOSE: Final = "sentinel/words"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class WordHash:
    """Keyed BLAKE2b-128 of a token's UTF-8 bytes. Its text shows nothing of the key, and it can be neither pickled nor copied.

    Attributes:
        secret: BLAKE2b's key, 1 to 64 bytes.
        person: BLAKE2b's personalisation; empty in the published construction.
    """

    secret: bytes
    person: bytes = b""

    @classmethod
    def of_key(cls, key: ObfuscationKey) -> WordHash:
        """The words of a key: its 32 bytes for this purpose alone, and a personalisation of our own."""
        return cls(key.subkey(_PURPOSE), _PERSON)

    @classmethod
    def of_passkey(cls, passkey: str) -> WordHash:
        """The published words: the passkey itself is the key, nothing is separated, nothing is slow.

        Raises:
            ParameterError: The passkey is empty or has more than 64 bytes.
        """
        secret = passkey.encode()
        if not 1 <= len(secret) <= LONGEST_PASSKEY:
            fix = "Give 1 to 64 bytes, or convert without compat"
            raise ParameterError(f"a passkey of {len(secret)} bytes, BLAKE2b takes 1 to {LONGEST_PASSKEY}", where="encryption_key", fix=fix)
        return cls(secret)

    def __call__(self, token: str) -> str:
        """32 hexadecimal digits."""
        return blake2b(token.encode(), digest_size=DIGEST_BYTES, key=self.secret, person=self.person).hexdigest()

    def __repr__(self) -> str:
        return "WordHash(secret=hidden)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise ObfuscationError("the words of a key cannot be pickled", where="WordHash", fix="Make them from the key where they are needed")


@dataclass(frozen=True, slots=True)
class KeyedText:
    """What leaves the owner for one text, and how it lies on the plain one (which stays).

    Attributes:
        words: One keyed word, or one special token, per token of the plain tokenizer; none of those that frame a text.
        offsets: For each, where its characters start and end in the plain text; in its own word where words were given.
        word_ids: For each, the number of the word it belongs to: a word and its continuations share one.
    """

    words: tuple[str, ...]
    offsets: tuple[tuple[int, int], ...] = field(repr=False)
    word_ids: tuple[int, ...]

    def __str__(self) -> str:
        return " ".join(self.words)


class KeyedWords:
    """The owner's encoder: from plain text to keyed text. It holds the key's words and never leaves the owner.

    Args:
        tokenizer: The plain model's tokenizer, in its fast form.
        word_hash: From the key or passkey.

    Raises:
        ObfuscationError: The tokenizer has no fast form.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, word_hash: WordHash) -> None:
        self._backend = json.loads(backend_of(tokenizer).to_str())
        self._tokenizer: Any = tokenizer
        self._specials = specials_of(tokenizer)
        self._words = keyed_words(tokenizer, word_hash)
        self._hash = word_hash
        self._space = _needs_space(self._backend["pre_tokenizer"])

    def __repr__(self) -> str:
        return f"KeyedWords({len(self._words)} words)"

    @property
    def vocabulary(self) -> frozenset[str]:
        """Every keyed word there is under this key."""
        return frozenset(self._words.values())

    def encode(self, text: str) -> KeyedText:
        """Keyed text of a plain one, of any length.

        Raises:
            InvalidInput: It is no text.
        """
        if not isinstance(text, str):
            raise InvalidInput(f"expected a text, not {type(text).__name__}", where="KeyedWords.encode")
        found = self._split([text])
        return KeyedText(self._keyed(found["input_ids"][0]), _pairs(found["offset_mapping"][0]), _words_of(found, 0))

    def encode_words(self, words: Sequence[str]) -> KeyedText:
        """Keyed text of a sentence that comes in words; ``word_ids`` number them, so that labels per word find their tokens.

        Raises:
            InvalidInput: Some word is no text, or ``words`` is one text.
        """
        if isinstance(words, str) or not all(isinstance(word, str) for word in words):
            raise InvalidInput("expected a sequence of words", where="KeyedWords.encode_words", fix="Use encode for a text")
        if not words:
            return KeyedText((), (), ())
        # A byte-level tokenizer marks the start of a word by the space before it.
        found = self._split([" " + word if self._space else word for word in words])
        shift = int(self._space)
        ids = [number for one in found["input_ids"] for number in one]
        offsets = [(max(0, a - shift), max(0, b - shift)) for one in found["offset_mapping"] for a, b in one]
        numbers = [index for index, one in enumerate(found["input_ids"]) for _ in one]
        return KeyedText(self._keyed(ids), tuple(offsets), tuple(numbers))

    def _split(self, texts: list[str]) -> Any:
        return self._tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, truncation=False, padding=False, verbose=False)

    def _keyed(self, ids: Iterable[int]) -> tuple[str, ...]:
        tokens: list[str] = self._tokenizer.convert_ids_to_tokens(list(ids))
        return tuple(token if token in self._specials else self._words.get(token) or self._hash(token) for token in tokens)


def backend_of(tokenizer: PreTrainedTokenizerBase) -> Any:
    """The ``tokenizers`` object of a fast tokenizer.

    Raises:
        ObfuscationError: There is none.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        fix = "Take a checkpoint that has a tokenizer.json, or convert it first (transformers.convert_slow_tokenizer)"
        raise ObfuscationError(f"{type(tokenizer).__name__} has no fast form", where="sentinel", fix=fix)
    return backend


def specials_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Text and id of every special token. They keep both.

    Every text is framed and padded by them, so their places give them away whatever they are called. And the defaults of stock classes,
    configurations and collators name their ids; RoBERTa even numbers positions from its padding id.
    """
    return {str(token): int(number) for token, number in zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)}


def keyed_words(tokenizer: PreTrainedTokenizerBase, word_hash: WordHash) -> dict[str, str]:
    """The keyed word of every token that is not special."""
    specials = specials_of(tokenizer)
    return {token: word_hash(token) for token in tokenizer.get_vocab() if token not in specials}


def keyed_word_tokenizer(tokenizer: PreTrainedTokenizerBase, word_hash: WordHash, ids: Mapping[int, int]) -> PreTrainedTokenizerFast:
    """The tokenizer of the model's side: keyed text to keyed ids, framed like the plain one's. It holds no token of the plain vocabulary.

    Args:
        tokenizer: The plain model's tokenizer.
        word_hash: From the key or passkey.
        ids: Keyed id of each plain id; special tokens must map to themselves.

    Returns:
        A tokenizer that ``save_pretrained`` writes as ``tokenizer.json`` and ``tokenizer_config.json``, and stock ``AutoTokenizer`` loads.
        A word that is not in its table, as every word under another key, becomes the unknown token.

    Raises:
        ObfuscationError: No fast form, no unknown token, or an id outside ``ids``.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    specials = specials_of(tokenizer)
    if tokenizer.unk_token is None:
        fix = "Give it one, or take another model"
        raise ObfuscationError("the tokenizer has no unknown token, which words under another key would become", where="sentinel", fix=fix)
    moved = [token for token, number in specials.items() if ids.get(number) != number]
    absent = [number for number in tokenizer.get_vocab().values() if number not in ids]
    if moved or absent:
        what = f"{len(moved)} special tokens change their id, {len(absent)} ids have no keyed one"
        raise ObfuscationError(what, where="sentinel", fix="Resize the model's embedding to its tokenizer before converting")
    plain = tokenizer.get_vocab()
    vocabulary = specials | {word: ids[plain[token]] for token, word in keyed_words(tokenizer, word_hash).items()}
    inner = Tokenizer(WordLevel(dict(sorted(vocabulary.items(), key=lambda item: item[1])), unk_token=str(tokenizer.unk_token)))
    content = json.loads(inner.to_str())
    content["post_processor"] = _frame(json.loads(backend_of(tokenizer).to_str())["post_processor"])
    inner = Tokenizer.from_str(json.dumps(content))
    setter: Any = inner
    setter.pre_tokenizer = WhitespaceSplit()
    make: Any = PreTrainedTokenizerFast
    named = {
        name: token for name, token in tokenizer.special_tokens_map.items() if name in PreTrainedTokenizerFast.SPECIAL_TOKENS_ATTRIBUTES
    }
    extra = [token for token in specials if token not in {str(one) for one in named.values()}]
    settings = {"model_max_length": tokenizer.model_max_length, "model_input_names": list(tokenizer.model_input_names)}
    settings |= {"padding_side": tokenizer.padding_side, "truncation_side": tokenizer.truncation_side}
    settings |= {"clean_up_tokenization_spaces": False}
    made: PreTrainedTokenizerFast = make(tokenizer_object=inner, **settings, **named, **({"extra_special_tokens": extra} if extra else {}))
    return made


def _needs_space(part: Mapping[str, Any] | None) -> bool:
    """Whether a pre-tokenizer tells the start of a word by a space and does not put one there itself."""
    if part is None:
        return False
    if part["type"] == "Sequence":
        return any(_needs_space(one) for one in part["pretokenizers"])
    return part["type"] == "ByteLevel" and not part["add_prefix_space"]


def _frame(part: dict[str, Any] | None) -> dict[str, Any] | None:
    """The post-processor without what only moves offsets."""
    if part is None or part["type"] == "ByteLevel":
        return None
    if part["type"] == "Sequence":
        kept = [one for one in map(_frame, part["processors"]) if one is not None]
        return {**part, "processors": kept} if kept else None
    return part


def _pairs(offsets: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    return tuple((int(a), int(b)) for a, b in offsets)


def _words_of(found: Any, row: int) -> tuple[int, ...]:
    """Word of each token; a special token in the text is a word of its own."""
    numbers: list[int] = []
    for number in found.word_ids(row):
        numbers.append(number if number is not None else (numbers[-1] + 1 if numbers else 0))
    return tuple(numbers)
