"""Every family and class gives the plain model's outputs, and none of the plain model's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from transformers import BertModel, GPT2ForSequenceClassification, ViTModel

from privtensors.obfuscation.equivariant import basis_of, hidden_map, maps_of, transform
from privtensors.obfuscation.equivariant.layout import layout_of
from privtensors.obfuscation.keys import ObfuscationKey
from tests.unit.obfuscation.equivariant.tiny import (
    CASES,
    CONFIGS,
    IDS,
    KEY,
    OTHER,
    inputs,
    keyed,
    keyed_inputs,
    largest_error,
    randomise,
    tiny,
)


@pytest.mark.usefixtures("double_norms")
@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_the_outputs_are_those_of_the_plain_model(name: str, options: dict[str, Any]) -> None:
    plain = tiny(name, **options)
    assert largest_error(plain, keyed(plain)) <= 1e-9


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_the_outputs_agree_in_float32(name: str, options: dict[str, Any]) -> None:
    plain = tiny(name, torch.float32, **options)
    server = keyed(plain)
    assert {p.dtype for p in server.parameters()} == {torch.float32}
    assert largest_error(plain, server) <= 1e-4


def _moves(space: str, basis: str) -> bool:
    """Whether a space's map mixes or scales values, beyond moving them and turning signs."""
    return space in ("q", "k", "v", "o", "up", "pixels") or (space in ("hidden", "gain") and not basis.endswith("permutation"))


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_no_weight_is_left_in_plain(name: str, options: dict[str, Any]) -> None:
    """Nothing equals its plain self but outputs that are no labels; and where a matrix mixes, not even the set of magnitudes survives."""
    plain = tiny(name, **options)
    layout = layout_of(plain)
    server = keyed(plain).state_dict()
    for parameter, value in plain.state_dict().items():
        spaces = {part.rstrip("*") for axis in layout.places[parameter].axes for part in axis.split("|")}
        assert spaces == {"1"} or not torch.equal(server[parameter], value), parameter
        if any(_moves(space, layout.basis) for space in spaces):
            same = torch.isin(server[parameter].abs().flatten(), value.abs().flatten()).double().mean()
            assert same < 0.01, parameter


@pytest.mark.parametrize(
    ("name", "options", "basis"),
    [
        ("BertForSequenceClassification", {}, "permutation"),
        ("GPT2LMHeadModel", {"tie_word_embeddings": True}, "permutation"),
        ("GPT2LMHeadModel", {"tie_word_embeddings": False}, "mean-fixing orthogonal"),
        ("GPT2ForSequenceClassification", {}, "mean-fixing orthogonal"),
        ("GPT2Model", {}, "permutation"),
        ("LlamaForCausalLM", {"tie_word_embeddings": True}, "signed permutation"),
        ("LlamaForCausalLM", {"tie_word_embeddings": False}, "orthogonal"),
        ("ViTForImageClassification", {}, "mean-fixing orthogonal"),
        ("ViTModel", {}, "permutation"),
    ],
)
def test_the_stream_is_rotated_unless_a_gain_stays_on_it(name: str, options: dict[str, Any], basis: str) -> None:
    plain = tiny(name, **options)
    assert basis_of(plain) == basis == basis_of(keyed(plain))


def test_a_model_without_a_classifier_gives_its_hidden_states() -> None:
    plain = tiny("ViTForImageClassification", num_labels=0)
    given = inputs(plain)
    with torch.no_grad():
        want, got = plain(**given).logits, keyed(plain)(**keyed_inputs(plain, given)).logits
    assert basis_of(plain) == "permutation"
    torch.testing.assert_close(hidden_map(KEY, 24, "permutation").inverse.apply(got), want, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("double_norms")
def test_a_gain_of_zero_that_cannot_be_divided_by_stays() -> None:
    plain = tiny("GPT2ForSequenceClassification")
    assert isinstance(plain, GPT2ForSequenceClassification)
    with torch.no_grad():
        plain.transformer.ln_f.weight[3] = 0
    server = keyed(plain)
    assert basis_of(plain) == "permutation" == basis_of(server)
    assert largest_error(plain, server) <= 1e-9


def test_a_key_gives_one_model_and_another_key_another() -> None:
    plain = tiny("BertForSequenceClassification")
    one, again, other = (keyed(plain, key).state_dict() for key in (KEY, KEY, OTHER))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)


