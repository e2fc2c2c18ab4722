"""Client and server folders: whole or absent, with manifests that are read strictly and must pair up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from privtensors.errors import FileFormatError, ObfuscationError, UnpairedFolders
from privtensors.obfuscation.folders import (
    MANIFEST_FILE,
    Manifest,
    check_pair,
    check_weights,
    weights_digest,
    write_folder,
    write_folders,
)

CLIENT = Manifest("client", "equivariant", "0123456789abcdef", "bert", "BertModel", "a" * 64, labels=("yes", "no"), options={"size": 5})
SERVER = replace(CLIENT, role="server", labels=())


def folder(path: Path, manifest: Manifest) -> Path:
    path.mkdir()
    manifest.write(path)
    return path


def names(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir())


# Writing.


def test_a_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "out"
    with write_folder(place) as temporary:
        assert not place.exists() and temporary.parent == place.parent and temporary.name.startswith(".out.")
        (temporary / "sub").mkdir()
        (temporary / "sub" / "file").write_text("x")
    assert (place / "sub" / "file").read_text() == "x" and names(place.parent) == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), write_folders(tmp_path / "a", tmp_path / "b") as (a, _):
        (a / "file").write_text("x")
        raise error
    assert names(tmp_path) == []


def test_modes(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with write_folders(tmp_path / "client", tmp_path / "server", private=(tmp_path / "client",)):
            pass
    finally:
        os.umask(before)
    assert [(tmp_path / n).stat().st_mode & 0o777 for n in ("client", "server")] == [0o700, 0o755]


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with write_folder(tmp_path / "out") as temporary:
        (temporary / "file").touch()
    assert names(tmp_path / "out") == ["file"]


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "full")
    refused = (("full", False, "not empty"), ("full", True, "no converted"), ("file", True, "no folder"), ("link", True, "no folder"))
    for name, overwrite, why in refused:
        with pytest.raises(ObfuscationError, match=why), write_folder(tmp_path / name, overwrite=overwrite):
            raise AssertionError("must be refused before anything is computed")
    assert (tmp_path / "full" / "precious").exists() and names(tmp_path) == ["file", "full", "link"]


def test_one_folder_in_another_is_refused(tmp_path: Path) -> None:
    for second in (tmp_path / "a", tmp_path / "a" / "b", tmp_path / "x" / ".." / "a"):
        with pytest.raises(ObfuscationError, match="apart"), write_folders(tmp_path / "a", second):
            raise AssertionError
    assert names(tmp_path) == []


def test_overwriting_swaps_the_whole(tmp_path: Path) -> None:
    place = folder(tmp_path / "out", CLIENT)
    (place / "old").touch()
    with write_folder(place, overwrite=True) as temporary:
        assert (place / "old").exists(), "the old one stays until the end"
        SERVER.write(temporary)
    assert names(place) == [MANIFEST_FILE] and Manifest.read(place) == SERVER and names(tmp_path) == ["out"]


def test_an_error_keeps_what_was_to_be_overwritten(tmp_path: Path) -> None:
    place = folder(tmp_path / "out", CLIENT)
    with pytest.raises(ValueError, match="stop"), write_folder(place, overwrite=True):
        raise ValueError("stop")
    assert Manifest.read(place) == CLIENT and names(tmp_path) == ["out"]


@pytest.mark.parametrize("failing", ["client", "server"])
@pytest.mark.parametrize("present", [False, True])
def test_a_rename_that_fails_puts_everything_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, present: bool) -> None:
    """Else a rotation that fails half-way would lose the old key and have no server for the new one."""
    rename = os.rename
    if present:
        folder(tmp_path / "client", CLIENT), folder(tmp_path / "server", SERVER)

    def fails(source: Any, target: Any) -> None:
        if str(source).endswith(".partial") and Path(target).name == failing:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fails)
    with (
        pytest.raises(ObfuscationError, match="No space"),
        write_folders(tmp_path / "client", tmp_path / "server", overwrite=True) as (client, server),
    ):
        replace(CLIENT, key_id="f" * 16).write(client)
        replace(SERVER, key_id="f" * 16).write(server)
    assert names(tmp_path) == (["client", "server"] if present else [])
    assert not present or check_pair(tmp_path / "client", tmp_path / "server") == (CLIENT, SERVER)


def test_someone_else_was_faster(tmp_path: Path) -> None:
    with pytest.raises(ObfuscationError, match="not empty"), write_folder(tmp_path / "out") as temporary:
        (temporary / "mine").touch()
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").touch()
    assert names(tmp_path / "out") == ["theirs"] and names(tmp_path) == ["out"]


def test_what_appeared_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(ObfuscationError, match="no converted"), write_folder(tmp_path / "out", overwrite=True):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").touch()
    assert names(tmp_path / "out") == ["theirs"] and names(tmp_path) == ["out"]


def test_no_room_for_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ObfuscationError, match="cannot be written"), write_folder(tmp_path / "file" / "out"):
        pass


# A process that is killed.

KILLED = """
import os, sys
from pathlib import Path
from privtensors.obfuscation import folders
from privtensors.obfuscation.folders import Manifest, weights_digest, write_folders

