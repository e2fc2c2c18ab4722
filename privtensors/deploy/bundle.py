"""A bundle on disk: one session's set-up and the correlated randomness of some requests of it, dealt ahead.

A bundle is a folder: ``bundle.json`` (format, terms, program digests, and size and SHA-256 of every other file),
``setup.seeds`` (the set-up's two seeds), and per request a file of two seeds and party 1's corrections. Whoever reads the
files of unused requests knows what the dealer knows: the masks of those requests. No pickle.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

from privtensors.backends.mpc.program import DealerState, Program
from privtensors.deploy.durable import sync_folder, write_new
from privtensors.deploy.ids import SEED_SIZE, Dealt, two_seeds
from privtensors.deploy.journal import ID_SIZE
from privtensors.errors import CorrelationError

FORMAT: Final = 1
HEADER: Final = "bundle.json"
SETUP_SEEDS: Final = "setup.seeds"
_SEEDS: Final = 2 * SEED_SIZE
_PIECE: Final = 1 << 20
_LARGEST_HEADER: Final = 1 << 26
_GUARD: Final = "remove the bundle's folder and deal anew"


@dataclass(frozen=True, slots=True)
class Item:
    """One request's randomness.

    Attributes:
        id: 32 hexadecimal digits; the file is named after it.
        kind: See :func:`~privtensors.deploy.kinds.kind_of`.
        program: Digest of the program that it was dealt for.
        size: Bytes of the file: 64 of seeds, then the corrections.
        sha256: Of the file.
    """

    id: str
    kind: str
    program: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Header:
    """What a bundle says about itself; nothing in it is secret.

    Attributes:
        id: 32 hexadecimal digits, the folder's name.
        terms: Release, policy and model, as the parties compare them.
        setup: Digest of the set-up's program.
        setup_sha256: Of the file of its seeds.
        items: The requests.
    """

    id: str
    terms: Mapping[str, str]
    setup: str
    setup_sha256: str
    items: tuple[Item, ...]

    def encode(self) -> bytes:
        """JSON with a digest over the rest."""
        body = asdict(self)
        return json.dumps({"format": FORMAT, "sha256": _digest(body), "bundle": body}, indent=1).encode()


@dataclass(frozen=True, slots=True)
class Wanted:
    """Requests to deal for.

    Attributes:
        kind: See :func:`~privtensors.deploy.kinds.kind_of`.
        program: Their program.
        count: How many.
    """

    kind: str
    program: Program
    count: int


def make_bundle(folder: Path, terms: Mapping[str, str], setup: Program, wanted: Sequence[Wanted], tell: Callable[[int], None]) -> int:
    """Deal, and write a new bundle into ``folder``. It appears there complete, under a random name, or not at all.

    Args:
        folder: Of bundles, on a disk that keeps what is flushed.
        terms: What the parties agree on.
        setup: The set-up's program.
        wanted: The requests.
        tell: Called with the bytes of each finished request.

    Returns:
        Bytes written.

    Raises:
        OSError: The disk is full, or cannot be written.
    """
    name = secrets.token_hex(ID_SIZE)
    draft = folder / f".{name}"
    draft.mkdir(mode=0o700)
    try:
        seeds, state = two_seeds(), DealerState()
        for _ in setup.deal(seeds, state, keep=True):
            pass  # the session deals it again from the seeds
        size, digest = write_new(draft / SETUP_SEEDS, seeds)
        items = []
        for want in wanted:
            for _ in range(want.count):
                ours, item = two_seeds(), secrets.token_hex(ID_SIZE)
                written, checked = write_new(draft / item, chain(ours, want.program.deal(ours, state, keep=False)))
                items.append(Item(item, want.kind, want.program.digest, written, checked))
                size += written
                tell(written)
        header = Header(name, dict(terms), setup.digest, digest, tuple(items)).encode()
        write_new(draft / HEADER, [header])
        sync_folder(draft)
        draft.rename(folder / name)
        sync_folder(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return size + len(header)


def read_header(folder: Path) -> Header:
    """The header of the bundle in ``folder``, checked: its digest, its form, and presence and size of every file.

    Raises:
        CorrelationError: Truncated, changed, or of another format.
    """
    where = str(folder)
    try:
        path = folder / HEADER
        if path.stat().st_size > _LARGEST_HEADER:
            raise ValueError
        data = json.loads(path.read_bytes())
        if type(data) is not dict or data.get("format") != FORMAT:
            raise CorrelationError("the bundle is of another format", where=where, fix="deal anew with this release")
        found = _header(data["bundle"])
        good = data["sha256"] == _digest(data["bundle"]) and found.id == folder.name
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        good = False
    if not good:
        raise CorrelationError("the bundle's header is damaged", where=where, fix=_GUARD)
    for name, size in ((SETUP_SEEDS, _SEEDS), *((item.id, item.size) for item in found.items)):
        try:
            right = (folder / name).stat().st_size == size
        except OSError:
            right = False
        if not right:
            raise CorrelationError(f"the bundle's file {name} is missing or truncated", where=where, fix=_GUARD)
    return found


def read_seeds(folder: Path, header: Header) -> tuple[bytes, bytes]:
    """The set-up's seeds.

    Raises:
        CorrelationError: The file was changed.
    """
    try:
        data = (folder / SETUP_SEEDS).read_bytes()
    except OSError:
        data = b""
    if len(data) != _SEEDS or hashlib.sha256(data).hexdigest() != header.setup_sha256:
        raise CorrelationError("the bundle's set-up is damaged", where=str(folder), fix=_GUARD)
    return data[:SEED_SIZE], data[SEED_SIZE:]


def take_item(folder: Path, item: Item) -> Dealt:
    """An item's randomness, checked as a whole; its file is gone from the folder when this returns, or raises.

    Raises:
        CorrelationError: It is missing, truncated or changed.
    """
    path = folder / item.id
    try:
        number = os.open(path, os.O_RDONLY)
        try:
            data = memoryview(mmap.mmap(number, 0, access=mmap.ACCESS_READ))
        finally:
            os.close(number)
    except (OSError, ValueError):  # ValueError: an empty file
        data = memoryview(b"")
    remove(path)
    if len(data) != item.size or hashlib.sha256(data).hexdigest() != item.sha256:
        raise CorrelationError(f"the stored randomness {item.id} is damaged", where=str(folder), fix=_GUARD)
    seeds = bytes(data[:SEED_SIZE]), bytes(data[SEED_SIZE:_SEEDS])
    return Dealt(seeds, _pieces(data), stored=True)


def remove(path: Path) -> None:
    """Delete a file or a bundle's folder as far as possible: the journal decides what is used, not this."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _pieces(data: memoryview) -> Iterator[memoryview]:
    for at in range(_SEEDS, len(data), _PIECE):
        yield data[at : at + _PIECE]


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _header(body: Any) -> Header:
    """Strict; ValueError, KeyError or TypeError for anything else."""
    if type(body) is not dict or set(body) != {"id", "terms", "setup", "setup_sha256", "items"}:
        raise ValueError
    terms = body["terms"]
    if type(terms) is not dict or not all(type(value) is str for value in terms.values()):
        raise ValueError
    items = tuple(
        Item(_name(i["id"], ID_SIZE), _name(i["kind"]), _name(i["program"]), _size(i["size"]), _name(i["sha256"])) for i in body["items"]
    )
    if len({item.id for item in items}) != len(items):
        raise ValueError
    return Header(_name(body["id"], ID_SIZE), terms, _name(body["setup"]), _name(body["setup_sha256"]), items)


def _name(value: object, size: int = 32) -> str:
    """Hexadecimal digits of ``size`` bytes: never a path."""
    if type(value) is not str or len(value) != 2 * size or not set(value) <= set("0123456789abcdef"):
        raise ValueError
    return value


def _size(value: object) -> int:
    if type(value) is not int or value < _SEEDS:
        raise ValueError
    return value
