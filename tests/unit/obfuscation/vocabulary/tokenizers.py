"""Small tokenizers of every kind, and what it means that a keyed one gives the same."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from privtensors.obfuscation.keys import ObfuscationKey
from privtensors.obfuscation.vocabulary import Vocabulary

KEY = ObfuscationKey(bytes(range(32)))
CORPUS = ["a film to remember", "the plot was thin, the acting was not", "naïve or not: 100 % of the 3 stars", "remembering films"] * 4
SPECIALS = ["<s>", "</s>", "<pad>", "<mask>", "<unk>", "[CLS]", "[SEP]", "[MASK]", "<new>", "@user", "<|endoftext|>", "<|eot|>", "cheese"]
WORDS = ["a", " film", " to", "remember", " the", "Plot", "was ", "thin", ",", "Naïve", "cheeses", "x@user", " ", "  "]
TEXTS = st.lists(st.one_of(st.text(max_size=8), st.sampled_from([*SPECIALS, *WORDS])), max_size=8).map("".join)


def byte_level_bpe() -> Any:
    """RoBERTa's: byte-level BPE, RobertaProcessing, a mask that eats the space before it, one added token of each sort."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = ["<s>", "<pad>", "</s>", "<unk>", AddedToken("<mask>", lstrip=True, special=True)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=320, special_tokens=specials, initial_alphabet=alphabet))
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>", pad_token="<pad>",
        unk_token="<unk>", mask_token=AddedToken("<mask>", lstrip=True, special=True), model_max_length=64,
    )  # fmt: skip
    made.add_tokens(["@user"])
    made.add_special_tokens({"additional_special_tokens": ["<new>"]})
    return made


def llama3() -> Any:
    """Byte-level BPE that looks whole words up first, with a sequence of post-processors and ids that the model does not know."""
    backend = Tokenizer(models.BPE(ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ("<s>", "<|eot|>")])
    template = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 300)])
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="<|eot|>", padding_side="left",
        chat_template="{% for m in messages %}{{ m['content'] }}<|eot|>{% endfor %}",
    )  # fmt: skip


def unigram() -> Any:
    """XLM-RoBERTa's: Unigram, where an id is a position in the list; the unknown id is not 0."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" {2,}", " ")])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    backend.train_from_iterator(CORPUS, trainers.UnigramTrainer(vocab_size=80, special_tokens=specials, unk_token="<unk>"))
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    made.add_tokens(["@user", "cheese"])
    return made


def wordpiece() -> Any:
    """BERT's of long ago: WordPiece with BertProcessing, padding and truncation switched on in the file, added tokens."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*specials, "a", "film", "##s", "to", "remember", "##ing", "the", "plot", "was", "##a", "c", "##h", "x"]
    backend = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.decoder, backend.post_processor = decoders.WordPiece(), processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.add_special_tokens(specials)
    backend.add_tokens(["cheese"])
    backend.enable_padding(length=12, pad_id=0, pad_token="[PAD]")
    backend.enable_truncation(12)
    named = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), specials, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **named)


BUILT = {"byte-level BPE": byte_level_bpe, "Llama 3": llama3, "Unigram": unigram, "WordPiece": wordpiece}


def keyed_ids(vocabulary: Vocabulary, ids: list[int]) -> list[int]:
    return vocabulary.encode(torch.tensor(ids, dtype=torch.int64)).tolist()


def assert_same(plain: Any, keyed: Any, vocabulary: Vocabulary, *texts: str, **options: Any) -> None:
    """Keyed ids are the keys of the plain ids, and all else is equal: offsets, types, masks, tokens, decoded text."""
    options |= {"return_offsets_mapping": True, "return_special_tokens_mask": True, "return_token_type_ids": True}
    expected, found = plain(*texts, **options), keyed(*texts, **options)
    assert found["input_ids"] == keyed_ids(vocabulary, expected["input_ids"])
    assert {name: value for name, value in found.items() if name != "input_ids"} == {
        name: value for name, value in expected.items() if name != "input_ids"
    }
    assert found.tokens() == expected.tokens() and found.word_ids() == expected.word_ids()
    for skip in (False, True):
        assert keyed.decode(found["input_ids"], skip_special_tokens=skip) == plain.decode(expected["input_ids"], skip_special_tokens=skip)
