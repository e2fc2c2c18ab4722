"""A tokenizer whose every id is keyed: model, added tokens, post-processor and padding alike. Guarantee: heuristic.

The bijection is applied to the serialised tokenizer, so text is split exactly as before and only the numbers change. The tokens
themselves stay readable: the result belongs to the client.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from privtensors.errors import InvalidInput, ObfuscationError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    from privtensors.obfuscation.vocabulary.bijection import Vocabulary

Remap = Callable[[int], int]

_WHERE: Final = "keyed_tokenizer"
_SETTINGS: Final = (
    "model_max_length", "padding_side", "truncation_side", "model_input_names", "clean_up_tokenization_spaces",
    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", "split_special_tokens", "chat_template",
    "response_template", "chat_control_tokens",
)  # fmt: skip
_DICTIONARIES: Final = ("WordPiece", "BPE", "WordLevel")


def keyed_tokenizer(tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary) -> PreTrainedTokenizerFast:
    """A fast tokenizer that gives ``vocabulary.encode`` of the plain ids for every text, and decodes keyed ids to the same text.

    Everything that holds an id is rewritten: the vocabulary of WordPiece, BPE and WordLevel models, the order of a Unigram model (there
    an id is a position) and its unknown id, added tokens, the templates of the post-processor, and the padding. Kept as they are:
    normaliser, pre-tokeniser, decoder, merges, truncation, chat template, sides, maximum length. The input is left untouched.

    Two things differ. ``vocab_size`` of the result counts added tokens too: tokenizers number an added token by themselves unless
    their model knows it, so added tokens move into the model. And ids without a token decode to a placeholder where the
    model is Unigram, because a list has no gaps.

    Args:
        tokenizer: Any tokenizer of ``transformers`` that the ``tokenizers`` library runs.
        vocabulary: Ids of at least all its tokens.

    Returns:
        A tokenizer that ``save_pretrained`` writes as ``tokenizer.json`` and ``tokenizer_config.json`` alone, and stock
        ``AutoTokenizer.from_pretrained`` loads.

    Raises:
        ObfuscationError: There is no fast form, the vocabulary has fewer ids than the tokenizer, two tokens share an id, the kind of
            model or post-processor is unknown, or an added token could be met inside ordinary words, where it would split them differently.
    """
    from tokenizers import Tokenizer

    backend = _backend(tokenizer)
    content: dict[str, Any] = json.loads(backend.to_str())
    tokens = backend.get_vocab(with_added_tokens=True)
    _check_ids(tokens, vocabulary.size)
    keyed: list[int] = vocabulary.keyed.tolist()

    def remap(plain: int) -> int:
        if not 0 <= plain < len(keyed):
            raise _too_large(plain, len(keyed))
        return keyed[plain]

    _check_unreachable(backend, content, tokens, bool(getattr(tokenizer, "split_special_tokens", False)))
    content["model"] = _model(content["model"], {token: remap(number) for token, number in tokens.items()}, len(keyed))
    content["added_tokens"] = _added(content["added_tokens"], tokens, remap)
    content["post_processor"] = _post_processor(content["post_processor"], remap)
    if content["padding"] is not None:
        content["padding"] = content["padding"] | {"pad_id": remap(content["padding"]["pad_id"])}
    return _wrap(tokenizer, Tokenizer.from_str(json.dumps(content)), tokens)


def _backend(tokenizer: PreTrainedTokenizerBase) -> Backend:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    fix = "Convert it first (transformers.convert_slow_tokenizer), or take a checkpoint that has a tokenizer.json"
    if backend is None:
        raise ObfuscationError(f"{type(tokenizer).__name__} has no fast form, only Python code", where=_WHERE, fix=fix)
    try:
        backend.to_str()
    except Exception as error:  # the library raises bare Exception for parts written in Python
        raise ObfuscationError(f"a part of it cannot be serialised ({type(error).__name__})", where=_WHERE, fix=fix) from None
    found: Backend = backend
    return found


def _check_ids(tokens: Mapping[str, int], size: int) -> None:
    largest = max(tokens.values(), default=0)
    if largest >= size:
        raise _too_large(largest, size)
    if len(set(tokens.values())) < len(tokens):
        fix = "Give each token an id of its own, or the keyed ids could not be decoded"
        raise ObfuscationError("two tokens share an id", where=_WHERE, fix=fix)


def _too_large(largest: int, size: int) -> ObfuscationError:
    what = f"the tokenizer has ids up to {largest}, the embedding {size} rows"
    fix = "Call model.resize_token_embeddings(len(tokenizer)) before, or take the tokenizer that belongs to this model"
    return ObfuscationError(what, where=_WHERE, fix=fix)


def _model(model: Mapping[str, Any], keyed: Mapping[str, int], size: int) -> dict[str, Any]:
    """The model with the keyed id of each token, added tokens included."""
    kind = model["type"]
    if kind in _DICTIONARIES:
        return {**model, "vocab": dict(sorted(keyed.items(), key=lambda item: item[1]))}
    if kind != "Unigram":
        fix = f"Known are Unigram, {', '.join(_DICTIONARIES)}"
        raise ObfuscationError(f"tokenizers of the kind {kind} are unknown", where=_WHERE, fix=fix)
    scores: dict[str, float] = dict(model["vocab"])
    lowest = min(scores.values())  # it sets the price of an unknown character, so nothing new may be lower
    pieces: list[list[Any]] = [[f"\x00{number}\x00", lowest] for number in range(size)]
    for token, number in keyed.items():
        pieces[number] = [token, scores.get(token, lowest)]
    unknown = model["unk_id"]
    return {**model, "vocab": pieces, "unk_id": None if unknown is None else keyed[model["vocab"][unknown][0]]}


def _added(added: list[dict[str, Any]], tokens: Mapping[str, int], remap: Remap) -> list[dict[str, Any]]:
    keyed = [{**token, "id": remap(tokens[token["content"]])} for token in added]
    return sorted(keyed, key=lambda token: int(token["id"]))


def _post_processor(part: dict[str, Any] | None, remap: Remap) -> dict[str, Any] | None:
    if part is None:
        return None
    kind = part["type"]
    if kind == "TemplateProcessing":
        special = {name: {**token, "ids": [remap(n) for n in token["ids"]]} for name, token in part["special_tokens"].items()}
        return {**part, "special_tokens": special}
    if kind in ("BertProcessing", "RobertaProcessing"):
        return {**part, **{name: [part[name][0], remap(part[name][1])] for name in ("sep", "cls")}}
    if kind == "Sequence":
        return {**part, "processors": [_post_processor(one, remap) for one in part["processors"]]}
    if kind == "ByteLevel":  # only offsets
        return part
    raise ObfuscationError(f"post-processors of the kind {kind} are unknown", where=_WHERE, fix="Replace it by TemplateProcessing")


def _check_unreachable(backend: Backend, content: Mapping[str, Any], tokens: Mapping[str, int], specials_split: bool) -> None:
    """Refuse added tokens that, once the model knows them, could split ordinary text differently.

    An added token is cut out of the text before the model sees it. The model can still meet its characters where the token applies to
    whole words only, or where the normaliser makes them out of others ("FOO" to "foo").
    """
    known = backend.get_vocab(with_added_tokens=False)
    for token in content["added_tokens"]:
        text = token["content"]
        if text in known:
            continue
        always_cut = not token["single_word"] and not specials_split and (token["normalized"] or content["normalizer"] is None)
        if not always_cut and _mergeless(content["model"], text) and any(text in word for word in _words(backend, text)):
            what = f"the added token of id {tokens[text]} could be met inside ordinary words, which would then be split differently"
            fix = "Add it as AddedToken(…, normalized=True, single_word=False), or put it in the tokenizer's own vocabulary"
            raise ObfuscationError(what, where=_WHERE, fix=fix)


def _mergeless(model: Mapping[str, Any], text: str) -> bool:
    """Whether the model can produce a token without a merge that makes it."""
    return model["type"] != "BPE" or len(text) == 1 or bool(model.get("ignore_merges"))


def _words(backend: Backend, text: str) -> Iterator[str]:
    """What the model is given for a text, added tokens apart."""
    parts: Any = backend  # the stubs have no optional parts
    normal: str = parts.normalizer.normalize_str(text) if parts.normalizer is not None else text
    if parts.pre_tokenizer is None:
        yield normal
    else:
        yield from (word for word, _ in parts.pre_tokenizer.pre_tokenize_str(normal))


def _wrap(plain: PreTrainedTokenizerBase, backend: Backend, tokens: Mapping[str, int]) -> PreTrainedTokenizerFast:
    """The keyed backend with the settings that ``transformers`` keeps beside it."""
    from transformers import PreTrainedTokenizerFast

    settings: dict[str, Any] = {name: getattr(plain, name) for name in _SETTINGS if getattr(plain, name, None) is not None}
    added = {str(token): token for token in plain.added_tokens_decoder.values()}
    named = {name: added.get(token, token) for name, token in plain.special_tokens_map.items() if token in tokens}
    standard = {name: token for name, token in named.items() if name in PreTrainedTokenizerFast.SPECIAL_TOKENS_ATTRIBUTES}
    of_model = {name: token for name, token in named.items() if name not in standard}
    extra = [added.get(str(token), token) for token in plain.extra_special_tokens if str(token) in tokens]
    make: Any = PreTrainedTokenizerFast
    keyed: PreTrainedTokenizerFast = make(
        tokenizer_object=backend, **settings, **standard,
        **({"model_specific_special_tokens": of_model} if of_model else {}), **({"extra_special_tokens": extra} if extra else {}),
    )  # fmt: skip
    if len(keyed.get_vocab()) < len(tokens):
        raise InvalidInput("the tokenizer changed while it was read", where=_WHERE, fix="Try again")
    return keyed
