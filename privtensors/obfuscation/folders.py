"""Client and server folders: written whole or not at all, each with a manifest that says which conversion it comes from."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

from privtensors.errors import FileFormatError, ObfuscationError, UnpairedFolders

Role = Literal["client", "server"]
Scalar = str | int | float | bool

MANIFEST_FILE: Final = "privtensors.json"
ROLES: Final[tuple[Role, ...]] = ("client", "server")
SCHEMES: Final = ("equivariant", "sentinel")
_FORMAT, _VERSION = "privtensors obfuscated model", 1
_LARGEST_MANIFEST: Final = 1 << 22
_NO_OPTIONS: Final = MappingProxyType[str, Scalar]({})


@dataclass(frozen=True)
class Manifest:
    """What a folder says of itself, in ``privtensors.json``. It holds no secret; ``labels`` are in the client's manifest only.

    Attributes:
        role: ``"client"`` or ``"server"``.
        scheme: ``"equivariant"`` or ``"sentinel"``.
        key_id: ``ObfuscationKey.id``, 16 hexadecimal digits.
        model_type: The configuration's ``model_type``, e.g. ``"bert"``.
        architecture: The stock class that loads the server folder, e.g. ``"BertForSequenceClassification"``.
        weights: :func:`weights_digest` of the server folder, in both manifests.
        labels: Label names in plain order; empty in a server's manifest.
        options: Further values of the scheme by name, scalars only.
    """

    role: Role
    scheme: str
    key_id: str
    model_type: str
    architecture: str
    weights: str
    labels: tuple[str, ...] = ()
    options: Mapping[str, Scalar] = field(default_factory=lambda: _NO_OPTIONS)

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))
        _check(self, "Manifest")

    def write(self, folder: str | Path) -> None:
        """Write ``privtensors.json`` into ``folder``."""
        entry = {"format": _FORMAT, "version": _VERSION} | {f.name: getattr(self, f.name) for f in fields(self)}
        entry["labels"], entry["options"] = list(self.labels), dict(self.options)
        (Path(folder) / MANIFEST_FILE).write_text(json.dumps(entry, indent=1), encoding="utf-8")

    @classmethod
    def read(cls, folder: str | Path, *, role: Role | None = None) -> Manifest:
        """Read the manifest of ``folder``, strictly.

        Args:
            folder: A client or server folder.
            role: What it must be; default either.

        Raises:
            FileFormatError: There is none (no converted folder, or an interrupted conversion), or it is truncated, has unknown
                fields or values out of bounds, or is of another version.
            UnpairedFolders: It is of the other role.
        """
        path = Path(folder) / MANIFEST_FILE
        entry = _parse(path)
        names = {f.name for f in fields(cls)}
        if set(entry) != names | {"format", "version"}:
            odd = sorted(set(entry) ^ (names | {"format", "version"}))
            raise FileFormatError(f"fields missing or unknown: {', '.join(map(ascii, odd[:5]))}", where=str(path))
        values = {name: entry[name] for name in names}
        if not isinstance(values["labels"], list) or not isinstance(values["options"], dict):
            raise FileFormatError("'labels' must be a list and 'options' an object", where=str(path))
        values["labels"] = tuple(values["labels"])
        _check_values(values, str(path))
        manifest = cls(**values)
        if role is not None and manifest.role != role:
            fix = "The client folder has the key and tokenizer, the server folder the weights"
            raise UnpairedFolders(f"is a {manifest.role} folder, not a {role} folder", where=str(folder), fix=fix)
        return manifest


def weights_digest(folder: str | Path) -> str:
    """SHA-256 over the names and contents of the ``*.safetensors`` files of a server folder, in hexadecimal digits.

    Raises:
        FileFormatError: There is none.
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise FileFormatError("holds no safetensors file", where=str(folder), fix="Convert again")
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            total.update(path.name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def check_weights(server: str | Path) -> Manifest:
    """The manifest of a server folder whose weights are those that were converted.

    Raises:
        FileFormatError: No manifest or no weights, or they were changed since.
        UnpairedFolders: It is a client folder.
    """
    manifest = Manifest.read(server, role="server")
    if weights_digest(server) != manifest.weights:
        raise FileFormatError("the weights are not those of the manifest", where=str(server), fix="Convert again, or copy the folder again")
    return manifest


def check_pair(client: str | Path, server: str | Path) -> tuple[Manifest, Manifest]:
    """The manifests of a client and a server folder that belong together.

    Returns:
        The client's and the server's manifest.

    Raises:
        UnpairedFolders: They come from different keys or conversions, or are given in the wrong order.
        FileFormatError: A manifest is missing or malformed.
    """
    mine, theirs = Manifest.read(client, role="client"), Manifest.read(server, role="server")
    for name in ("key_id", "scheme", "model_type", "architecture", "weights"):
        if getattr(mine, name) != getattr(theirs, name):
            values = f" ({getattr(mine, name)} and {getattr(theirs, name)})" if name != "weights" else ""
            fix = "Use the two folders of one conversion or of one rotation"
            raise UnpairedFolders(f"client and server disagree on {name}{values}", where=f"{client}, {server}", fix=fix)
    return mine, theirs


@contextlib.contextmanager
def write_folder(path: str | Path, *, overwrite: bool = False, private: bool = False) -> Iterator[Path]:
    """A folder to write into that takes its place at ``path`` only when the block ends without an error. See :func:`write_folders`."""
    with write_folders(path, overwrite=overwrite, private=(path,) if private else ()) as (folder,):
        yield folder


@contextlib.contextmanager
def write_folders(*paths: str | Path, overwrite: bool = False, private: tuple[str | Path, ...] = ()) -> Iterator[tuple[Path, ...]]:
    """Folders to write into that take their places together, when the block ends without an error and everything is on disk.

    Until then they are hidden siblings (``.NAME.….partial``) that are removed on an error. A process killed before the end leaves such a
    sibling and nothing at ``path``. Killed between the renames, at the very end, it can leave one folder new and one old:
    :func:`check_pair` finds that, and whatever is missing is whole in a sibling (``.partial`` new, ``.old`` old).

    Args:
        paths: Destinations, different from each other.
        overwrite: Replace folders that exist, as a whole; only folders with a manifest of ours, so that nothing else is lost by mistake.
        private: Those of ``paths`` that their owner alone may enter (mode 0700).

    Raises:
        ObfuscationError: A destination exists (without ``overwrite``), is no folder, lies in another or cannot be written.
    """
    places = [Path(os.path.abspath(path)) for path in paths]
    hidden = {Path(os.path.abspath(path)) for path in private}
    for place in places:
        _check_destination(place, places, overwrite)
    temporary: list[Path] = []
    try:
        for place in places:
            with _told(place):
                place.parent.mkdir(parents=True, exist_ok=True)
                sibling = _sibling(place, "partial")
                sibling.mkdir(mode=0o700 if place in hidden else 0o777)
            temporary.append(sibling)
        yield tuple(temporary)
        for sibling, place in zip(temporary, places, strict=True):
            with _told(place):
                _sync(sibling)
        for place in places:
            _check_destination(place, places, overwrite)  # somebody may have filled it meanwhile
        _move(temporary, places, overwrite)
    finally:
        for sibling in temporary:
            shutil.rmtree(sibling, ignore_errors=True)


def _sibling(place: Path, kind: str) -> Path:
    return place.with_name(f".{place.name}.{secrets.token_hex(8)}.{kind}")


def _check_destination(place: Path, places: list[Path], overwrite: bool) -> None:
    where = str(place)
    if places.count(place) > 1 or any(other != place and other in place.parents for other in places):
        raise ObfuscationError("client and server folders must lie apart", where=where, fix="Name two folders, neither inside the other")
    if place.is_symlink() or (place.exists() and not place.is_dir()):
        raise ObfuscationError("exists and is no folder", where=where, fix="Choose another name")
    if place.is_dir() and any(place.iterdir()):
        if not overwrite:
            raise ObfuscationError("the folder exists and is not empty", where=where, fix="Choose another, or allow overwriting")
        if not (place / MANIFEST_FILE).is_file():
            fix = "Choose another name, or remove it by hand"
            raise ObfuscationError("would overwrite a folder that is no converted model", where=where, fix=fix)


@contextlib.contextmanager
def _told(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ObfuscationError(f"the folder cannot be written: {error.strerror or type(error).__name__}", where=str(place)) from error


def _sync(folder: Path) -> None:
    """Everything in ``folder`` on disk: a rename must not outlive what it names."""
    for root, _, names in os.walk(folder):
        for name in [*names, "."]:
            number = os.open(os.path.join(root, name), os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(number)
            finally:
                os.close(number)


def _move(temporary: list[Path], places: list[Path], overwrite: bool) -> None:
    """All folders to their places, or none. What was there is removed last: until then a failure can put it back."""
    undo: list[tuple[Path, Path]] = []
    old: list[Path] = []
    try:
        for sibling, place in zip(temporary, places, strict=True):
            with _told(place):
                if overwrite and place.is_dir():
                    aside = _sibling(place, "old")
                    os.rename(place, aside)
                    undo.append((aside, place))
                    old.append(aside)
                os.rename(sibling, place)
                undo.append((place, sibling))
                _sync_names(place.parent)
    except BaseException:
        for now, before in reversed(undo):
            os.rename(now, before)
        raise
    for aside in old:
        shutil.rmtree(aside, ignore_errors=True)


def _sync_names(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _parse(path: Path) -> dict[str, Any]:
    where = str(path)
    try:
        with path.open("rb") as file:
            raw = file.read(_LARGEST_MANIFEST + 1)
    except OSError:
        fix = "Give a folder that `privtensors convert` wrote; an interrupted conversion leaves none"
        raise FileFormatError("the folder has no manifest", where=where, fix=fix) from None
    try:
        entry = json.loads(raw.decode()) if len(raw) <= _LARGEST_MANIFEST else None
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict) or entry.get("format") != _FORMAT:
        raise FileFormatError("is no manifest of a converted model, or is truncated", where=where, fix="Convert again")
    if type(entry.get("version")) is not int or entry["version"] != _VERSION:
        raise FileFormatError(
            "was written by another version of the format", where=where, fix="Use the version of privtensors that wrote it"
        )
    return entry


def _check(manifest: Manifest, where: str) -> None:
    _check_values({f.name: getattr(manifest, f.name) for f in fields(manifest)}, where)


def _check_values(values: dict[str, Any], where: str) -> None:
    """Types and bounds of every field."""
    texts = ("role", "scheme", "key_id", "model_type", "architecture", "weights")
    wrong = [name for name in texts if not isinstance(values[name], str) or len(values[name]) > 200]
    wrong += [] if all(isinstance(label, str) for label in values["labels"]) else ["labels"]
    scalar = all(isinstance(n, str) and isinstance(v, str | int | float) for n, v in values["options"].items())
    wrong += [] if scalar else ["options"]
    if not wrong:
        wrong += [] if values["role"] in ROLES else ["role"]
        wrong += [] if values["scheme"] in SCHEMES else ["scheme"]
        wrong += [] if _is_hexadecimal(values["key_id"], 16) else ["key_id"]
        wrong += [] if _is_hexadecimal(values["weights"], 64) else ["weights"]
        wrong += ["labels"] if values["role"] == "server" and values["labels"] else []
    if wrong:
        raise FileFormatError(f"malformed: {', '.join(wrong)}", where=where)


def _is_hexadecimal(text: str, digits: int) -> bool:
    return len(text) == digits and set(text) <= set("0123456789abcdef")
