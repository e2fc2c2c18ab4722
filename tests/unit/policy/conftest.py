"""Toy techniques as an installed plugin: real entry points on the path."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from privtensors.core.registry import registry
from privtensors.policy import Technique
from tests.unit.policy import toys


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Register every toy under its name."""
    classes = [c for c in vars(toys).values() if isinstance(c, type) and issubclass(c, Technique) and "name" in vars(c)]
    folder = tmp_path / "toys-0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 0\n")
    lines = ["[privtensors.techniques]", *(f"{c.name} = tests.unit.policy.toys:{c.__name__}" for c in classes)]
    (folder / "entry_points.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.cache_clear()
    yield
    registry.cache_clear()
