"""Keyed token ids and labels: the bijections, and the tokenizers and configurations rewritten for them. Guarantee: heuristic."""

from privtensors.obfuscation.vocabulary.bijection import Labels, Vocabulary
from privtensors.obfuscation.vocabulary.config import fixed_ids, keyed_config, keyed_generation_config
from privtensors.obfuscation.vocabulary.tokenizer import keyed_tokenizer

__all__ = ["Labels", "Vocabulary", "fixed_ids", "keyed_config", "keyed_generation_config", "keyed_tokenizer"]
