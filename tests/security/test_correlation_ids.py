"""No correlated randomness is sent twice, whenever the dealer dies and whatever is left of the journal's last record."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from privtensors.deploy.ids import DurableIds
from privtensors.deploy.journal import Journal, Mark, create_journal
from privtensors.errors import CorrelationError, IdUsed
from tests.unit.deploy.stored import KIND, filled, opened, toy_programs

# Everything by which the dealer changes or reads its disk.
CALLS = ("open", "write", "fsync", "close", "rename", "unlink", "rmdir", "ftruncate", "link", "read")
SENDS = 4


def killed_at(point: int) -> None:
    """Die, as by SIGKILL, at the ``point``-th call that touches the disk: before it if even, after it if odd."""
    count = 0

    def deadly(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            now, count = count, count + 1
            if now == point // 2 and not point % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            found = real(*args, **kwargs)
            if now == point // 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        return call

    for name in CALLS:
        setattr(os, name, deadly(getattr(os, name)))


def send(wire: int, what: bytes, *, real: Callable[[int, bytes], int] = os.write) -> None:
    """What leaves the dealer. Bound before any call is made deadly: sending is no change of the disk."""
    assert real(wire, what) == len(what)


def deal(folder: Path, wire: int) -> None:
    """A dealer's session: it takes a bundle and sends seeds of the set-up and of requests, and marks ids of requests."""
    _, request = toy_programs()
    with opened(folder) as store:
        bundle = store.take()
        if bundle is None:
            return
        send(wire, bundle.seeds[0])
        for _ in range(SENDS):
            store_id = os.urandom(16)
            DurableIds(store.journal).use(store_id)
            dealt = bundle.draw(KIND, request)
            assert dealt is not None
            send(wire, dealt.seeds[0])
        bundle.burn()


def child(run: Callable[[], None]) -> int:
    """Run in a process of its own; its exit status, -9 when it was killed."""
    process = os.fork()
    if not process:
        status = 1
        try:
            run()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def sent(wire: Path) -> list[bytes]:
    data = wire.read_bytes()
    return [data[at : at + 32] for at in range(0, len(data), 32)]


@pytest.mark.parametrize("torn", [0, 31])
def test_a_dealer_killed_at_every_point_sends_nothing_twice(torn: int, tmp_path: Path) -> None:
    """Killed at the first touch of the disk, after it, at the second, … until one runs to its end; a new dealer goes on each time."""
    folder, wire = tmp_path / "store", tmp_path / "wire"
    journal = folder / "used.journal"
    number = os.open(wire, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    point, kills = 0, 0
    while True:
        if not point or len(list((folder / "bundles").iterdir())) < 2:  # one of them may be a dead dealer's
            filled(folder, count=SENDS)
        before = len(sent(wire))

        def run(point: int = point) -> None:
            killed_at(point)
            deal(folder, number)

        status = child(run)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        point, kills = point + 1, kills + 1
        if torn and not journal.stat().st_size % 32:  # as a loss of power leaves it: a record that was begun and never flushed
            with journal.open("ab") as file:
                file.write(os.urandom(torn))
        assert len(sent(wire)) - before <= SENDS + 1
    os.close(number)
    found = sent(wire)
    assert kills > 100 and len(found) > kills and len(set(found)) == len(found)


def test_a_dealer_killed_while_it_fills_the_store_leaves_whole_bundles(tmp_path: Path) -> None:
    folder, point = tmp_path / "store", 0
    filled(folder, count=1)
    while True:

        def run(point: int = point) -> None:
            killed_at(point)
            filled(folder, count=1)

        status = child(run)
        with opened(folder) as store:  # checks every bundle
            assert store.unused >= 1
        if status == 0:
            break
        point += 3
    assert point > 20
    filled(folder, count=1)
    assert not list((folder / "bundles").glob(".*"))


def test_what_a_dead_dealer_had_open_is_burnt(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    filled(folder, bundles=2)

    def run() -> None:
        with opened(folder) as store:
            store.take()
            os.kill(os.getpid(), signal.SIGKILL)

    assert child(run) == -signal.SIGKILL
    assert len(list((folder / "open").iterdir())) == 1
    with opened(folder) as store:  # the dead one's lock is gone with it
        assert store.unused == 1 and not list((folder / "open").iterdir())


@pytest.mark.parametrize("length", range(64, 97))
def test_a_journal_cut_anywhere_in_its_last_record(length: int, tmp_path: Path) -> None:
    path = tmp_path / "used.journal"
    create_journal(path)
    with Journal(path) as journal:
        for name in (b"a", b"b"):
            journal.use(Mark.REQUEST, name * 16)
    os.truncate(path, length)
    with Journal(path) as journal:
        assert journal.used(Mark.REQUEST, b"a" * 16)
        assert journal.used(Mark.REQUEST, b"b" * 16) == (length == 96)
        journal.use(Mark.ITEM, b"c" * 16)
    with Journal(path) as journal:
        assert journal.used(Mark.ITEM, b"c" * 16) and not journal.used(Mark.BUNDLE, b"c" * 16)
        with pytest.raises(IdUsed):
            journal.use(Mark.REQUEST, b"a" * 16)


@pytest.mark.parametrize("at", [32, 39, 40, 55, 63, 64, 95])
def test_a_changed_record_is_an_error_not_a_guess(at: int, tmp_path: Path) -> None:
    path = tmp_path / "used.journal"
    create_journal(path)
    with Journal(path) as journal:
        for name in (b"a", b"b"):
            journal.use(Mark.BUNDLE, name * 16)
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)
    with pytest.raises(CorrelationError, match="damaged"):
        Journal(path)
