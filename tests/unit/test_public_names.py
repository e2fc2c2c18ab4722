"""The names of ``privtensors`` itself: few, all there, and none loads what it does not need."""

from __future__ import annotations

import subprocess
import sys

import pytest

import privtensors
from privtensors.errors import MissingExtra


def test_there_are_few_and_every_one_is_there() -> None:
    names = privtensors.__all__
    assert len(names) == len(set(names)) < 25
    assert all(getattr(privtensors, name) is not None for name in names) and set(dir(privtensors)) == {*names, "__version__"}
    with pytest.raises(AttributeError, match="no_such_name"):
        privtensors.no_such_name  # noqa: B018


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "opacus", "rich", "sqlite3"}
    code = f"import sys, privtensors as pt; pt.DP, pt.Policy; print(*{heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []


def test_the_trainer_is_one_class_under_two_names(monkeypatch: pytest.MonkeyPatch) -> None:
    from privtensors.hf.trainer import DPTrainer

    assert privtensors.DPTrainer is privtensors.hf.DPTrainer is DPTrainer
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"privtensors\[hf,dp\]"):
        privtensors.DPTrainer  # noqa: B018
