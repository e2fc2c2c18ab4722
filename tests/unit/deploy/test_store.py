"""The dealer's store: what is in it is right, is handed out once, and is refused when it is damaged or foreign."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from privtensors.backends.mpc.program import DealerState, Program
from privtensors.backends.mpc.randomness import Prg
from privtensors.deploy.bundle import HEADER, SETUP_SEEDS, Wanted, read_header
from privtensors.deploy.ids import Dealt, DurableIds
from privtensors.deploy.journal import Journal, Mark, create_journal
from privtensors.deploy.store import Store, StoredSupply, fill
from privtensors.errors import CorrelationError, IdUsed
from tests.unit.deploy.stored import KIND, TERMS, filled, opened, toy_programs

SIZE = 5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


def only(folder: Path) -> Path:
    (found,) = (folder / "bundles").iterdir()
    return found


def content(dealt: Dealt) -> torch.Tensor:
    """Party 1's corrections."""
    return torch.frombuffer(bytearray(b"".join(dealt.corrections)), dtype=torch.int64)


def test_a_stored_request_is_what_would_have_been_dealt(folder: Path) -> None:
    setup, request = filled(folder)
    with opened(folder) as store:
        session, state = StoredSupply(store, stored_only=True).open(), DealerState()
        first = session.set_up(setup, state)
        assert first.stored and list(first.corrections) == []
        weight = sum(Prg(seed).words((SIZE,)) for seed in first.seeds)
        for _ in range(3):
            dealt = session.draw(request, state, kind=KIND)
            streams = Prg(dealt.seeds[0]), Prg(dealt.seeds[1])
            own = streams[0].words((SIZE,)) + streams[1].words((SIZE,))
            assert dealt.stored and torch.equal(content(dealt) + streams[0].words((SIZE,)), weight * own)
        with pytest.raises(CorrelationError, match="nothing is left in store"):
            session.draw(request, state, kind=KIND)
        session.close()
        assert not list((folder / "open").iterdir()) and not list((folder / "bundles").iterdir())


def test_what_is_not_in_store_is_dealt_with_the_same_sessions_masks(folder: Path) -> None:
    setup, request = filled(folder, count=1)
    with opened(folder) as store:
        session, state = StoredSupply(store).open(), DealerState()
        first = session.set_up(setup, state)
        list(first.corrections)
        weight = sum(Prg(seed).words((SIZE,)) for seed in first.seeds)
        other = session.draw(request, state, kind="cd" * 32)
        streams = Prg(other.seeds[0]), Prg(other.seeds[1])
        own = streams[0].words((SIZE,)) + streams[1].words((SIZE,))
        assert not other.stored and torch.equal(content(other) + streams[0].words((SIZE,)), weight * own)
        assert session.draw(request, state, kind=KIND).stored and not session.draw(request, state, kind=KIND).stored
        # A session that came too late for a bundle.
        late, state = StoredSupply(store).open(), DealerState()
        assert not late.set_up(setup, state).stored
        late.close()
        with pytest.raises(CorrelationError, match="no bundle is left"):
            StoredSupply(store, stored_only=True).open().set_up(setup, DealerState())


def test_nothing_is_handed_out_twice(folder: Path) -> None:
    filled(folder, count=2, bundles=4)
    _, request = toy_programs()
    seeds: list[bytes] = []
    for _ in range(2):
        with opened(folder) as store:
            for _ in range(2):
                bundle = store.take()
                assert bundle is not None
                seeds.extend(bundle.seeds)
                dealt = bundle.draw(KIND, request)
                assert dealt is not None
                seeds.extend(dealt.seeds)
    with opened(folder) as store:
        assert store.take() is None and store.unused == 0
    assert len(set(seeds)) == len(seeds) == 16


def test_the_files_are_gone_before_they_are_sent(folder: Path) -> None:
    _, request = filled(folder)
    with opened(folder) as store:
        bundle = store.take()
        assert bundle is not None
        before = len(list((folder / "open").glob("*/*")))
        dealt = bundle.draw(KIND, request)
        assert dealt is not None and len(list((folder / "open").glob("*/*"))) == before - 1
        assert len(content(dealt)) == SIZE
        bundle.burn()
        assert bundle.draw(KIND, request) is None


def test_files_are_the_owners_alone_and_a_shared_store_is_refused(folder: Path) -> None:
    filled(folder)
    modes = {path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*")) if path.is_dir()}
    assert modes == {0o700}
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()} == {0o600}
    folder.chmod(0o750)
    with pytest.raises(CorrelationError, match="0700"):
        opened(folder)


