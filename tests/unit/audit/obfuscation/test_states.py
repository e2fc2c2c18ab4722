"""Vocabulary matching on hidden states, and prompts read off a causal model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from privtensors.audit.obfuscation import Invariant, NormProfile, Probe, PromptDecoding, Signature, StateMatching, Target, View, states_of
from privtensors.errors import InvalidInput
from privtensors.obfuscation.equivariant import maps_of, transform
from tests.unit.audit.obfuscation.small import KEY, SIZE, bert, schemes


def shares(target: Target, signature: Signature) -> list[float]:
    layers = (0, 1, 2)
    view = View(SIZE, public_states=states_of(bert(), layers), server_states=states_of(target.model, layers))
    probe = Probe.sampled(target.plain, torch.empty(0, dtype=torch.int64), 100)
    attacks = [StateMatching(signature, place, layer) for place, layer in enumerate(layers)]
    return [probe.score(attack.recover(view, probe.ids)).tokens for attack in attacks]


def test_sorted_states_read_a_permuted_model_at_every_layer() -> None:
    target = schemes().equivariant()
    assert shares(target, Signature.SORTED) == [1.0, 1.0, 1.0]
    assert max(shares(target, Signature.ROW)) < 0.05


def test_states_of_the_published_sentinel_are_those_of_the_plain_model() -> None:
    assert shares(schemes().sentinel_compat(factor=3), Signature.ROW) == [1.0, 1.0, 1.0]


def test_states_of_another_model_say_nothing() -> None:
    other = type(bert())(bert().config).eval()
    target = replace(schemes().vocabulary_only(), model=other)
    assert max(shares(target, Signature.SORTED)) < 0.05


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"vocab_size": 300, "hidden_size": 48, "intermediate_size": 96, "max_position_embeddings": 64}
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, **sizes)).eval()
        with torch.no_grad():  # an untrained model's norms would all be alike
            model.model.embed_tokens.weight.mul_(torch.rand(300, 1) + 0.5)
    return model


def test_norms_read_a_rotated_model(llama: LlamaForCausalLM) -> None:
    vocabulary, labels = maps_of(llama, KEY)
    assert vocabulary is not None
    keyed = transform(llama, KEY, vocabulary=vocabulary, labels=labels)
    layers = (0, 1, 2)
    view = View(300, public_states=states_of(llama, layers), server_states=states_of(keyed, layers))
    probe = Probe.sampled(vocabulary.plain, torch.empty(0, dtype=torch.int64), 300)
    assert probe.score(NormProfile().recover(view, probe.ids)).tokens > 0.95
    assert probe.score(StateMatching(Signature.SORTED, 1, 1).recover(view, probe.ids)).tokens < 0.05


def test_a_prompt_is_read_off_a_rotated_model(llama: LlamaForCausalLM) -> None:
    vocabulary, labels = maps_of(llama, KEY)
    assert vocabulary is not None
    keyed = transform(llama, KEY, vocabulary=vocabulary, labels=labels)
    prompt = torch.tensor([1, 17, 250, 99, 3, 42, 8])
    with torch.no_grad():
        states = keyed(input_ids=vocabulary.encode(prompt)[None], output_hidden_states=True).hidden_states
    for layer in (1, 2):
        found = PromptDecoding(layer, Invariant.PRODUCTS).decode(llama, states[layer][0], 1)
        assert torch.equal(found, prompt), layer
    blind = PromptDecoding(1, Invariant.SORTED).decode(llama, states[1][0], 1)
    assert blind.tolist() == [1, -1, -1, -1, -1, -1, -1]
    with pytest.raises(InvalidInput, match="width"):
        PromptDecoding(1, Invariant.NONE).decode(llama, states[1][0, :, :5], 1)


def test_a_prompt_is_read_off_a_permuted_basis(llama: LlamaForCausalLM) -> None:
    prompt = torch.tensor([1, 5, 77, 123])
    with torch.no_grad():
        states = llama(input_ids=prompt[None], output_hidden_states=True).hidden_states[2][0]
    moved = states[:, torch.randperm(48, generator=torch.Generator().manual_seed(0))]
    assert torch.equal(PromptDecoding(2, Invariant.SORTED).decode(llama, moved, 1), prompt)
    assert torch.equal(PromptDecoding(2, Invariant.NONE).decode(llama, states, 1), prompt)
    few = PromptDecoding(2, Invariant.SORTED, candidates=1).decode(llama, moved, 1)
    assert few[1] == -1  # the likeliest token is not the next one, and no other was tried
