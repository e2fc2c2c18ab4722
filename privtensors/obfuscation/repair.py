"""What a rotation that was killed while folders changed places left behind, put in order."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from privtensors.errors import FileFormatError, UnpairedFolders
from privtensors.obfuscation.folders import Manifest, check_pair, check_weights
from privtensors.obfuscation.keys import KEY_FILE


def repair(client: str | Path, server: str | Path) -> bool:
    """Complete a replacement of two folders that was killed between its renames.

    Each folder is then at its place, or whole in a hidden sibling (``.NAME.….partial`` or ``.NAME.….old``). The two that belong together
    are moved to their places. Folders that belong together stay. Either way the siblings are removed: keys may be in them.

    Returns:
        Whether anything was moved.

    Raises:
        UnpairedFolders, FileFormatError: The folders do not belong together, and nothing beside them does.
    """
    mine, theirs = (Path(os.path.abspath(path)) for path in (client, server))
    try:
        check_pair(mine, theirs)
    except (UnpairedFolders, FileFormatError):
        found = next(_pairs(mine, theirs), None)
        if found is None:
            raise
    else:
        _sweep(mine, theirs)
        return False
    for source, place in zip(found, (mine, theirs), strict=True):
        _move(source, place)
    check_pair(mine, theirs)
    _sweep(mine, theirs)
    return True


def _sweep(*places: Path) -> None:
    for left in (sibling for place in places for sibling in _hidden(place)):
        shutil.rmtree(left)


def _pairs(client: Path, server: Path) -> Iterator[tuple[Path, Path]]:
    for mine in (client, *_siblings(client)):
        for theirs in (server, *_siblings(server)):
            try:
                check_pair(mine, theirs)
                check_weights(theirs)
            except (UnpairedFolders, FileFormatError):
                continue
            if (mine / KEY_FILE).is_file():
                yield mine, theirs


def _siblings(place: Path) -> list[Path]:
    """Hidden folders of this place that were written to the end: their manifest is the last file."""
    return [path for path in _hidden(place) if _whole(path)]


def _hidden(place: Path) -> list[Path]:
    pattern = re.compile(re.escape(f".{place.name}.") + r"[0-9a-f]{16}\.(partial|old)")
    if not place.parent.is_dir():
        return []
    return sorted(path for path in place.parent.iterdir() if pattern.fullmatch(path.name))


def _whole(path: Path) -> bool:
    try:
        Manifest.read(path)
    except FileFormatError:
        return False
    return True


def _move(source: Path, place: Path) -> None:
    if source == place:
        return
    if place.exists():
        os.rename(place, place.with_name(f".{place.name}.{secrets.token_hex(8)}.old"))
    os.rename(source, place)
