"""Fingerprints: the same data is recognised in any order and form, other data and other keys are not, and the key is kept."""

from __future__ import annotations

import os
import pickle
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import privtensors
from privtensors.accounting import Fingerprinter
from privtensors.accounting.fingerprint import MOST, default_key_path
from privtensors.errors import AccountingError, InvalidInput, PrivTensorsError

ROOT = Path(privtensors.__file__).parents[1]


@pytest.fixture
def maker(tmp_path: Path) -> Fingerprinter:
    return Fingerprinter(tmp_path / "keys" / "fingerprint.key")


def test_order_does_not_matter_and_everything_else_does(maker: Fingerprinter) -> None:
    found = maker.of(["a", "b", "c"])
    assert len(found) == 32 and int(found, 16) >= 0
    assert found == maker.of(iter(["c", "a", "b"]))
    for other in (["a", "b"], ["a", "b", "c", "c"], ["a", "b", "C"], ["ab", "c"], [b"a", "b", "c"], [["a", "b", "c"]]):
        assert maker.of(other) != found


def test_the_form_of_numbers_does_not_matter(maker: Fingerprinter) -> None:
    as_lists = [{"input_ids": [101, 7, 102], "label": 1, "score": 0.5}, {"input_ids": [101, 102], "label": 0, "score": 1.5}]
    as_arrays = [{key: np.asarray(value) for key, value in row.items()} for row in as_lists]
    as_tensors = [{key: torch.tensor(value) for key, value in reversed(row.items())} for row in as_lists]
    assert maker.of(as_lists) == maker.of(as_arrays) == maker.of(as_tensors)
    assert maker.of([[[1, 2], [3, 4]]]) == maker.of([torch.tensor([[1, 2], [3, 4]], dtype=torch.int32)])
    assert maker.of([torch.tensor([[1, 2], [3, 4]])]) != maker.of([torch.tensor([1, 2, 3, 4])])
    assert maker.of([1]) != maker.of([1.0]) and maker.of([[]]) == maker.of([torch.zeros(0)])
    assert maker.of([["x", "y"]]) == maker.of([np.array(["x", "y"])])
    assert maker.of([[10**30, 1]]) != maker.of([[10**30, 2]])
    assert maker.of([[[1], [2, 3]]]) != maker.of([[[1, 2], [3]]])


def test_a_table_is_its_rows_and_of_a_long_one_the_key_chooses_some(maker: Fingerprinter, tmp_path: Path) -> None:
    rows = np.arange(12.0).reshape(4, 3)
    assert maker.of_table(rows) == maker.of(rows) == maker.of_table(rows[::-1]) == maker.of_table(rows.tolist())
    assert maker.of_table(rows, ordered=True) not in (maker.of(rows), maker.of_table(rows[::-1], ordered=True))
    long = np.arange(2.0 * MOST)
    read: list[int] = []

    class Watched:
        def __len__(self) -> int:
            return len(long)

        def __getitem__(self, index: int) -> object:
            read.append(index)
            return long[index]

    found = maker.of_table(Watched())
    assert MOST / 2 < len(read) == len(set(read)) <= MOST and found == maker.of_table(long)
    first, read[:] = set(read), []
    Fingerprinter(tmp_path / "other.key").of_table(Watched())
    assert first != set(read), "whoever does not have the key does not know which rows count"


def test_what_has_no_fingerprint_is_refused(maker: Fingerprinter) -> None:
    for bad in (object(), {1, 2}, torch.zeros(2, requires_grad=True), np.array(["2020"], dtype="M8[D]")[0]):
        with pytest.raises(InvalidInput):
            maker.of([bad])
    with pytest.raises(InvalidInput, match="no record"):
        maker.of([])
    deep: object = "x"
    for _ in range(40):
        deep = [deep]
    with pytest.raises(InvalidInput, match="deep"):
        maker.of([deep])
    protected = privtensors.protect(torch.zeros(2), "clear")
    with pytest.raises(PrivTensorsError):  # a protected value does not go into a file by this door
        maker.of([protected])


def test_another_key_gives_another_fingerprint_and_the_same_key_the_same(maker: Fingerprinter, tmp_path: Path) -> None:
    found = maker.of(["a"])
    assert Fingerprinter(maker.key_path).of(["a"]) == found
    assert Fingerprinter(tmp_path / "other.key").of(["a"]) != found


def test_the_key_is_for_its_owner_and_does_not_get_out(maker: Fingerprinter) -> None:
    status = maker.key_path.stat()
    assert stat.S_IMODE(status.st_mode) == 0o600 and status.st_size == 32
    assert [path.name for path in maker.key_path.parent.iterdir()] == ["fingerprint.key"]
    assert maker.key_path.read_bytes().hex() not in repr(maker) and repr(maker.key_path.read_bytes()) not in repr(maker)
    with pytest.raises(AccountingError, match="does not leave"):
        pickle.dumps(maker)


def test_bad_keys_are_refused_and_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "key"
    for content in (b"", b"x" * 31, b"x" * 33):
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(AccountingError, match="damaged"):
            Fingerprinter(path)
        assert path.read_bytes() == content
    path.write_bytes(b"x" * 32)
    path.chmod(0o644)
    with pytest.raises(AccountingError, match="others may read"):
        Fingerprinter(path)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    with pytest.raises(AccountingError, match="regular file"):
        Fingerprinter(fifo)
    with pytest.raises(AccountingError, match="cannot be made or read"):
        Fingerprinter(path / "below")


def test_the_environment_names_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIVTENSORS_FINGERPRINT_KEY", str(tmp_path / "k"))
    assert default_key_path() == tmp_path / "k" == Fingerprinter().key_path
    monkeypatch.delenv("PRIVTENSORS_FINGERPRINT_KEY")
    assert default_key_path().name == "fingerprint.key" and default_key_path().parent.name == "privtensors"


def test_processes_that_make_the_key_at_once_agree(tmp_path: Path) -> None:
    code = "import sys; from privtensors.accounting import Fingerprinter; sys.stdin.readline(); print(Fingerprinter(sys.argv[1]).of(['a']))"
    command = [sys.executable, "-c", code, str(tmp_path / "key")]
    makers = [subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert len({maker.communicate("\n", timeout=60)[0] for maker in makers}) == 1
    assert all(maker.returncode == 0 for maker in makers)
