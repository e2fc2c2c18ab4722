"""Configurations with keyed ids and without names: what the server may read. Guarantee: heuristic."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from privtensors.errors import ObfuscationError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig

    from privtensors.obfuscation.vocabulary.bijection import Labels, Vocabulary

_PAD_COUNTS_POSITIONS: Final = ("roberta", "xlm-roberta", "camembert")
_ID_LISTS: Final = ("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "force_words_ids")
_DEPENDS_ON_TEXT: Final = ("stop_strings", "watermarking_config")


def fixed_ids(config: PreTrainedConfig) -> tuple[int, ...]:
    """Ids that must keep their place under :meth:`Vocabulary.from_key`.

    RoBERTa numbers positions from the padding id on and sizes its position table by it, so its padding id stays. The
    attention mask shows padding anyway.
    """
    pad = getattr(config, "pad_token_id", None)
    return (int(pad),) if config.model_type in _PAD_COUNTS_POSITIONS and pad is not None else ()


def keyed_config(config: PreTrainedConfig, vocabulary: Vocabulary | None, labels: Labels | None = None) -> PreTrainedConfig:
    """A copy for the server: every token id keyed, labels called LABEL_0, LABEL_1, …, and no name or text of the original left.

    Only fields that the configuration's class itself defines survive, and token ids; ``_name_or_path``, ``task_specific_params``, a
    tokenizer's class and whatever else a checkpoint carries are dropped. An id that no row of the embedding has becomes None.

    Args:
        config: Of the plain model; left untouched.
        vocabulary: None for a model without tokens.
        labels: None leaves the order of the labels, whatever they stand for; their names go all the same.

    Raises:
        ObfuscationError: ``labels`` has another number of labels.
    """
    remap = _remap(vocabulary)
    keyed = copy.deepcopy(config)
    known = type(config)().to_dict()
    for name, value in config.to_dict().items():
        if name.endswith(("_token_id", "_token_ids")) or name in _ID_LISTS:
            setattr(keyed, name, remap(value))
        elif name not in known and name in vars(keyed):
            delattr(keyed, name)
    count = int(config.num_labels or 0)
    if labels is not None and labels.size != count:
        what = f"the model has {count} labels, not {labels.size}"
        raise ObfuscationError(what, where="keyed_config", fix="Make the labels with Labels.from_key(key, config.num_labels)")
    keyed.id2label = {index: f"LABEL_{index}" for index in range(count)}
    keyed.label2id = {name: index for index, name in keyed.id2label.items()}
    keyed.name_or_path = ""
    return keyed


def keyed_generation_config(config: GenerationConfig, vocabulary: Vocabulary) -> GenerationConfig:
    """A copy for the server with every token id keyed: special and forced ids, stop, suppressed and biased ones.

    Raises:
        ObfuscationError: It has ``stop_strings`` or a watermark: both need the text or the plain ids.
    """
    for name in _DEPENDS_ON_TEXT:
        if getattr(config, name, None) is not None:
            fix = f"Set generation_config.{name} = None; stop at a string at the client"
            raise ObfuscationError(f"{name} needs what the server must not have", where="keyed_generation_config", fix=fix)
    remap = _remap(vocabulary)
    keyed = copy.deepcopy(config)
    known = type(config)().to_dict()
    for name, value in config.to_dict().items():
        if name.endswith(("_token_id", "_token_ids")) or name in _ID_LISTS:
            setattr(keyed, name, remap(value))
        elif name == "forced_decoder_ids" and value is not None:
            setattr(keyed, name, [[position, remap(token)] for position, token in value])
        elif name not in known and name in vars(keyed):
            delattr(keyed, name)
    if config.sequence_bias is not None:
        keyed.sequence_bias = _bias(config.sequence_bias, remap)
    return keyed


def _remap(vocabulary: Vocabulary | None) -> Callable[[Any], Any]:
    """Keyed ids of an id, or of ids in lists of any depth."""
    table: list[int] = [] if vocabulary is None else vocabulary.keyed.tolist()

    def remap(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [found for found in map(remap, value) if found is not None]
        return table[value] if isinstance(value, int) and 0 <= value < len(table) else None

    return remap


def _bias(bias: Any, remap: Callable[[Any], Any]) -> Any:
    if isinstance(bias, Mapping):
        return {tuple(remap(ids)): value for ids, value in bias.items()}
    return [[remap(ids), value] for ids, value in bias]
