"""The algebra: maps of blocks, their duals and inverses, and what commutes with rotary positions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from privtensors.errors import ParameterError
from privtensors.obfuscation.equivariant import known_families, names
from privtensors.obfuscation.equivariant.transforms import BlockMap, Fold, can_fold, fold_norm, identity, rotary_blocks
from tests.unit.obfuscation.equivariant.tiny import KEY


def block_map(number: int, count: int, width: int) -> BlockMap:
    stream = KEY.stream(f"test {number}")
    order = stream.permutation(count)
    return BlockMap(order, torch.stack([stream.invertible(width) for _ in range(count)]) if width else None)


def matrix(found: BlockMap) -> torch.Tensor:
    return found.apply(torch.eye(found.size, dtype=torch.float64))


@given(st.integers(0, 9), st.integers(1, 5), st.integers(0, 4))
def test_maps_are_what_they_say(number: int, count: int, width: int) -> None:
    one, two = block_map(number, count, width), block_map(number + 1, count, width)
    eye = torch.eye(one.size, dtype=torch.float64)
    torch.testing.assert_close(matrix(one) @ matrix(one.inverse), eye)
    torch.testing.assert_close(matrix(one) @ matrix(one.dual).T, eye)
    torch.testing.assert_close(matrix(one.then(two)), matrix(one) @ matrix(two))
    values = torch.randn(2, one.size, 3, dtype=torch.float64)
    torch.testing.assert_close(one.apply(values, 1), torch.einsum("aib,ij->ajb", values, matrix(one)))


def test_a_permutation_copies_exactly() -> None:
    values = torch.randn(4, 9, dtype=torch.float32)
    found = block_map(0, 9, 0)
    assert torch.equal(found.inverse.apply(found.apply(values)), values)
    assert found.dual is found


def test_orthogonal_maps_are_their_own_duals() -> None:
    turned = BlockMap(torch.zeros(1, dtype=torch.int64), KEY.stream("t").orthogonal(6).unsqueeze(0), orthogonal=True)
    assert turned.dual is turned
    torch.testing.assert_close(matrix(turned) @ matrix(turned.inverse), torch.eye(6, dtype=torch.float64))
    assert turned.then(turned.inverse).orthogonal and turned.inverse.orthogonal
    torch.testing.assert_close(matrix(identity(4)), torch.eye(4, dtype=torch.float64))


def test_maps_show_no_values_and_refuse_other_sizes() -> None:
    found = block_map(1, 3, 2)
    assert repr(found) == "BlockMap(size=6)"
    with pytest.raises(ParameterError, match="5 values under a map of 6"):
        found.apply(torch.zeros(5))
    with pytest.raises(ParameterError, match="blocks"):
        found.then(block_map(2, 2, 3))
    with pytest.raises(ParameterError, match="gain"):
        _ = found.places


def test_rotary_blocks_commute_with_the_stock_rotation() -> None:
    width, length = 8, 5
    stream = KEY.stream("rotary")
    blocks = rotary_blocks(6 * stream.uniform((1, width // 2)), stream.scales(width // 2).unsqueeze(0))[0]
    frequencies = torch.outer(torch.arange(length).double(), 1 / 100 ** (torch.arange(0, width, 2).double() / width))
    cos, sin = (torch.cat([part, part], -1).unsqueeze(0) for part in (frequencies.cos(), frequencies.sin()))
    query, key = torch.randn(2, 1, 1, length, width, dtype=torch.float64)
    turned, _ = apply_rotary_pos_emb(query, key, cos, sin)
    first, _ = apply_rotary_pos_emb(query @ blocks, key, cos, sin)
    torch.testing.assert_close(first, turned @ blocks)


def test_folding_leaves_the_function() -> None:
    for bias in (True, False):
        norm, dense = torch.nn.LayerNorm(6).double(), torch.nn.Linear(6, 4, bias=bias).double()
        torch.nn.init.normal_(norm.weight, 1, 0.3)
        torch.nn.init.normal_(norm.bias)
        values = torch.randn(3, 6, dtype=torch.float64)
        want = dense(norm(values))
        state = {f"{n}.{k}": v for n, part in (("norm", norm), ("dense", dense)) for k, v in part.state_dict().items()}
        fold = Fold("norm", ("dense",))
        assert can_fold(state, fold) and not can_fold(state, fold, frozenset({"dense.weight"})) and not can_fold(state, Fold("norm", ()))
        fold_norm(state, fold)
        assert torch.equal(state["norm.weight"], torch.ones(6, dtype=torch.float64)) and bool(state["norm.bias"].any()) is not bias
        scaled = torch.nn.functional.layer_norm(values, (6,), bias=state["norm.bias"])
        torch.testing.assert_close(torch.nn.functional.linear(scaled, state["dense.weight"], state.get("dense.bias")), want)


def test_every_family_says_what_is_done_to_it() -> None:
    for family in known_families():
        rows = names(family)
        assert len({row.what for row in rows}) == len(rows) >= 6
        assert all(row.group and row.paper for row in rows)
    assert any("rotations with a scale" in row.group for row in names("llama"))
    assert any("padding id fixed" in row.group for row in names("roberta"))
    assert any("patches" in row.what for row in names("vit"))
    assert not any("up path" in row.what for row in names("bert"))
