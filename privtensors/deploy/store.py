"""The dealer's store: bundles dealt ahead, and the journal of what was used. One process serves from it at a time.

A folder of the dealer, for its eyes only (0700)::

    used.journal    every id that was used
    bundles/        unused bundles: a session takes one as a whole
    open/           bundles taken by sessions; what is found here when a dealer starts is left over, and burnt
    serving.lock    held by the dealer that serves; making.lock by the one that fills the store
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

from privtensors.backends.mpc.program import DealerState, Program
from privtensors.deploy.bundle import Header, Wanted, make_bundle, read_header, read_seeds, remove, take_item
from privtensors.deploy.durable import sync_folder
from privtensors.deploy.ids import Dealt, FreshSupply, SessionSupply
from privtensors.deploy.journal import Journal, Mark, create_journal
from privtensors.deploy.rooms import LOG
from privtensors.errors import CorrelationError

_DEAL: Final = "deal more with privtensors deal"


def fill(folder: Path, terms: Mapping[str, str], setup: Program, wanted: Sequence[Wanted], tell: Callable[[int], None]) -> int:
    """Deal one bundle into the store in ``folder``, which is made where it does not exist. A dealer may serve from it meanwhile.

    Args:
        folder: The store.
        terms: What the parties of the deployment agree on.
        setup: The program of a session's set-up.
        wanted: The requests of the session.
        tell: Called with the bytes of each finished request.

    Returns:
        Bytes written.

    Raises:
        CorrelationError: Others can read the folder, another process fills it, or it cannot be written.
    """
    try:
        _prepare(folder)
        with _locked(folder / "making.lock", "another process fills this store"):
            for left in (folder / "bundles").glob(".*"):
                remove(left)
            return make_bundle(folder / "bundles", terms, setup, wanted, tell)
    except OSError as error:
        raise CorrelationError(f"the store cannot be written: {error.strerror}", where=str(folder), fix="free the disk") from None


class Store:
    """A store opened by the dealer that serves from it.

    Args:
        folder: Made where it does not exist.
        terms: What the parties of the deployment agree on.
        setup: Digest of the program of a session's set-up.

    Raises:
        CorrelationError: Another dealer serves from it, others can read it, the journal or a bundle is damaged, or a bundle was
            dealt for another release, policy or model.
    """

    def __init__(self, folder: Path, terms: Mapping[str, str], setup: str) -> None:
        self._folder, self._terms, self._setup = folder, dict(terms), setup
        self._guard = threading.Lock()
        try:
            _prepare(folder)
        except OSError as error:
            raise CorrelationError(f"the store cannot be opened: {error.strerror}", where=str(folder), fix="give another folder") from None
        self._lock = _locked(folder / "serving.lock", "another dealer serves from this store")
        self._lock.__enter__()
        try:
            self.journal = Journal(folder / "used.journal")
            try:
                for left in (folder / "open").iterdir():
                    remove(left)
                for _ in self._usable():
                    pass
            except BaseException:
                self.journal.close()
                raise
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Store({self._folder})"

    def close(self) -> None:
        """Let another dealer serve from it."""
        self.journal.close()
        self._lock.__exit__(None, None, None)

    @property
    def unused(self) -> int:
        """Bundles that no session took."""
        return sum(not self.journal.used(Mark.BUNDLE, _id(path)) for path in self._bundles())

    def take(self) -> Bundle | None:
        """An unused bundle, marked as used on disk before this returns; None where there is none.

        Raises:
            CorrelationError: The bundle is damaged or foreign: it is burnt. The next call tries the next one.
        """
        with self._guard:
            for path in self._bundles():
                name = _id(path)
                if self.journal.used(Mark.BUNDLE, name):
                    continue
                self.journal.use(Mark.BUNDLE, name)
                try:
                    header = self._checked(path)
                    seeds = read_seeds(path, header)
                    place = self._folder / "open" / path.name
                    path.rename(place)
                    sync_folder(place.parent)
                    sync_folder(path.parent)
                except OSError as error:
                    raise CorrelationError(f"a bundle cannot be taken: {error.strerror}", where=str(path), fix="check the disk") from None
                return Bundle(place, header, seeds, self.journal)
            return None

    def _bundles(self) -> list[Path]:
        return sorted(path for path in (self._folder / "bundles").iterdir() if not path.name.startswith("."))

    def _usable(self) -> Iterator[Header]:
        """Headers of unused bundles; used ones, left by a crash, are removed."""
        for path in self._bundles():
            if self.journal.used(Mark.BUNDLE, _id(path)):
                remove(path)
            else:
                yield self._checked(path)

    def _checked(self, path: Path) -> Header:
        header = read_header(path)
        terms = header.terms
        if differing := sorted(k for k in self._terms.keys() | terms.keys() if self._terms.get(k) != terms.get(k)):
            what = f"the bundle was dealt for another {', '.join(differing)}"
            raise CorrelationError(what, where=str(path), fix="give each deployment a store of its own, and deal anew after a change")
        if header.setup != self._setup:
            raise CorrelationError("the bundle was dealt for another model", where=str(path), fix="deal anew with this release")
        return header


class Bundle:
    """A bundle that one session took.

    Args:
        folder: Where it lies.
        header: Checked.
        seeds: The set-up's.
        journal: Items are marked there.
    """

    def __init__(self, folder: Path, header: Header, seeds: tuple[bytes, bytes], journal: Journal) -> None:
        self._folder, self._left, self.seeds, self._journal = folder, list(header.items), seeds, journal

    def __repr__(self) -> str:
        return f"Bundle({len(self._left)} left)"

    @property
    def left(self) -> int:
        """Requests that it can still serve."""
        return len(self._left)

    def draw(self, kind: str, program: Program) -> Dealt | None:
        """Randomness for a request, marked as used on disk before this returns; None where there is none of its kind.

        Raises:
            CorrelationError: It is damaged: it is burnt.
        """
        for item in self._left:
            if (item.kind, item.program) == (kind, program.digest):
                self._left.remove(item)
                self._journal.use(Mark.ITEM, bytes.fromhex(item.id))
                return take_item(self._folder, item)
        return None

    def burn(self) -> None:
        """Delete what is left. Never raises."""
        self._left.clear()
        remove(self._folder)


class StoredSupply:
    """Gives each session a bundle, and deals on request what the bundle lacks.

    Args:
        store: Open; its owner closes it.
        stored_only: Refuse what is not in store, instead of dealing it on request.
    """

    def __init__(self, store: Store, *, stored_only: bool = False) -> None:
        self._store, self._stored_only = store, stored_only

    def open(self) -> SessionSupply:
        """See :class:`~privtensors.deploy.ids.Supply`."""
        return _StoredSession(self._store, self._stored_only)


class _StoredSession:
    def __init__(self, store: Store, stored_only: bool) -> None:
        self._store, self._stored_only, self._fresh = store, stored_only, FreshSupply()
        self._bundle: Bundle | None = None

    def set_up(self, program: Program, state: DealerState) -> Dealt:
        bundle = self._bundle = self._store.take()
        if bundle is None:
            self._lacking("no bundle is left for this session")
            return self._fresh.set_up(program, state)
        LOG.info("a session takes a bundle of %d requests", bundle.left)
        return Dealt(bundle.seeds, program.deal(bundle.seeds, state, keep=True), stored=True)

    def draw(self, program: Program, state: DealerState, *, kind: str | None) -> Dealt:
        found = self._bundle.draw(kind, program) if self._bundle is not None and kind is not None else None
        if found is None:
            self._lacking("nothing is stored for a step of a generation" if kind is None else "nothing is left in store for this request")
            return self._fresh.draw(program, state, kind=kind)
        return found

    def close(self) -> None:
        if self._bundle is not None:
            self._bundle.burn()

    def _lacking(self, what: str) -> None:
        if self._stored_only:
            raise CorrelationError(what, where="store", fix=_DEAL)
        LOG.info("%s: it is dealt on request", what)


def _prepare(folder: Path) -> None:
    """Make what is missing, the journal first: bundles without one are an error.

    Raises:
        CorrelationError: Others than this user can read the folder, or the journal is gone.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_mode & 0o077 or found.st_uid != os.geteuid():
        raise CorrelationError("others can read the dealer's store", where=str(folder), fix="make it this user's own, mode 0700")
    bundles, journal = folder / "bundles", folder / "used.journal"
    if not journal.exists():
        if bundles.exists():
            what = "the journal of used ids is gone, so what was used is not known"
            raise CorrelationError(what, where=str(folder), fix="remove the folder and deal anew")
        create_journal(journal)
    for place in (folder / "open", bundles):
        place.mkdir(mode=0o700, exist_ok=True)
    sync_folder(folder)


@contextmanager
def _locked(path: Path, held: str) -> Iterator[None]:
    """Hold a lock that ends with the process, however it ends.

    Raises:
        CorrelationError: Another process holds it.
    """
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CorrelationError(held, where=str(path.parent), fix="end it, or use another store") from None
        yield
    finally:
        os.close(number)


def _id(path: Path) -> bytes:
    """The id in a bundle's name."""
    try:
        name = bytes.fromhex(path.name)
    except ValueError:
        name = b""
    if len(name) != 16:
        raise CorrelationError("no bundle has such a name", where=str(path), fix="remove it from the store")
    return name