def test_one_dealer_at_a_time_and_filling_beside_it(folder: Path) -> None:
    filled(folder)
    with opened(folder) as store:
        with pytest.raises(CorrelationError, match="another dealer"):
            opened(folder)
        assert store.unused == 1
        filled(folder)
        assert store.unused == 2
    with opened(folder) as store:
        assert store.unused == 2


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def item(folder: Path) -> Path:
    return only(folder) / read_header(only(folder)).items[0].id


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "header flipped": (lambda f: flip(only(f) / HEADER, 200), "header is damaged"),
    "header cut": (lambda f: os.truncate(only(f) / HEADER, 100), "header is damaged"),
    "header gone": (lambda f: (only(f) / HEADER).unlink(), "header is damaged"),
    "item cut": (lambda f: os.truncate(item(f), 70), "missing or truncated"),
    "item gone": (lambda f: item(f).unlink(), "missing or truncated"),
    "seeds cut": (lambda f: os.truncate(only(f) / SETUP_SEEDS, 32), "missing or truncated"),
    "renamed": (lambda f: only(f).rename(f / "bundles" / ("0" * 32)), "header is damaged"),
    "stranger": (lambda f: (f / "bundles" / "x").mkdir(), "no bundle has such a name"),
    "journal gone": (lambda f: (f / "used.journal").unlink(), "journal of used ids is gone"),
    "journal of another format": (lambda f: flip(f / "used.journal", 5), "no journal"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_store_is_refused_when_it_is_opened(damage: str, folder: Path) -> None:
    filled(folder)
    change, message = DAMAGE[damage]
    change(folder)
    with pytest.raises(CorrelationError, match=message):
        opened(folder)


def test_a_header_of_another_format(folder: Path) -> None:
    filled(folder)
    path = only(folder) / HEADER
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.raises(CorrelationError, match="another format"):
        opened(folder)


def test_a_header_that_names_a_path_is_refused(folder: Path) -> None:
    filled(folder)
    path = only(folder) / HEADER
    path.write_text(path.read_text().replace(read_header(only(folder)).items[0].id, "../../used.journal"))
    with pytest.raises(CorrelationError, match="header is damaged"):
        opened(folder)


def test_a_foreign_bundle_is_refused(folder: Path) -> None:
    filled(folder)
    setup, _ = toy_programs()
    with pytest.raises(CorrelationError, match="another model layout, policy"):
        Store(folder, {"policy": "q", "model layout": "n"}, setup.digest)
    with pytest.raises(CorrelationError, match="another model"):
        Store(folder, TERMS, toy_programs(6)[0].digest)


@pytest.mark.parametrize("at", [0, 63, 64, -1])
def test_a_changed_item_is_burnt_and_the_session_goes_on(at: int, folder: Path) -> None:
    _, request = filled(folder, count=2)
    flip(item(folder), at)
    with opened(folder) as store:
        bundle = store.take()
        assert bundle is not None
        with pytest.raises(CorrelationError, match="is damaged"):
            bundle.draw(KIND, request)
        assert bundle.left == 1 and bundle.draw(KIND, request) is not None


def test_a_bundle_damaged_while_the_dealer_serves_is_burnt(folder: Path) -> None:
    filled(folder, bundles=2)
    with opened(folder) as store:
        flip(sorted((folder / "bundles").iterdir())[0] / SETUP_SEEDS)
        with pytest.raises(CorrelationError, match="set-up is damaged"):
            store.take()
        assert store.unused == 1 and store.take() is not None and store.take() is None


def test_another_program_of_the_same_kind_gets_nothing(folder: Path) -> None:
    filled(folder)
    _, other = toy_programs(6)
    with opened(folder) as store:
        bundle = store.take()
        assert bundle is not None and bundle.draw(KIND, other) is None and bundle.left == 3


def test_a_full_disk_leaves_no_half_bundle(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(folder)
    setup, request = toy_programs()
    real, calls = os.write, []

    def write(number: int, data: memoryview) -> int:
        calls.append(1)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(number, data)

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(CorrelationError, match="No space left"):
        fill(folder, TERMS, setup, [Wanted(KIND, request, 2)], lambda size: None)
    monkeypatch.undo()
    with opened(folder) as store:
        assert store.unused == 1 and not list((folder / "bundles").glob(".*"))


def test_a_mark_that_cannot_be_written_stops_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_journal(tmp_path / "j")
    with Journal(tmp_path / "j") as journal:
        ids = DurableIds(journal)
        ids.use(b"a" * 16)

        def fail(number: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(CorrelationError, match="Input/output"):
            ids.use(b"b" * 16)
        monkeypatch.undo()
        with pytest.raises(CorrelationError, match="closed"):
            ids.use(b"c" * 16)
    with Journal(tmp_path / "j") as journal:
        for name in (b"a", b"b"):
            with pytest.raises(IdUsed):
                journal.use(Mark.REQUEST, 16 * name)
        journal.use(Mark.REQUEST, b"c" * 16)


def test_errors_and_names_show_no_seed(folder: Path) -> None:
    setup, request = filled(folder)
    with opened(folder) as store:
        bundle = store.take()
        assert bundle is not None
        dealt = bundle.draw(KIND, request)
        assert dealt is not None
        shown = f"{bundle!r} {store!r} {dealt!r} {store.journal!r}" + " ".join(str(p) for p in folder.rglob("*"))
        header = (next((folder / "open").iterdir()) / HEADER).read_text()
    for seed in (*bundle.seeds, *dealt.seeds):
        assert seed.hex() not in shown + header and repr(seed) not in shown
    assert isinstance(setup, Program)
