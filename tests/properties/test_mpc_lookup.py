"""Rows of a shared table at positions that the client knows: exact for every shape, whoever runs where."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from privtensors.backends.mpc.protocols.lookup import lookup, open_table, packed_bits, selected_sums
from tests.unit.backends.mpc.harness import Lab, same, value, words_of
from tests.unit.backends.mpc.roles import Role, apart


def table_of(size: int, width: int, number: int = 0) -> Tensor:
    return torch.randn(size, width, generator=torch.Generator().manual_seed(number)) * 3


def known(lab: Lab, ids: Tensor) -> Tensor:
    return lab.rt.constant(ids)


@st.composite
def lookups(draw: st.DrawFn) -> tuple[int, int, list[int]]:
    size = draw(st.one_of(st.integers(1, 20), st.sampled_from([63, 64, 65, 255, 256, 1000])))
    return size, draw(st.integers(1, 9)), draw(st.lists(st.integers(0, size - 1), max_size=70))


@settings(max_examples=60)
@given(lookups(), st.integers(1, 5))
def test_every_row_of_every_table(case: tuple[int, int, list[int]], number: int) -> None:
    size, width, positions = case
    lab, ids = Lab(number=number), torch.tensor(positions, dtype=torch.int64)
    x = lab.share(table_of(size, width))
    table = lab.run(open_table(lab.rt, x))
    assert torch.equal(table.rows.sum(0), words_of(x))  # still shares of the table
    found = lab.run(lookup(lab.rt, table, known(lab, ids)))
    assert torch.equal(found.sum(0), words_of(x)[ids])  # bit for bit: nothing is rounded


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 5), st.data())
def test_sums_of_selected_rows(size: int, width: int, data: st.DataObject) -> None:
    bits = data.draw(st.lists(st.lists(st.booleans(), min_size=size, max_size=size), min_size=1, max_size=70))
    chosen = torch.tensor(bits, dtype=torch.int64)
    padded = torch.nn.functional.pad(chosen, (0, -size % 8), value=1)  # bits past the last row count for nothing
    packed = (padded.view(len(bits), -1, 8) << torch.arange(8)).sum(-1).to(torch.int8)
    assert packed.shape[1] == packed_bits(size)
    words = torch.randint(-(1 << 62), 1 << 62, (size, width)) * 3
    assert torch.equal(selected_sums(packed, words), chosen @ words)


def test_nothing_depends_on_bits_that_do_not_travel() -> None:
    def run(lab: Lab) -> Any:
        table = lab.run(open_table(lab.rt, lab.share(table_of(37, 5), 24, 60)))
        return [table.rows, lab.run(lookup(lab.rt, table, known(lab, torch.arange(37).repeat(2))))]

    same(run)


def test_a_table_is_masked_once() -> None:
    lab = Lab()
    x = lab.share(table_of(9, 2))
    table = lab.run(open_table(lab.rt, x))
    before = lab.meter.bytes_sent
    assert lab.run(open_table(lab.rt, x)) is table and lab.meter.bytes_sent == before


@settings(max_examples=6)
@given(st.integers(2, 70), st.integers(1, 4), st.data())
def test_the_same_at_three_parties_apart(size: int, width: int, data: st.DataObject) -> None:
    ids = torch.tensor(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=9)))
    weights = table_of(size, width)

    def job(role: Role) -> Any:
        w, i = role.protect(weights, "server"), role.protect(ids, "client")
        role.backend.prepare_table(w._state.payload)
        return [torch.nn.functional.embedding(i, w)._state.payload for _ in range(2)]  # type: ignore[attr-defined]

    results = apart(job).results
    for client, server in zip(results["client"], results["server"], strict=True):
        client.data = torch.cat([client.data, server.data])
        assert torch.allclose(value(client), weights[ids].double(), atol=2.0**-18)
