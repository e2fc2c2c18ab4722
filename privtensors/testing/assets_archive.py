"""Unpacking an archive that nobody here has written, without letting it write anywhere but into one folder."""

from __future__ import annotations

import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from privtensors.errors import AssetRefused

_CHUNK = 1 << 20
_MOST_MEMBERS = 100_000
_DEB_MAGIC = b"!<arch>\n"


def unpack(archive: Path, into: Path, *, limit_bytes: int, root: str = "", keep: tuple[str, ...] = ()) -> None:
    """Unpack a wheel, a tarball or a Debian package into an empty folder.

    Only regular files and folders are accepted. An absolute path, a ``..``, a link, a device, two members of one name or more
    than ``limit_bytes`` of content ends the unpacking, whether or not the member would be kept. Permissions of members are ignored.

    Args:
        archive: The file; its kind is read from its name (``.whl .tar.gz .tgz .deb``).
        into: An existing empty folder.
        limit_bytes: Largest total of the files kept.
        root: Folder inside the archive; members outside it are checked but not written, and it is stripped from the rest.
        keep: Prefixes below ``root`` to write; empty means all.

    Raises:
        AssetRefused: The archive is malformed, dangerous, too large, or holds nothing of what was asked for.
    """
    spent = 0
    try:
        with _members(archive) as members:
            for count, (name, source) in enumerate(members):
                if count >= _MOST_MEMBERS:
                    raise _refuse(archive, f"it has more than {_MOST_MEMBERS} members")
                target = _wanted(_safe(archive, name), root, keep)
                if target is None:
                    continue
                place = into / target
                place.parent.mkdir(parents=True, exist_ok=True)
                with place.open("xb") as sink:
                    while chunk := source.read(_CHUNK):
                        spent += len(chunk)
                        if spent > limit_bytes:
                            raise _refuse(archive, f"it unpacks to more than {limit_bytes} bytes")
                        sink.write(chunk)
    except (zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError, NotImplementedError) as error:
        raise _refuse(archive, f"it cannot be read ({type(error).__name__}: {error})") from error
    if not any(into.iterdir()):
        raise _refuse(archive, f"nothing in it matches {root or 'the whole archive'} {list(keep) or ''}".rstrip())


def _refuse(archive: Path, why: str) -> AssetRefused:
    return AssetRefused(f"the archive is refused: {why}", where=archive.name, fix="Report it; do not unpack it by hand")


def _safe(archive: Path, name: str) -> PurePosixPath:
    """The member's path, if it stays inside the folder on every system."""
    path = PurePosixPath(name)
    if not name or "\\" in name or "\0" in name or ":" in str(path).split("/")[0] or path.is_absolute() or ".." in path.parts:
        raise _refuse(archive, f"a member leaves the folder: {name[:80]!r}")
    return path


def _wanted(path: PurePosixPath, root: str, keep: tuple[str, ...]) -> PurePosixPath | None:
    if root:
        if not path.is_relative_to(root):
            return None
        path = path.relative_to(root)
    return path if not keep or any(str(path).startswith(prefix) for prefix in keep) else None


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[tuple[str, IO[bytes]]]]:
    """Name and content of every regular file in the archive, in order; anything that is no file or folder is refused."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            yield _zip_members(archive, wheel)
    elif archive.suffix == ".deb":
        with archive.open("rb") as raw, tarfile.open(fileobj=_deb_data(archive, raw), mode="r|*") as tar:
            yield _tar_members(archive, tar)
    else:
        with tarfile.open(archive, mode="r|gz") as tar:
            yield _tar_members(archive, tar)


def _zip_members(archive: Path, wheel: zipfile.ZipFile) -> Iterator[tuple[str, IO[bytes]]]:
    for info in wheel.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _refuse(archive, f"a member is a link or a device: {info.filename[:80]!r}")
        if info.is_dir():
            _safe(archive, info.filename)
            continue
        with wheel.open(info) as source:
            yield info.filename, source


def _tar_members(archive: Path, tar: tarfile.TarFile) -> Iterator[tuple[str, IO[bytes]]]:
    for info in tar:
        if info.isdir():
            _safe(archive, info.name)
            continue
        source = tar.extractfile(info) if info.isreg() else None
        if source is None:
            raise _refuse(archive, f"a member is a link or a device: {info.name[:80]!r}")
        with source:
            yield info.name, source


def _deb_data(archive: Path, raw: IO[bytes]) -> IO[bytes]:
    """The file, standing at the start of ``data.tar.*``: a Debian package is an ar archive with 60-byte headers."""
    if raw.read(len(_DEB_MAGIC)) != _DEB_MAGIC:
        raise _refuse(archive, "it is no Debian package")
    while len(header := raw.read(60)) == 60:
        name, size = header[:16].decode("ascii", "replace").strip().rstrip("/"), header[48:58].decode("ascii", "replace").strip()
        if not size.isdigit():
            break
        if name.startswith("data.tar"):
            return raw
        raw.seek(int(size) + int(size) % 2, 1)
    raise _refuse(archive, "it holds no data.tar")
