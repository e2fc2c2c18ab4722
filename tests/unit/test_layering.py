"""The house keeps its shape: which module may import which, what no module may hold, how long a file may be.

Imports are read from the source, so one inside a function or under TYPE_CHECKING counts too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "privtensors"
LONGEST_FILE = 400

# Packages of one row are peers and do not import each other; a row may import the rows above it.
LAYERS = (
    ("errors",),
    ("core",),
    ("policy", "accounting", "transport"),
    ("backends", "obfuscation"),
    ("bridges",),
    ("train",),
    ("hf",),
    ("deploy",),
    ("plan", "audit", "report"),
    ("cli",),
)
RANK = {name: rank for rank, row in enumerate(LAYERS) for name in row}
# The demo needs the real model and reviews; that is the only door from the program into `testing`.
DEMO_DOOR = "privtensors.testing.assets"
TORCH_FREE = ("policy", "accounting", "report")
HEAVY = ("torch", "torchvision", "transformers")
MUTABLE_MAKERS = {"list", "dict", "set", "bytearray", "defaultdict", "OrderedDict", "Counter", "deque", "WeakKeyDictionary",
                  "WeakValueDictionary", "WeakSet", "Lock", "RLock", "local"}  # fmt: skip
MUTATORS = {"append", "appendleft", "extend", "insert", "add", "update", "setdefault", "pop", "popitem", "remove", "discard", "clear"}


def names_of(path: Path) -> str:
    """The dotted name of a file of the package."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imported(tree: ast.AST, module: str, *, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything a source imports; ``from x import y`` counts as ``x.y``, which covers a submodule y."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".") if is_package else module.split(".")[:-1]
            stem = base[: len(base) - node.level + 1] if node.level else []
            origin = ".".join([*stem, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id if isinstance(node.func, ast.Name) else ""
            if called in ("import_module", "__import__"):
                yield node.lineno, node.args[0].value


def area(module: str) -> str:
    """The part of the house a dotted name belongs to: "" for the package itself, else its first folder or file."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def wrong_arrow(module: str, target: str) -> str | None:
    """Why ``module`` may not import ``target`` (both dotted, inside privtensors); None when it may."""
    mine, theirs = area(module), area(target)
    if mine == "testing":
        return "testing imports anything but cli" if theirs == "cli" else None
    if theirs == "testing":
        if mine == "cli" and (target + ".").startswith((DEMO_DOOR + ".", DEMO_DOOR + "_")):
            return None
        return "nothing but tests and testing imports testing"
    if mine in ("", "__main__"):  # the front door re-exports, lazily; it has no layer of its own
        return None
    if mine not in RANK:
        return f"privtensors.{mine} is not in the design: give it a layer in LAYERS first"
    if theirs not in RANK:  # "from privtensors import reveal"
        return None if mine == "cli" else "only cli imports from the front door; import the module that defines it"
    if mine == theirs:
        if mine == "backends" and len(target.split(".")) > 2 and module.split(".")[2:3] != target.split(".")[2:3]:
            return "backends never import each other"
        return None
    if RANK[theirs] >= RANK[mine]:
        return f"{mine} may not import {theirs}: arrows go {' <- '.join('/'.join(row) for row in LAYERS)}"
    return None


def wants_no_torch(module: str) -> bool:
    parts = module.split(".")
    return area(module) in TORCH_FREE or parts[-1] == "technique"


def import_faults(source: str, module: str, *, is_package: bool = False) -> list[str]:
    faults = []
    for line, target in imported(ast.parse(source), module, is_package=is_package):
        top = target.split(".")[0]
        why = wrong_arrow(module, target) if top == "privtensors" else None
        if top in HEAVY and wants_no_torch(module):
            why = f"{module} imports no {top}"
        if why:
            faults.append(f"{module}:{line} imports {target}: {why}")
    return faults


def _module_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With | ast.For | ast.While):
            yield from _module_level(node.body)
            yield from _module_level(getattr(node, "orelse", []))
            yield from _module_level(getattr(node, "finalbody", []))
            for handler in getattr(node, "handlers", []):
                yield from _module_level(handler.body)


def _assigned(node: ast.stmt) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [leaf.id for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)]


def _is_mutable(value: ast.expr | None) -> bool:
    if isinstance(value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp):
        return True
    if isinstance(value, ast.Call):
        called = value.func.attr if isinstance(value.func, ast.Attribute) else value.func.id if isinstance(value.func, ast.Name) else ""
        return called in MUTABLE_MAKERS
    return isinstance(value, ast.BinOp) and (_is_mutable(value.left) or _is_mutable(value.right))


def _calls(value: ast.expr | None, name: str) -> bool:
    return isinstance(value, ast.Call) and name in (getattr(value.func, "id", ""), getattr(value.func, "attr", ""))


def _is_final(node: ast.stmt) -> bool:
    if not isinstance(node, ast.AnnAssign):
        return False
    annotation = node.annotation.value if isinstance(node.annotation, ast.Subscript) else node.annotation
    return (getattr(annotation, "id", "") or getattr(annotation, "attr", "")) == "Final"


def state_faults(source: str, module: str) -> list[str]:
    """Module-level mutable state.

    A container bound at module level needs ``Final`` (``__all__`` apart), and no function may change it. ``global`` is refused.
    The one ContextVar lives in core.session.
    """
    tree = ast.parse(source)
    faults = []
    held = set()
    for node in _module_level(tree.body):
        for name in _assigned(node):
            value = getattr(node, "value", None)
            if _calls(value, "ContextVar") and module != "privtensors.core.session":
                faults.append(f"{module}:{node.lineno} {name}: the one ContextVar is in core.session")
            if _is_mutable(value):
                held.add(name)
                if name != "__all__" and not _is_final(node):
                    faults.append(f"{module}:{node.lineno} {name} is mutable module state: annotate it Final or freeze it")
    for function in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
        own = {a.arg for a in ast.walk(function.args) if isinstance(a, ast.arg)}
        own |= {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        for node in ast.walk(function):
            if isinstance(node, ast.Global):
                faults.append(f"{module}:{node.lineno} global {', '.join(node.names)}: no module state")
            changed: ast.expr | None = None
            if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
                changed = node.value
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
                changed = node.func.value
            if isinstance(changed, ast.Name) and changed.id in held - own:
                faults.append(f"{module}:{node.lineno} changes {changed.id}: no module state")
    return faults


def file_faults(path: Path, lines: int) -> list[str]:
    faults = [f"{path} has {lines} lines, more than {LONGEST_FILE}"] if lines > LONGEST_FILE else []
    return [*faults, f"{path}: no module is called utils"] if path.stem in ("utils", "util", "helpers") else faults


def technique_names() -> set[str]:
    """Every technique of the design; the policy engine must work without knowing one."""
    return {"DP", "MPC", "HE", "HybridHE", "TFHE", "Federated", "Split", "Obfuscation", "Clear", "mpc", "he", "dp", "clear", "federated"}


def policy_faults(source: str, module: str) -> list[str]:
    """Names or string constants in the policy engine that are a technique's (docstrings may speak of them)."""
    tree = ast.parse(source)
    documented = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    faults = []
    for node in ast.walk(tree):
        constant = node.value if isinstance(node, ast.Constant) and id(node) not in documented else None
        word = node.id if isinstance(node, ast.Name) else constant
        if isinstance(word, str) and word in technique_names():
            faults.append(f"{module}:{node.lineno} names the technique {word}")
    return faults


# The package as it stands.


def test_something_is_read() -> None:
    read = {names_of(path) for path in modules()}
    assert {"privtensors", "privtensors.errors", "privtensors.core.recorder"} <= read


def test_every_folder_is_a_package() -> None:
    # A folder without __init__.py works in a checkout and is missing from what pip installs.
    assert not [str(folder) for folder in {path.parent for path in modules()} if not (folder / "__init__.py").is_file()]


@pytest.mark.parametrize("path", modules(), ids=names_of)
def test_module_keeps_to_the_house(path: Path) -> None:
    source, module = path.read_text(encoding="utf-8"), names_of(path)
    faults = import_faults(source, module, is_package=path.name == "__init__.py")
    faults += state_faults(source, module)
    faults += file_faults(path, len(source.splitlines()))
    if area(module) == "policy":
        faults += policy_faults(source, module)
    assert not faults, "\n".join(faults)


# The check itself can fail.


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("privtensors.core.dispatch", "from privtensors.backends.mpc import protocol"),
        ("privtensors.core.dispatch", "def f():\n    import privtensors.policy.explain"),
        ("privtensors.core.dispatch", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from privtensors.hf import wrap"),
        ("privtensors.core.dispatch", "from ..backends import mpc"),
        ("privtensors.core.dispatch", "import importlib\nimportlib.import_module('privtensors.cli')"),
        ("privtensors.core.dispatch", "from privtensors import backends"),
        ("privtensors.core.dispatch", "from privtensors import reveal"),
        ("privtensors.errors", "from privtensors.core import meter"),
        ("privtensors.policy.policy", "from privtensors.accounting import ledger"),
        ("privtensors.policy.policy", "import torch"),
        ("privtensors.report.card", "def f():\n    from torch import nn"),
        ("privtensors.accounting.ledger", "import torch.nn"),
        ("privtensors.backends.mpc.technique", "import torch"),
        ("privtensors.backends.mpc.backend", "from privtensors.backends.clear import backend"),
        ("privtensors.backends.mpc.backend", "from ..clear.backend import ClearBackend"),
        ("privtensors.backends.mpc.backend", "from privtensors.bridges import clear_mpc"),
        ("privtensors.backends.mpc.backend", "from privtensors.obfuscation import keys"),
        ("privtensors.hf.wrap", "from privtensors.testing import suites"),
        ("privtensors.hf.wrap", "from privtensors.testing.assets import fetch"),
        ("privtensors.cli.demo", "from privtensors.testing import BackendSuite"),
        ("privtensors.cli.demo", "from privtensors.testing.suites import BackendSuite"),
        ("privtensors.testing.suites", "from privtensors.cli import main"),
        ("privtensors.plan.cost", "from privtensors.audit import attack"),
        ("privtensors.hf.wrap", "from privtensors.deploy import client"),
        ("privtensors.deploy.server", "from privtensors.cli import serve"),
        ("privtensors.newcomer", "import privtensors.errors"),
        ("privtensors", "from privtensors.testing import assets"),
    ],
)
def test_wrong_import_is_caught(module: str, source: str) -> None:
    assert import_faults(source, module, is_package=module == "privtensors")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("privtensors.core.dispatch", "import torch\nfrom privtensors.errors import RoutingError\nfrom .kernel import Kernel"),
        ("privtensors.policy.policy", "from privtensors.core.recorder import Recorder"),
        ("privtensors.backends.mpc.backend", "from privtensors.backends.mpc import protocol\nfrom privtensors.transport import memory"),
        ("privtensors.bridges.clear_mpc", "from privtensors.backends.mpc.backend import MPCBackend"),
        ("privtensors.cli.demo", "from privtensors.testing.assets import minilm_path\nfrom privtensors import reveal"),
        ("privtensors.testing.suites", "from privtensors.backends.mpc.backend import MPCBackend\nimport torch"),
        ("privtensors.backends.mpc.technique", "from privtensors.policy.technique import Technique"),
    ],
)
def test_right_import_passes(module: str, source: str) -> None:
    assert import_faults(source, module) == []


