"""Generation from keyed ids: the same tokens, the same end, left padding and all."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from privtensors.obfuscation.equivariant import maps_of
from tests.unit.obfuscation.equivariant.tiny import EOS, KEY, PAD, TIED, UNTIED, VOCABULARY, keyed, tiny

MODELS = [
    ("GPT2LMHeadModel", TIED),
    ("GPT2LMHeadModel", UNTIED),
    ("LlamaForCausalLM", TIED),
    ("LlamaForCausalLM", UNTIED),
    ("BertLMHeadModel", {"is_decoder": True}),
    ("RobertaForCausalLM", {"is_decoder": True}),
]


def both(name: str, options: dict[str, Any], ids: torch.Tensor, mask: torch.Tensor, **settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What the plain model generates, and the decoded answer of the keyed one."""
    plain = tiny(name, **options)
    eos = settings.pop("eos", EOS)
    assert plain.generation_config is not None
    plain.generation_config.eos_token_id, plain.generation_config.pad_token_id = eos, PAD
    server, (vocabulary, _) = keyed(plain), maps_of(plain, KEY)
    assert vocabulary is not None
    # Random models repeat themselves; without repeated pairs there is something to compare.
    settings = {"do_sample": False, "no_repeat_ngram_size": 2, **settings}
    want = plain.generate(ids, attention_mask=mask, **settings)
    got = server.generate(vocabulary.encode(ids), attention_mask=mask, **settings)
    return want, vocabulary.decode(got)


def prompts() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(3, VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    ids[1, :3], mask[1, :3] = PAD, 0
    return ids, mask


@pytest.mark.parametrize(("name", "options"), MODELS, ids=lambda value: str(value)[:40])
def test_greedy_tokens_are_the_same(name: str, options: dict[str, Any]) -> None:
    want, got = both(name, options, *prompts(), max_new_tokens=24, eos=None)
    assert got.tolist() == want.tolist() and want.shape == (3, 31)
    assert len(set(want[0, 7:].tolist())) >= 6


def test_beam_search_agrees() -> None:
    want, got = both("LlamaForCausalLM", UNTIED, *prompts(), max_new_tokens=12, num_beams=3)
    assert got.tolist() == want.tolist()


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM"])
def test_generation_ends_at_the_keyed_end(name: str) -> None:
    ids, mask = prompts()
    free, _ = both(name, TIED, ids, mask, max_new_tokens=20, eos=None)
    row = free[0, 7:].tolist()
    position = next(i for i in range(3, 20) if row[i] not in row[:i])
    want, got = both(name, TIED, ids, mask, max_new_tokens=20, eos=row[position])
    assert got.tolist() == want.tolist()
    assert want[0, 7 + position] == row[position] and set(want[0, 8 + position :].tolist()) <= {PAD}
