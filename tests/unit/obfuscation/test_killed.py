"""Conversions and rotations killed at every point, as by a power cut: no half folder is ever loadable, and a pair works afterwards."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from privtensors.errors import FileFormatError, UnpairedFolders
from privtensors.obfuscation.convert import convert, load_client, rotate
from privtensors.obfuscation.folders import check_pair, check_weights
from privtensors.obfuscation.keys import ObfuscationKey
from tests import warm
from tests.unit.obfuscation.models import TEXTS, build

KEY = ObfuscationKey(bytes(range(7, 39)))
CONVERT = ("transform", "save_key", "write", "rename 1", "rename 2")
ROTATE = ("rekey", "save_key", "write", "rename 1", "rename 2", "rename 3", "rename 4")
UNTOUCHED = ROTATE[:4]


def kill_everywhere(folder: str) -> None:
    """In a process of its own: a child for each point, which kills itself there."""
    torch.set_num_threads(1)
    base, (model, tokenizer) = Path(folder), build("bert")
    convert(model, tokenizer, client=base / "client", server=base / "server", key=KEY)
    for action, points in (("convert", CONVERT), ("rotate", ROTATE)):
        for point in points:
            place = base / action / point
            place.mkdir(parents=True)
            if action == "rotate":
                shutil.copytree(base / "client", place / "client")
                shutil.copytree(base / "server", place / "server")
            child = os.fork()
            if not child:
                _die_at(point)
                if action == "rotate":
                    rotate(place / "client", place / "server")
                else:
                    convert(model, tokenizer, client=place / "client", server=place / "server")
                os._exit(3)
            assert os.waitpid(child, 0)[1] == signal.SIGKILL, (action, point)


def _die_at(point: str) -> None:
    from privtensors.obfuscation import convert as module

    def die(*_: Any, **__: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    if point == "write":
        module.Manifest.write = die  # type: ignore[method-assign]
    elif not point.startswith("rename"):
        setattr(module, point, die)
    else:
        rename, left = os.rename, [int(point.removeprefix("rename "))]

        def counted(source: Any, place: Any) -> None:
            left[0] -= 1
            if not left[0]:
                die()
            rename(source, place)

        os.rename = counted


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    code = f"from tests.unit.obfuscation.test_killed import kill_everywhere; kill_everywhere({str(folder)!r})"
    done = warm.run("-c", code, cwd=Path(__file__).resolve().parents[3])
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("point", CONVERT)
def test_a_killed_conversion_is_never_loadable_by_halves(point: str, killed: Path) -> None:
    client, server = killed / "convert" / point / "client", killed / "convert" / point / "server"
    assert not server.exists(), "the server's folder is the last to appear"
    with pytest.raises(OSError):
        AutoModelForSequenceClassification.from_pretrained(server)
    if point == "rename 2":
        load_client(client)  # whole: only the server's rename was missing
    else:
        with pytest.raises(FileFormatError, match="no manifest"):
            load_client(client)
    left = list(server.parent.glob(".*.partial"))
    assert left and all("server" in path.name or path.stat().st_mode & 0o077 == 0 for path in left), "the client's is its owner's alone"


@pytest.mark.parametrize("point", ROTATE)
def test_a_killed_rotation_leaves_a_working_pair(point: str, killed: Path) -> None:
    client, server = killed / "rotate" / point / "client", killed / "rotate" / point / "server"
    if point in UNTOUCHED:
        assert load_client(client).key == KEY
    else:
        with pytest.raises((UnpairedFolders, FileFormatError)):
            check_pair(client, server)
        assert rotate(client, server).finished and not list(client.parent.glob(".*"))
    _assert_works(client, server)
    before = load_client(client).key
    found = rotate(client, server)  # and once more, in the ordinary way
    assert not found.finished and load_client(client).key.id == found.key_id != before.id
    assert not list(client.parent.glob(".*")), "no hidden folder with a key stays, whole or not"
    _assert_works(client, server)


def test_folders_that_nothing_completes(killed: Path, tmp_path: Path) -> None:
    """Without the hidden sibling the error says what disagrees, and nothing is moved."""
    shutil.copytree(killed / "rotate" / "write", tmp_path / "pair")
    model, tokenizer = build("bert")
    convert(model, tokenizer, client=tmp_path / "pair" / "client", server=tmp_path / "other", overwrite=True)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    with pytest.raises(UnpairedFolders, match="disagree on key_id"):
        rotate(tmp_path / "pair" / "client", tmp_path / "pair" / "server")
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def _assert_works(client_folder: Path, server: Path) -> None:
    check_pair(client_folder, server)
    check_weights(server)
    model, tokenizer = build("bert")
    client, served = load_client(client_folder), AutoModelForSequenceClassification.from_pretrained(server)
    with torch.no_grad():
        plain = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
        answer = client.decode_logits(served(**client.tokenizer(TEXTS, padding=True, return_tensors="pt")).logits)
    torch.testing.assert_close(answer, plain, atol=1e-4, rtol=0)
