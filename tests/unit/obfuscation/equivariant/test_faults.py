"""Planted defects of the kind such a transform could have: each is seen by the comparison of outputs."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from privtensors.obfuscation.equivariant import convert, layout, spaces
from privtensors.obfuscation.equivariant.families.bert import FAMILY as BERT
from privtensors.obfuscation.equivariant.families.gpt2 import FAMILY as GPT2
from privtensors.obfuscation.equivariant.families.llama import FAMILY as LLAMA
from privtensors.obfuscation.equivariant.families.vit import FAMILY as VIT
from privtensors.obfuscation.equivariant.transforms import BlockMap, Fold, fold_norm
from tests.unit.obfuscation.equivariant.tiny import keyed, largest_error, tiny

pytestmark = pytest.mark.usefixtures("double_norms")
VISIBLE = 1e-3


def error_of(name: str, **options: Any) -> float:
    plain = tiny(name, **options)
    return largest_error(plain, keyed(plain))


@pytest.mark.parametrize("name", ["BertForSequenceClassification", "GPT2LMHeadModel", "LlamaForCausalLM", "ViTForImageClassification"])
def test_without_the_defects_all_is_well(name: str) -> None:
    assert error_of(name) <= 1e-9


@pytest.mark.parametrize("name", ["BertForSequenceClassification", "GPT2LMHeadModel", "LlamaForCausalLM", "ViTForImageClassification"])
def test_consumers_that_get_the_map_instead_of_its_dual(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BlockMap, "dual", property(lambda self: self))
    assert error_of(name) > VISIBLE


@pytest.mark.parametrize(
    ("family", "parameter", "name"),
    [
        (BERT, "encoder.layer.{layer}.intermediate.dense.bias", "BertForTokenClassification"),
        (BERT, "encoder.layer.{layer}.attention.self.value.bias", "BertForTokenClassification"),
        (BERT, "encoder.layer.{layer}.output.LayerNorm.weight", "BertForTokenClassification"),
        (BERT, "embeddings.token_type_embeddings.weight", "BertForTokenClassification"),
        (BERT, "pooler.dense.bias", "BertForSequenceClassification"),
        (GPT2, "h.{layer}.attn.c_attn.bias", "GPT2LMHeadModel"),
        (GPT2, "wpe.weight", "GPT2ForSequenceClassification"),
        (GPT2, "ln_f.bias", "GPT2ForSequenceClassification"),
        (LLAMA, "norm.weight", "LlamaForCausalLM"),
        (VIT, "embeddings.cls_token", "ViTForImageClassification"),
        (VIT, "embeddings.position_embeddings", "ViTForImageClassification"),
    ],
)
def test_a_parameter_left_as_it_is(family: Any, parameter: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(family.parameters, parameter, tuple("1" for _ in family.parameters[parameter]))
    assert error_of(name, **({"tie_word_embeddings": True} if "LM" in name else {})) > VISIBLE


def test_a_bias_of_the_norm_that_is_lost_in_folding(monkeypatch: pytest.MonkeyPatch) -> None:
    def lossy(state: MutableMapping[str, Tensor], fold: Fold) -> None:
        fold_norm(state, fold)
        state[f"{fold.norm}.bias"] = torch.zeros_like(state[f"{fold.norm}.bias"])

    monkeypatch.setattr(convert, "fold_norm", lossy)
    assert error_of("GPT2ForSequenceClassification") > VISIBLE


def test_gains_that_are_not_folded_before_a_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "fold_norm", lambda state, fold: None)
    assert error_of("LlamaForCausalLM", tie_word_embeddings=False) > VISIBLE


def test_matrices_on_queries_that_do_not_commute_with_rotary_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spaces, "rotary_blocks", lambda angles, scales: torch.randn(len(angles), 8, 8, dtype=torch.float64))
    assert error_of("LlamaForCausalLM") > VISIBLE


def test_rotary_pairs_laid_out_as_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    swap = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
    original = spaces.rotary_blocks
    monkeypatch.setattr(spaces, "rotary_blocks", lambda angles, scales: original(angles, scales)[:, swap][:, :, swap])
    assert error_of("LlamaForCausalLM") > VISIBLE


def test_a_rotation_that_moves_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "family_of", lambda _: replace(GPT2, mixes="orthogonal"))
    assert error_of("GPT2ForTokenClassification") > VISIBLE


def test_a_rotation_under_a_tied_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs, too, are too much for a LayerNorm."""
    monkeypatch.setattr(layout, "family_of", lambda _: replace(GPT2, keeps="signed permutation"))
    assert error_of("GPT2LMHeadModel") > VISIBLE


def test_queries_of_a_group_that_leave_their_key_head(monkeypatch: pytest.MonkeyPatch) -> None:
    original = spaces.KeyedMaps._attention

    def loose(self: spaces.KeyedMaps, layer: int) -> dict[tuple[str, int], BlockMap]:
        found = original(self, layer)
        for space in ("q", "o"):
            there = found[space, layer]
            found[space, layer] = BlockMap(there.order.roll(1), there.blocks)
        return found

    monkeypatch.setattr(spaces.KeyedMaps, "_attention", loose)
    assert error_of("LlamaForCausalLM") > VISIBLE