@pytest.mark.parametrize(
    "source",
    [
        "CACHE = {}",
        "cache: dict[str, int] = dict()",
        "if True:\n    SEEN = set()",
        "try:\n    import x\nexcept ImportError:\n    MISSING = []",
        "TABLE = [1] + [2]",
        "from collections import defaultdict\nCOUNTS = defaultdict(int)",
        "from contextvars import ContextVar\n_NOW = ContextVar('now')",
        "from typing import Final\nTABLE: Final = {}\ndef register(key, value):\n    TABLE[key] = value",
        "from typing import Final\nTABLE: Final = []\ndef register(value):\n    TABLE.append(value)",
        "COUNT = 0\ndef more():\n    global COUNT\n    COUNT += 1",
    ],
)
def test_module_state_is_caught(source: str) -> None:
    assert state_faults(source, "privtensors.core.kernel")


@pytest.mark.parametrize(
    "source",
    [
        "__all__ = ['a']",
        "from typing import Final\nTABLE: Final[dict[str, int]] = {'a': 1}",
        "from types import MappingProxyType\nTABLE = MappingProxyType({'a': 1})",
        "NAMES = ('a', 'b')\nKINDS = frozenset({'a'})",
        "def f():\n    seen = []\n    seen.append(1)\n    return seen",
        "class A:\n    def __init__(self):\n        self.rows = []",
        "from typing import Final\nTABLE: Final = {}\ndef f(TABLE):\n    TABLE['x'] = 1",
    ],
)
def test_frozen_module_passes(source: str) -> None:
    assert state_faults(source, "privtensors.core.kernel") == []


def test_long_file_and_utils_are_caught() -> None:
    assert file_faults(Path("privtensors/core/io.py"), 401)
    assert file_faults(Path("privtensors/core/utils.py"), 1)
    assert not file_faults(Path("privtensors/core/io.py"), 400)


def test_technique_named_in_policy_is_caught() -> None:
    assert policy_faults("if technique.name == 'mpc':\n    pass", "privtensors.policy.policy")
    assert policy_faults("def f():\n    return MPC()", "privtensors.policy.policy")
    assert not policy_faults('"""MPC and DP compose."""\nname = "multi"', "privtensors.policy.policy")
