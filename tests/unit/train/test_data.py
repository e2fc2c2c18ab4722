"""Data sets as units of privacy, their batches and their fingerprints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, WeightedRandomSampler

from privtensors.accounting import Fingerprinter
from privtensors.accounting.fingerprint import MOST
from privtensors.errors import AccountingError, InvalidInput
from privtensors.train.data import Examples, Users, content

ROWS = [{"ids": [i, i + 1], "labels": i % 2, "user": f"u{i % 3}"} for i in range(10)]
COLUMNS = {"ids": torch.tensor([[i, i + 1] for i in range(10)]), "labels": torch.tensor([i % 2 for i in range(10)])}


def test_rows_and_columns_make_the_same_batches() -> None:
    from_rows, from_columns = Examples(ROWS, drop=("user",)), Examples(COLUMNS)
    assert len(from_rows) == len(from_columns) == 10
    drawn = torch.tensor([1, 4, 5])
    for (mine, n), (theirs, m) in zip(from_rows.batches(drawn, 2), from_columns.batches(drawn, 2), strict=True):
        assert n == m and set(mine) == {"ids", "labels"}
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert [n for _, n in from_rows.batches(drawn, 2)] == [2, 1]
    assert list(from_rows.batches(torch.tensor([], dtype=torch.int64), 2)) == []


def test_a_collate_function_makes_the_batch() -> None:
    longest = [{"ids": list(range(i + 1))} for i in range(4)]

    def collate(rows: list[Any]) -> dict[str, torch.Tensor]:
        return {"ids": torch.nn.utils.rnn.pad_sequence([torch.tensor(row["ids"]) for row in rows], batch_first=True)}

    assert Examples(longest, collate).batch([0, 3])["ids"].shape == (2, 4)
    with pytest.raises(InvalidInput, match="cannot be stacked") as caught:
        Examples(longest).batch([0, 3])
    assert "DataCollatorWithPadding" in caught.value.fix


@pytest.mark.parametrize(
    "collate",
    [
        lambda rows: {"ids": torch.zeros(len(rows) - 1, 2)},
        lambda rows: {"ids": torch.tensor(1.0)},
        lambda rows: {"text": ["a"] * len(rows)},
    ],
)
def test_a_batch_has_one_row_per_example(collate: Any) -> None:
    with pytest.raises(InvalidInput, match="one row per example"):
        Examples(ROWS, collate).batch([0, 1])


def test_no_mapping_is_refused() -> None:
    with pytest.raises(InvalidInput, match="not a mapping"):
        Examples(TensorDataset(torch.zeros(3, 2))).batch([0])
    with pytest.raises(InvalidInput, match="not a mapping"):
        Examples(ROWS, lambda rows: [1]).batch([0])  # type: ignore[arg-type, return-value]


class Stream(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(3))


@pytest.mark.parametrize("dataset", [[], {}, {"a": torch.zeros(2), "b": torch.zeros(3)}, Stream(), iter(ROWS), 5])
def test_bad_data_sets(dataset: Any) -> None:
    with pytest.raises(InvalidInput):
        Examples(dataset)


def test_loaders_are_refused_with_the_reason_and_the_fix() -> None:
    for loader, why in (
        (DataLoader(ROWS, batch_size=2, shuffle=True), "shuffled epoch"),
        (DataLoader(ROWS, batch_size=2), "same examples"),
        (DataLoader(ROWS, batch_size=2, sampler=WeightedRandomSampler([1.0] * 10, 10)), "higher probability"),
    ):
        with pytest.raises(AccountingError, match=why) as caught:
            Examples(loader)
        assert "Give the data set itself" in caught.value.fix


def test_users_are_units_and_their_column_is_in_no_batch() -> None:
    users = Users(Examples(ROWS), "user")
    assert len(users) == 3
    batches = list(users.batches(torch.tensor([0, 2]), 1))
    assert [n for _, n in batches] == [4, 3] and all(set(batch) == {"ids", "labels"} for batch, _ in batches)
    assert batches[0][0]["ids"][:, 0].tolist() == [0, 3, 6, 9]


def test_users_contribute_at_most_so_many_examples_chosen_once_at_random() -> None:
    data = {"x": torch.arange(40.0)[:, None], "who": torch.arange(40) // 20}
    chosen = set()
    for _ in range(20):
        users = Users(Examples(data), "who", most=3)
        first, again = (tuple(next(users.batches(torch.tensor([1]), 9))[0]["x"].flatten().tolist()) for _ in range(2))
        assert first == again and len(set(first)) == 3 and all(x >= 20 for x in first)
        chosen.add(first)
    assert len(chosen) > 10


def test_an_example_without_a_user_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no entry 'who'"):
        Users(Examples(ROWS), "who")


def test_every_kind_of_example_has_a_content_that_a_fingerprint_reads(tmp_path: Path) -> None:
    kinds: list[Any] = [
        {"a": torch.ones(2)}, {"a": torch.zeros(2)}, {"a": torch.ones(2, dtype=torch.bfloat16)},
        {"a": b"1"}, {"a": "1"}, {"a": 1}, {"a": 1.5}, {"a": None},
        {"b": 1}, ((1, 2), 3), {"a": [[1], [2]]}, {"a": {"b": 1}}, {"a": object()}, {"a": np.array([object()])},
    ]  # fmt: skip
    make = Fingerprinter(tmp_path / "key")
    found = [make.of([content(kind)]) for kind in kinds]
    assert len(set(found)) == len(kinds) - 1  # ones in float32 and in bfloat16 are the same values
    assert found[0] == found[2]


def test_at_most_so_many_rows_are_read() -> None:
    assert sum(1 for _ in Examples({"x": torch.zeros(3 * MOST + 1)}).rows()) <= MOST