place, point = Path(sys.argv[1]), sys.argv[2]
def reached(name):
    if name == point:
        (place / "reached").touch()
        os.kill(os.getpid(), 9)

sync, rename, moved = folders._sync, os.rename, []
def syncing(folder):
    reached("before sync"); sync(folder); reached("after sync")
def renaming(source, target):
    rename(source, target)
    if str(source).endswith(".partial"):
        moved.append(target); reached(f"after rename {len(moved)}")
folders._sync, os.rename = syncing, renaming

with write_folders(place / "client", place / "server", overwrite=True) as (client, server):
    reached("empty")
    (server / "config.json").write_text("{}")
    reached("config")
    (server / "model.safetensors").write_bytes(b"half")
    reached("half the weights")
    (server / "model.safetensors").write_bytes(b"all of it")
    digest = weights_digest(server)
    Manifest("server", "equivariant", "f" * 16, "bert", "BertModel", digest).write(server)
    reached("server")
    Manifest("client", "equivariant", "f" * 16, "bert", "BertModel", digest).write(client)
    reached("client")
reached("end")
"""
POINTS = ["empty", "config", "half the weights", "server", "client", "before sync", "after sync", "after rename 1", "end"]


@pytest.mark.parametrize("present", [False, True], ids=["new", "overwriting"])
def test_a_killed_conversion_leaves_no_half_folder(tmp_path: Path, present: bool) -> None:
    """At whichever point it dies: each place holds nothing, or the whole old folder, or the whole new one, and never a mixed pair."""
    for point in POINTS:
        root = tmp_path / point.replace(" ", "-")
        root.mkdir()
        if present:
            old = replace(SERVER, weights="b" * 64)
            folder(root / "server", old), folder(root / "client", replace(old, role="client"))
        ended = subprocess.run([sys.executable, "-c", KILLED, str(root), point], timeout=120, check=False)
        assert ended.returncode == -signal.SIGKILL and (root / "reached").exists(), point
        found = {name: _read(root / name) for name in ("client", "server")}
        if point == "end":
            check_pair(root / "client", root / "server")
            assert check_weights(root / "server").key_id == "f" * 16
        elif point == "after rename 1":
            assert found["client"] == "f" * 16 and found["server"] == (SERVER.key_id if present else "absent")
            with pytest.raises((UnpairedFolders, FileFormatError)):
                check_pair(root / "client", root / "server")
        else:
            assert set(found.values()) == {SERVER.key_id if present else "absent"}, point


def _read(place: Path) -> str:
    if not place.exists():
        with pytest.raises(FileFormatError, match="no manifest"):
            Manifest.read(place)
        return "absent"
    return Manifest.read(place).key_id


def test_what_a_kill_leaves_is_hidden_and_a_second_run_works(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), "half the weights"], timeout=120, check=False)
    assert all(name.startswith(".") for name in names(tmp_path) if name != "reached")
    with write_folder(tmp_path / "client"):
        pass
    assert (tmp_path / "client").is_dir()


def test_interrupting_cleans_up(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom privtensors.obfuscation.folders import write_folder\n"
        "with write_folder(Path(sys.argv[1]) / 'out') as t:\n (t / 'config.json').touch(); print('in', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None and process.stdout.readline() == b"in\n"
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    assert names(tmp_path) == []


# Manifests.


@pytest.mark.parametrize("manifest", [CLIENT, SERVER, replace(CLIENT, scheme="sentinel", options={"a": 1.5, "b": True, "c": "x"})])
def test_manifest_round_trip(tmp_path: Path, manifest: Manifest) -> None:
    assert Manifest.read(folder(tmp_path / "m", manifest)) == manifest
    assert Manifest.read(tmp_path / "m", role=manifest.role) == manifest


def test_manifest_is_frozen() -> None:
    with pytest.raises(AttributeError):
        CLIENT.role = "server"  # type: ignore[misc]
    with pytest.raises(TypeError):
        CLIENT.options["size"] = 6  # type: ignore[index]


CHANGES: list[dict[str, Any]] = [
    {"format": "x"}, {"version": 2}, {"version": "1"}, {"version": True}, {"role": "owner"}, {"role": 5}, {"role": "server"},
    {"scheme": "rot13"}, {"key_id": "0123"}, {"key_id": "g" * 16}, {"key_id": "A" * 16}, {"key_id": 5}, {"weights": "a" * 63},
    {"weights": None}, {"labels": "ab"}, {"labels": [1]}, {"labels": None}, {"options": []}, {"options": {"a": None}},
    {"options": {"a": [1]}}, {"model_type": 5}, {"model_type": "x" * 201}, {"extra": 1}, {"architecture": ...}, {"labels": ...},
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_malformed_manifest_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = folder(tmp_path / "m", CLIENT) / MANIFEST_FILE
    entry = {k: v for k, v in (json.loads(path.read_text()) | change).items() if v is not ...}
    path.write_text(json.dumps(entry))
    with pytest.raises(FileFormatError):
        Manifest.read(tmp_path / "m")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"\xff", b"[" * 50_000, b" " * (1 << 22) + b"{}"], ids=["empty", "list", "utf8", "deep", "large"]
)
def test_no_manifest(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST_FILE).write_bytes(content)
    with pytest.raises(FileFormatError):
        Manifest.read(tmp_path)


def test_truncation_at_every_byte(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", CLIENT) / MANIFEST_FILE
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FileFormatError):
            Manifest.read(tmp_path / "m")


def test_a_bad_manifest_is_not_made() -> None:
    for bad in ({"key_id": "x"}, {"role": "server"}, {"options": {"a": object()}}, {"labels": (1,)}):
        with pytest.raises(FileFormatError):
            replace(CLIENT, **bad)


# Pairs.


def test_a_pair(tmp_path: Path) -> None:
    client, server = folder(tmp_path / "c", CLIENT), folder(tmp_path / "s", SERVER)
    assert check_pair(client, server) == (CLIENT, SERVER)
    with pytest.raises(UnpairedFolders, match="not a client folder"):
        check_pair(server, client)
    with pytest.raises(UnpairedFolders, match="not a client folder"):
        check_pair(server, server)
    with pytest.raises(FileFormatError, match="no manifest"):
        check_pair(client, tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"key_id": "f" * 16}, {"scheme": "sentinel"}, {"model_type": "gpt2"}, {"architecture": "BertForMaskedLM"}, {"weights": "b" * 64}],
    ids=lambda c: next(iter(c)),
)
def test_a_mixed_pair(tmp_path: Path, change: dict[str, str]) -> None:
    client, server = folder(tmp_path / "c", CLIENT), folder(tmp_path / "s", replace(SERVER, **change))
    with pytest.raises(UnpairedFolders, match=f"disagree on {next(iter(change))}"):
        check_pair(client, server)


def _grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


@pytest.mark.parametrize(
    "change", [_grow, lambda p: p.rename(p.with_name("other.safetensors")), lambda p: (p.parent / "more.safetensors").touch()]
)
def test_changed_weights(tmp_path: Path, change: Callable[[Path], object]) -> None:
    server = tmp_path / "s"
    server.mkdir()
    with pytest.raises(FileFormatError, match="no safetensors"):
        weights_digest(server)
    (server / "model.safetensors").write_bytes(b"weights")
    replace(SERVER, weights=weights_digest(server)).write(server)
    assert check_weights(server).role == "server"
    change(server / "model.safetensors")
    with pytest.raises(FileFormatError, match="not those of the manifest"):
        check_weights(server)
