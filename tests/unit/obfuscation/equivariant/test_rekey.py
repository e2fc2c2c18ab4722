"""From one key to another without the plain model."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from privtensors.obfuscation.equivariant import maps_of, rekey
from privtensors.obfuscation.keys import ObfuscationKey
from tests.unit.obfuscation.equivariant.tiny import CASES, IDS, KEY, OTHER, keyed, largest_error, tiny


@pytest.mark.usefixtures("double_norms")
@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_it_is_the_model_that_the_new_key_makes(name: str, options: dict[str, Any]) -> None:
    plain = tiny(name, **options)
    direct, rotated = keyed(plain, OTHER), rekey(keyed(plain, KEY), KEY, OTHER)
    assert largest_error(plain, rotated, OTHER) <= 1e-9
    want = direct.state_dict()
    for parameter, value in rotated.state_dict().items():
        torch.testing.assert_close(value, want[parameter], rtol=1e-9, atol=1e-9)
    assert rotated.config.to_dict() == direct.config.to_dict()


def test_rounding_does_not_grow_with_rotations() -> None:
    plain = tiny("LlamaForCausalLM", torch.float32, tie_word_embeddings=False)
    keys = [ObfuscationKey(bytes([number] * 32)) for number in range(12)]
    server = keyed(plain, keys[0])
    for old, new in pairwise(keys):
        server = rekey(server, old, new)
    assert largest_error(plain, server, keys[-1]) <= 1e-4


def test_a_wrong_old_key_gives_noise() -> None:
    plain = tiny("BertForSequenceClassification")
    assert largest_error(plain, rekey(keyed(plain, KEY), OTHER, KEY), KEY) > 0.1


def test_special_ids_follow_the_new_key() -> None:
    plain = tiny("GPT2LMHeadModel")
    rotated = rekey(keyed(plain, KEY), KEY, OTHER)
    vocabulary, _ = maps_of(plain, OTHER)
    assert vocabulary is not None
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        want = int(vocabulary.keyed[getattr(plain.config, name)])
        assert getattr(rotated.config, name) == want == getattr(rotated.generation_config, name)
