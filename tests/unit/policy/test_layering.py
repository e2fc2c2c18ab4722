"""The policy package knows no technique by name and imports no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import privtensors.policy
from privtensors.policy import resolve
from privtensors.policy.technique import registered

MODULES = sorted(Path(privtensors.policy.__file__).parent.glob("*.py"))


def docstrings(tree: ast.AST) -> set[int]:
    """Positions of string constants that stand as statements of their own."""
    return {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.name)
def test_knows_no_technique_by_name(path: Path) -> None:
    names = set(registered())
    classes = {resolve(name).__name__ for name in names}
    assert {"mpc", "clear"} <= names
    tree = ast.parse(path.read_text(encoding="utf-8"))
    ignored = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in ignored:
            assert node.value.lower() not in names, f"{path.name}:{node.lineno} names a technique"
        if isinstance(node, ast.Name | ast.alias):
            spelled = node.id if isinstance(node, ast.Name) else node.name
            assert spelled not in classes, f"{path.name}:{node.lineno} names a technique"
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[:2] in (
                ["privtensors", "policy"],
                ["privtensors", "errors"],
                ["privtensors", "core"],
            ) or (node.module or "").split(".")[0] != "privtensors", f"{path.name}:{node.lineno} imports {node.module}"


@pytest.mark.parametrize("module", ["privtensors.policy", "privtensors.backends.mpc.technique", "privtensors.backends.clear.technique"])
def test_imports_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'rich', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_building_and_explaining_needs_no_torch() -> None:
    code = (
        "import sys; from privtensors.policy import Policy; from privtensors.backends.mpc.technique import MPC; "
        "str(Policy(infer=[MPC()]).explain()); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
