"""Releases of a table say by a keyed fingerprint what data they are of: known data under another name is told."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import privtensors as pt
from privtensors.accounting import Account, Accounts, Fingerprinter
from privtensors.accounting.fingerprint import MOST
from privtensors.backends.dp.source import MOST_SOURCES, Source
from privtensors.errors import AccountingError, KnownDataWarning
from privtensors.testing.leaks import marked, shows_mark, traceback_text

NOISE = pt.Gaussian(std=1.0)


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRIVTENSORS_FINGERPRINT_KEY", str(tmp_path / "key"))
    return tmp_path / "key"


@pytest.fixture
def ledger(key: Path, tmp_path: Path) -> Iterator[pt.Ledger]:
    with pt.Ledger(tmp_path / "ledger.sqlite") as ledger, pt.Session(recorder=ledger):
        yield ledger


def table(rows: int = 40, columns: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))


def protected(x: Tensor, name: str, bounds: tuple[float, float] = (0, 1)) -> Tensor:
    return pt.protect(x, pt.DP(unit="row", dataset=name, bounds=bounds))


def written(ledger: pt.Ledger) -> list[Any]:
    return [row.body["release"]["fingerprint"] for row in ledger.entries(kind="budget.reserve")]


def test_a_table_under_another_name_is_told(ledger: pt.Ledger) -> None:
    pt.reveal(protected(table(), "wards").mean(0), release=NOISE)
    pt.reveal(protected(table(seed=1), "others").mean(0), release=NOISE)
    pt.reveal(protected(table(), "wards").sum(), release=NOISE)
    with pytest.warns(KnownDataWarning, match="'wards'"):
        pt.reveal(protected(table(), "copy").sum(0), release=NOISE)
    assert Accounts(ledger).statement(Account("copy", "row")).aliases == ("wards",)
    assert Accounts(ledger).statement(Account("others", "row")).aliases == ()
    first, other, again, copy = written(ledger)
    assert first == again == copy != other and len(first) == 32


CHANGES: dict[str, tuple[Callable[[Tensor], Tensor], tuple[float, float]]] = {
    "other bounds that clamp": (lambda x: x, (0.25, 0.5)),
    "float64": (lambda x: x.double(), (0, 1)),
    "another order of rows": (lambda x: x.flip(0), (0, 1)),
    "a view": (lambda x: torch.stack([x, x]).transpose(0, 1)[:, 1], (0, 1)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_same_data_in_another_form_is_known(ledger: pt.Ledger, name: str) -> None:
    pt.reveal(protected(table(), "wards").sum(), release=NOISE)
    change, bounds = CHANGES[name]
    with pytest.warns(KnownDataWarning):
        pt.reveal(protected(change(table()), "copy", bounds).sum(), release=NOISE)


def test_records_that_are_not_finite_belong_to_the_data(ledger: pt.Ledger) -> None:
    broken = table()
    broken[3, 1] = math.nan
    pt.reveal(protected(broken, "wards").sum(), release=NOISE)
    pt.reveal(protected(table(), "whole").sum(), release=NOISE)
    with pytest.warns(KnownDataWarning, match="'wards'"):
        pt.reveal(protected(broken.clone(), "copy").sum(), release=NOISE)


def test_whole_numbers_and_fractions_of_the_same_values_are_the_same(ledger: pt.Ledger) -> None:
    counts = torch.arange(60).view(20, 3) % 7
    pt.reveal(protected(counts, "wards", (0, 9)).sum(), release=NOISE)
    with pytest.warns(KnownDataWarning):
        pt.reveal(protected(counts.float(), "copy", (0, 9)).sum(), release=NOISE)


def test_columns_with_as_many_of_each_label_are_not_the_same_data(ledger: pt.Ledger) -> None:
    labels = torch.arange(100) % 2
    pt.reveal(protected(labels, "wards").sum(), release=NOISE)
    pt.reveal(protected(labels.sort().values, "others").sum(), release=NOISE)
    with pytest.warns(KnownDataWarning, match="'wards'"):
        pt.reveal(protected(labels.clone(), "copy").sum(), release=NOISE)


DERIVED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum of both": lambda x, y: (x.sum(1) * y).sum(),
    "product": lambda x, y: x.T @ y.view(-1, 1),
    "bins with weights": lambda x, y: torch.bincount(y.long(), x[:, 0], minlength=2),
    "cat": lambda x, y: torch.cat([x, y.view(-1, 1)], 1).sum(0),
    "sums added": lambda x, y: x.sum() + y.sum(),
    "in place": lambda x, y: x[:, 0].clone().mul_(y).sum(),
    "chosen": lambda x, y: torch.where(y > 0.5, x[:, 0], 0.0).sum(),
    "split": lambda x, y: x.split(2, 1)[0].sum() - y.split(20)[1].sum(),
}


@pytest.mark.parametrize("name", DERIVED)
def test_what_is_made_of_two_tables_has_the_fingerprints_of_both(ledger: pt.Ledger, name: str) -> None:
    technique = pt.DP(unit="row", dataset="wards", bounds=(0, 1))
    y = torch.arange(40) % 2
    made = DERIVED[name](pt.protect(table(), technique), pt.protect(y.float(), technique))
    pt.reveal(made, release=NOISE)
    assert sorted(written(ledger)[0]) == sorted([Fingerprinter().of_table(table().double().numpy()),
                                                 Fingerprinter().of_table(y.double().numpy(), ordered=True)])  # fmt: skip
    with pytest.warns(KnownDataWarning, match="'wards'"):
        pt.reveal(protected(table(), "copy").sum(), release=NOISE)
    with pytest.warns(KnownDataWarning, match="'wards'"):
        pt.reveal(protected(y, "labels").sum(), release=NOISE)
    ledger.verify()


def test_what_only_one_table_went_into_has_its_fingerprint_alone(ledger: pt.Ledger) -> None:
    technique = pt.DP(unit="row", dataset="wards", bounds=(0, 1))
    x, y = pt.protect(table(), technique), pt.protect(table(seed=1), technique)
    pt.reveal(y.sum(), release=NOISE)
    pt.reveal(x.relu().sum(), release=NOISE)
    pt.reveal(x, release=NOISE)
    assert written(ledger) == [Fingerprinter().of_table(t.double().numpy()) for t in (table(seed=1), table(), table())]


def test_the_fingerprint_is_made_once_and_the_table_let_go(ledger: pt.Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    of_table = Fingerprinter.of_table
    monkeypatch.setattr(Fingerprinter, "of_table", lambda self, rows, **how: calls.append(len(rows)) or of_table(self, rows, **how))
    x = protected(table(), "wards", (0.25, 0.5))
    total = x.sum(0)
    assert not calls, "nothing is read before a release"
    for _ in range(3):
        pt.reveal(total, release=NOISE)
    pt.reveal(x.mean(0), release=NOISE)
    [source] = total._state.payload.sources
    assert calls == [40] and source._table is None and x._state.payload.sources == {source}


def test_a_table_changed_after_it_was_protected_counts_as_it_was(ledger: pt.Ledger) -> None:
    for name, bounds in (("wards", (0, 1)), ("clamped", (0.25, 0.5))):
        plain = table()
        x = protected(plain, name, bounds)
        plain.zero_()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", KnownDataWarning)
            pt.reveal(x.sum(), release=NOISE)
    assert set(written(ledger)) == {Fingerprinter().of_table(table().double().numpy())}


def test_a_table_without_rows_has_none(ledger: pt.Ledger) -> None:
    for shape in ((0, 3), (3, 0), (0,)):
        pt.reveal(protected(torch.zeros(shape), "wards").sum(), release=NOISE)
    pt.reveal(protected(torch.tensor(0.5), "wards"), release=NOISE)
    assert written(ledger)[:3] == ["", "", ""] and len(written(ledger)[3]) == 32


def test_many_tables_in_one_release(ledger: pt.Ledger) -> None:
    technique = pt.DP(unit="row", dataset="wards", bounds=(0, 1))
    parts = [pt.protect(table(4, seed=seed), technique) for seed in range(MOST_SOURCES + 5)]
    pt.reveal(torch.cat(parts, 1).sum(), release=NOISE)
    assert written(ledger) == [[Fingerprinter().of_table(table(4, seed=seed).double().numpy()) for seed in range(MOST_SOURCES)]]
    with pytest.warns(KnownDataWarning):
        pt.reveal(protected(table(4, seed=7), "copy").sum(), release=NOISE)


def test_of_a_long_table_some_rows_are_read_that_the_key_chooses(ledger: pt.Ledger, key: Path, tmp_path: Path) -> None:
    long = table(3 * MOST)
    chosen = Fingerprinter()._chosen(len(long))
    assert MOST / 2 < len(chosen) <= MOST and 0 <= chosen[0] < chosen[-1] < len(long)
    assert list(chosen) == list(Fingerprinter()._chosen(len(long))) != list(Fingerprinter(tmp_path / "another")._chosen(len(long)))
    pt.reveal(protected(long, "wards").sum(), release=NOISE)
    with pytest.warns(KnownDataWarning):
        pt.reveal(protected(long.clone(), "copy").sum(), release=NOISE)
    other = long.clone()
    other[chosen[17], 0] = 0.123
    pt.reveal(protected(other, "others").sum(), release=NOISE)
    assert len(set(written(ledger))) == 2


def test_nothing_of_the_table_leaks(ledger: pt.Ledger, key: Path) -> None:
    x = pt.protect(torch.stack([marked(2), torch.zeros(2)]), pt.DP(unit="row", dataset="wards", bounds=(-1e9, 1e9)))
    [source] = x._state.payload.sources
    assert not shows_mark(repr(source)) and not shows_mark(f"{source!s} {x._state.payload!r}")
    key.write_bytes(b"short")
    os.chmod(key, 0o600)
    with pytest.raises(AccountingError, match="damaged") as caught:
        pt.reveal(x.sum(0), release=NOISE)
    assert not shows_mark(traceback_text(caught.value)) and not ledger.entries(), "without a key nothing is released"
    key.unlink()
    pt.reveal(x.sum(0), release=NOISE)
    assert not any(shows_mark(row.body_json) for row in ledger.entries())


def test_two_keys_give_two_fingerprints_of_one_table(key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Source(table(), 0).fingerprint()
    monkeypatch.setenv("PRIVTENSORS_FINGERPRINT_KEY", str(tmp_path / "another"))
    assert first != Source(table(), 0).fingerprint() != ""