def test_the_input_is_left_untouched() -> None:
    plain = tiny("LlamaForCausalLM").train()
    before, config = {name: value.clone() for name, value in plain.state_dict().items()}, plain.config.to_dict()
    state = torch.get_rng_state()
    server = keyed(plain)
    assert torch.equal(torch.get_rng_state(), state)
    assert plain.config.to_dict() == config and plain.training and not server.training
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())
    assert not {p.data_ptr() for p in plain.parameters()} & {p.data_ptr() for p in server.parameters()}


def test_progress_counts_every_parameter() -> None:
    plain = tiny("BertForMaskedLM")
    vocabulary, labels = maps_of(plain, KEY)
    seen: list[tuple[int, int]] = []
    transform(plain, KEY, vocabulary=vocabulary, labels=labels, progress=lambda done, total: seen.append((done, total)))
    total = len(list(plain.parameters()))
    assert seen == [(done, total) for done in range(1, total + 1)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_types_stay_and_agree_to_their_precision(dtype: torch.dtype) -> None:
    plain = tiny("BertForSequenceClassification", dtype)
    server = keyed(plain)
    assert {p.dtype for p in server.parameters()} == {dtype}
    assert largest_error(plain, server) <= 30 * torch.finfo(dtype).eps


@pytest.mark.parametrize(
    ("name", "options"), [case for case in CASES if "Model" not in case[0] or "LMHead" in case[0]], ids=lambda value: str(value)[:40]
)
def test_the_stock_classes_load_it(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    plain = tiny(name, torch.float32, **options)
    server = keyed(plain)
    server.save_pretrained(tmp_path)
    loaded, report = type(plain).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    want = plain.state_dict()
    assert {n: v.shape for n, v in loaded.state_dict().items()} == {n: v.shape for n, v in want.items()}
    assert loaded.num_parameters() == plain.num_parameters()
    assert all(torch.equal(value, server.state_dict()[n]) for n, value in loaded.state_dict().items())
    assert largest_error(plain, loaded) <= 1e-4


def test_hidden_states_of_every_layer_can_be_read_by_the_owner() -> None:
    plain = tiny("RobertaModel")
    given = inputs(plain)
    with torch.no_grad():
        want = plain(**given, output_hidden_states=True).hidden_states
        got = keyed(plain)(**keyed_inputs(plain, given), output_hidden_states=True).hidden_states
    back = hidden_map(KEY, plain.config.hidden_size, basis_of(plain)).inverse
    assert max(float((back.apply(g) - w).abs().max()) for g, w in zip(got, want, strict=True)) <= 1e-9


def test_a_pooler_that_the_model_lacks_is_not_added() -> None:
    plain = BertModel._from_config(CONFIGS["Bert"](), dtype=torch.float64, add_pooling_layer=False).eval()
    randomise(plain)
    assert keyed(plain).pooler is None
    with_mask = ViTModel._from_config(CONFIGS["ViT"](), dtype=torch.float64, use_mask_token=True).eval()
    randomise(with_mask)
    assert keyed(with_mask).embeddings.mask_token is not None


@settings(max_examples=15)
@drawn(
    heads=st.integers(1, 4), share=st.integers(1, 3), half=st.integers(1, 4), width=st.integers(2, 4), inner=st.integers(1, 11),
    tied=st.booleans(), layers=st.integers(1, 3), number=st.integers(0, 255),
)  # fmt: skip
def test_every_shape_of_llama(heads: int, share: int, half: int, width: int, inner: int, tied: bool, layers: int, number: int) -> None:
    """Without the float64 norms of the fixture, which hypothesis cannot reset; the norms' float32 is what the tolerance is for."""
    plain = tiny(
        "LlamaForCausalLM", num_attention_heads=heads * share, num_key_value_heads=heads, head_dim=2 * half,
        hidden_size=heads * share * width, intermediate_size=inner, tie_word_embeddings=tied, num_hidden_layers=layers,
    )  # fmt: skip
    key = ObfuscationKey(bytes([number] * 32))
    assert largest_error(plain, keyed(plain, key), key) <= 1e-5


@settings(max_examples=15)
@drawn(heads=st.integers(1, 4), width=st.integers(3, 6), inner=st.integers(1, 11), labels=st.integers(1, 6), number=st.integers(0, 255))
def test_every_shape_of_bert_and_gpt2(heads: int, width: int, inner: int, labels: int, number: int) -> None:
    sizes = {"hidden_size": heads * width, "num_attention_heads": heads, "num_labels": labels}
    key = ObfuscationKey(bytes([number] * 32))
    for name, extra in (
        ("BertForSequenceClassification", {"intermediate_size": inner}),
        ("GPT2ForSequenceClassification", {"n_inner": inner}),
    ):
        plain = tiny(name, **sizes, **extra)
        assert largest_error(plain, keyed(plain, key), key) <= 1e-9
