"""Unpacking hostile archives: nothing is written outside the folder, and each trick is named."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from privtensors.errors import AssetRefused
from privtensors.testing.assets_archive import unpack


def tarball(*members: tarfile.TarInfo, content: bytes = b"x") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for member in members:
            member.size = len(content) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(content) if member.isreg() else None)
    return buffer.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def zipped(name: str, mode: int = stat.S_IFREG | 0o644, content: bytes = b"x") -> bytes:
    buffer = io.BytesIO()
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(info, content)
    return buffer.getvalue()


def debian(data: bytes) -> bytes:
    def member(name: str, content: bytes) -> bytes:
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        return header + content + b"\n" * (len(content) % 2)

    return b"!<arch>\n" + member("debian-binary", b"2.0\n") + member("control.tar.xz", b"odd") + member("data.tar.gz", data)


def put(tmp_path: Path, name: str, raw: bytes) -> tuple[Path, Path]:
    archive, into = tmp_path / name, tmp_path / "inside" / "folder"
    archive.write_bytes(raw)
    into.mkdir(parents=True)
    return archive, into


OUTSIDE = ["/etc/evil", "../evil", "a/../../evil", "..", "C:/evil", "C:evil", "a\\..\\..\\evil"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("kind", ["zip", "tar", "deb"])
@pytest.mark.parametrize("root", ["", "wanted"])
def test_path_traversal_is_refused(tmp_path: Path, name: str, kind: str, root: str) -> None:
    if kind == "zip":
        archive, into = put(tmp_path, "a.whl", zipped(name))
    elif kind == "tar":
        archive, into = put(tmp_path, "a.tgz", tarball(entry(name)))
    else:
        archive, into = put(tmp_path, "a.deb", debian(tarball(entry(name))))
    with pytest.raises(AssetRefused, match="leaves the folder"):
        unpack(archive, into, limit_bytes=100, root=root)
    assert list(into.iterdir()) == [] and not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize(
    "raw",
    [
        tarball(entry("link", tarfile.SYMTYPE, "/etc/passwd")),
        tarball(entry("link", tarfile.LNKTYPE, "other")),
        tarball(entry("pipe", tarfile.FIFOTYPE)),
        tarball(entry("disk", tarfile.BLKTYPE)),
        tarball(entry("out", tarfile.SYMTYPE, ".."), entry("out/evil")),
    ],
)
def test_link_or_device_in_a_tarball_is_refused(tmp_path: Path, raw: bytes) -> None:
    archive, into = put(tmp_path, "a.tgz", raw)
    with pytest.raises(AssetRefused, match="link or a device"):
        unpack(archive, into, limit_bytes=100)
    assert list(into.iterdir()) == []


def test_link_in_a_wheel_is_refused(tmp_path: Path) -> None:
    archive, into = put(tmp_path, "a.whl", zipped("link", stat.S_IFLNK | 0o777, b"/etc/passwd"))
    with pytest.raises(AssetRefused, match="link or a device"):
        unpack(archive, into, limit_bytes=100)


def test_bomb_stops_at_the_limit(tmp_path: Path) -> None:
    archive, into = put(tmp_path, "a.tgz", tarball(entry("big"), content=bytes(10_000_000)))
    assert archive.stat().st_size < 100_000
    with pytest.raises(AssetRefused, match="more than 5000000 bytes"):
        unpack(archive, into, limit_bytes=5_000_000)
    assert sum(p.stat().st_size for p in into.rglob("*")) <= 5_000_000


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    archive, into = put(tmp_path, "a.tgz", tarball(entry("a"), entry("a")))
    with pytest.raises(AssetRefused, match="FileExistsError"):
        unpack(archive, into, limit_bytes=100)


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("a.whl", b"no archive"),
        ("a.whl", zipped("a")[:-10]),
        ("a.whl", zipped("a", content=b"abcd").replace(b"abcd", b"abce")),
        ("a.tgz", b"no archive"),
        ("a.tgz", tarball(entry("a"), content=bytes(5000))[:-40]),
        ("a.tgz", gzip.compress(b"no tarball")),
        ("a.deb", b"no archive"),
        ("a.deb", b"!<arch>\n" + b"short"),
        ("a.deb", debian(b"no tarball")),
        ("a.deb", debian(tarball(entry("a"), content=bytes(range(256)) * 20))[:-60]),
    ],
)
def test_broken_archive_is_refused(tmp_path: Path, name: str, raw: bytes) -> None:
    archive, into = put(tmp_path, name, raw)
    with pytest.raises(AssetRefused, match=r"a\.(whl|tgz|deb): the archive is refused"):
        unpack(archive, into, limit_bytes=10_000)


def test_nothing_wanted_inside_is_an_error(tmp_path: Path) -> None:
    archive, into = put(tmp_path, "a.whl", zipped("other/file"))
    with pytest.raises(AssetRefused, match="nothing in it matches wanted"):
        unpack(archive, into, limit_bytes=100, root="wanted", keep=("data/",))


@pytest.mark.parametrize("name", ["a.whl", "a.tgz", "a.deb"])
def test_good_archive_is_unpacked_without_permissions(tmp_path: Path, name: str) -> None:
    tar = tarball(entry("top", tarfile.DIRTYPE), entry("top/data/file"), entry("top/code/file"), entry("README"), content=b"good")
    raw = {"a.whl": zipped("top/data/file", stat.S_IFREG | 0o4777, b"good"), "a.tgz": tar, "a.deb": debian(tar)}[name]
    archive, into = put(tmp_path, name, raw)
    unpack(archive, into, limit_bytes=4, root="top", keep=("data/",))
    assert [str(p.relative_to(into)) for p in into.rglob("*") if p.is_file()] == ["data/file"]
    assert (into / "data/file").read_bytes() == b"good"
    assert (into / "data/file").stat().st_mode & 0o7111 == 0
