"""The rules that ``tests/conftest.py`` puts on every test, tried on a small test file of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

TESTS = """
import os, platformdirs, pytest
from privtensors.testing.assets import SKIP_REASON

def test_bare_skip():
    pytest.skip("I do not feel like it")

@pytest.mark.skipif(True, reason="slow machine")
def test_marked_skip(): ...

def test_asset_skip():
    pytest.skip(f"{SKIP_REASON}: no network")

@pytest.mark.xfail(reason="known", raises=ValueError)
def test_known_failure():
    raise ValueError

def test_environment():
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    if os.name == "posix" and os.uname().sysname == "Linux":
        assert "pytest-" in platformdirs.user_data_dir("privtensors")
"""


def run(folder: Path, source: str) -> str:
    (folder / "test_sample.py").write_text(source, encoding="utf-8")
    plugins = ["-p", "tests.conftest", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *plugins, "-q", "-rfsx", "--rootdir", str(folder), str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120).stdout


def test_only_require_asset_may_skip(tmp_path: Path) -> None:
    out = run(tmp_path, TESTS)
    assert "1 failed, 1 passed, 1 skipped, 1 xfailed, 1 error" in out, out  # a marked skip ends in the set-up: an error
    assert "only require_asset may skip" in out and "I do not feel like it" in out and "slow machine" in out


@pytest.mark.parametrize("line", ["pytest.importorskip('no_such_module')", "pytest.skip('all of it', allow_module_level=True)"])
def test_a_file_may_not_skip_itself(tmp_path: Path, line: str) -> None:
    out = run(tmp_path, f"import pytest\n{line}\ndef test_it(): ...\n")
    assert "only require_asset may skip" in out and "1 error" in out, out
