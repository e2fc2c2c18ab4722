"""plugins/crypten without CrypTen: what it sends to whom, what it refuses, its stand-ins and its set-up."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from privtensors_crypten import home
from privtensors_crypten.backend import SCALE, CrypTenBackend
from privtensors_crypten.kernels import KERNELS
from privtensors_crypten.payload import Held
from privtensors_crypten.technique import CrypTen
from privtensors_crypten.worker import standins
from privtensors_crypten.workers import Reply, Workers
from typer.testing import CliRunner

import privtensors as pt
from privtensors.cli.app import app
from privtensors.core.meter import Meter
from privtensors.core.optable import BY_NAME
from privtensors.errors import AssetUnavailable, FileFormatError, InvalidInput, MissingExtra, OutOfRange, TransportError, UnsupportedOp


class Recording(Workers):
    """Keeps what each party would receive, and answers with the shape ``shape``."""

    def __init__(self) -> None:
        super().__init__("TTP")
        self.shape: list[int] = []
        self.seen: list[tuple[dict[str, Any], list[dict[str, torch.Tensor]]]] = []

    def request(self, header: Any, tensors: Any = ({}, {})) -> Reply:
        self.seen.append((dict(header), [dict(part) for part in tensors]))
        answer = {"ok": True, "scale": SCALE, "shapes": [self.shape]}
        return Reply((answer, answer), ({}, {}), 0, 0, 0)


@pytest.fixture
def backend() -> CrypTenBackend:
    return CrypTenBackend(CrypTen(), Meter(), workers=Recording())


def run(backend: CrypTenBackend, row: str, kinds: str, *args: Any, **kwargs: Any) -> Any:
    return KERNELS[row, kinds].run(backend, *args, **kwargs)


# --- what the parties get ----------------------------------------------------------------------------------------------------


def test_each_party_gets_one_uniform_share(backend: CrypTenBackend) -> None:
    value = torch.full((4000,), 1.5)
    backend.protect(value, owner="client")
    _, (first, second) = backend.workers.seen[-1]  # type: ignore[attr-defined]
    assert torch.equal(first["share"] + second["share"], (value.double() * SCALE).long())
    for part in (first, second):
        assert set(part) == {"share"} and part["share"].unique().numel() == 4000
        assert abs(float((part["share"] < 0).double().mean()) - 0.5) < 0.05, "the top bit of a share is a fair coin"


def test_two_shares_of_one_value_differ(backend: CrypTenBackend) -> None:
    for _ in range(2):
        backend.protect(torch.ones(8), owner="client")
    (_, (a, _)), (_, (b, _)) = backend.workers.seen  # type: ignore[attr-defined]
    assert not (a["share"] == b["share"]).any()


def test_a_request_names_values_and_holds_none(backend: CrypTenBackend) -> None:
    x, w = backend.hold((2, 3), torch.float32), torch.eye(3)
    backend.workers.shape = [2, 3]  # type: ignore[attr-defined]
    out = run(backend, "mm", "YP", x, w)
    header, tensors = backend.workers.seen[-1]  # type: ignore[attr-defined]
    assert header["row"] == "mm" and header["args"] == [{"held": x.number}, {"tensor": "public0"}] and header["out"] == [out.number]
    assert out.shape == (2, 3) and torch.equal(tensors[0]["public0"], w.double())
    assert repr(x) == "Held(shape=(2, 3), dtype=torch.float32)"


def test_a_value_nobody_holds_is_forgotten(backend: CrypTenBackend) -> None:
    x = backend.hold((2,), torch.float32)
    number = x.number
    assert number not in backend.workers.forgotten
    del x
    assert number in backend.workers.forgotten


# --- what is refused, before any party hears of it ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "kinds", "args", "error"),
    [
        ("mm", "YP", (torch.ones(2, 2),), InvalidInput),
        ("add", "YP", (torch.tensor(float("nan")),), OutOfRange),
        ("add", "Y", (float("-inf"),), OutOfRange),
        ("mul", "YP", (torch.tensor(2.0**20),), OutOfRange),
        ("div", "Y", (0,), InvalidInput),
        ("div", "YP", (torch.zeros(3),), InvalidInput),
        ("pow", "Y", (5,), UnsupportedOp),
        ("pow", "Y", (0.5,), UnsupportedOp),
        ("softmax", "Y", (5,), InvalidInput),
        ("index_select", "YP", (0, torch.tensor([0.5])), InvalidInput),
        ("index_select", "YP", (0, torch.tensor([2])), InvalidInput),
        ("gather", "YP", (1, torch.tensor([[3]])), InvalidInput),
        ("index", "YP", ([torch.tensor([-3])],), InvalidInput),
        ("index", "YP", ([torch.tensor([True])],), InvalidInput),
        ("adaptive_avg_pool2d", "Y", ([2, 2],), UnsupportedOp),
    ],
)
def test_refused(backend: CrypTenBackend, row: str, kinds: str, args: tuple[Any, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        run(backend, row, kinds, backend.hold((2, 3), torch.float32), *args)
    assert not backend.workers.seen  # type: ignore[attr-defined]


def test_a_result_of_another_shape_ends_the_parties(backend: CrypTenBackend) -> None:
    with pytest.raises(TransportError, match="another shape"):
        run(backend, "relu", "Y", backend.hold((2, 3), torch.float32))
    assert backend.workers._broken


def test_truth_values_are_no_numbers(backend: CrypTenBackend) -> None:
    truth = backend.hold((3,), torch.bool)
    for row, kinds, args in (("relu", "Y", ()), ("add", "YY", (truth,)), ("mul", "YY", (truth,)), ("sum", "Y", ())):
        with pytest.raises((UnsupportedOp, InvalidInput)):
            run(backend, row, kinds, truth, *args)


@pytest.mark.parametrize("bad", [torch.arange(3), torch.tensor([2.0**18]), torch.zeros(2, dtype=torch.float16)])
def test_protect_refuses(backend: CrypTenBackend, bad: torch.Tensor) -> None:
    with pytest.raises(InvalidInput):
        backend.protect(bad, owner="client")


def test_restore_refuses_parts_that_disagree(backend: CrypTenBackend) -> None:
    text = {"scale": str(SCALE), "dtype": "float32", "shape": "2"}
    good = ({"share": torch.zeros(2, dtype=torch.int64)}, text)
    assert isinstance(backend.restore({"party0": good, "party1": good}), Held)
    for bad in (
        {"party0": good},
        {"party0": good, "party1": ({"share": torch.zeros(3, dtype=torch.int64)}, text)},
        {"party0": good, "party1": ({"share": torch.zeros(2)}, text)},
        {"party0": good, "party1": ({}, text)},
        {"party0": good, "party1": (good[0], {**text, "scale": "2"})},
        {"party0": (good[0], {**text, "dtype": "int64"}), "party1": (good[0], {**text, "dtype": "int64"})},
    ):
        with pytest.raises(FileFormatError):
            backend.restore(bad)


def test_the_table_names_known_rows() -> None:
    assert all(row in BY_NAME for row, _ in KERNELS)


# --- the policy --------------------------------------------------------------------------------------------------------------


def test_explain_says_who_makes_the_triples() -> None:
    third, first = pt.Policy(infer=[CrypTen()]).explain(), pt.Policy(infer=[CrypTen(provider="TFP")]).explain()
    weights = {(row.party, row.asset): row.form for row in third.rows}
    assert weights["client", "model weights"] != "plaintext" and ("dealer", "model weights") in weights
    assert "Mersenne Twister" in str(third) and "can open the server's weights" in str(first)
    assert "dealer" not in {row.party for row in first.rows}


# --- stand-ins ---------------------------------------------------------------------------------------------------------------


def test_stand_ins_come_and_go() -> None:
    absent = [name for name in standins.NAMES if name not in sys.modules and standins._absent(name)]
    assert "torch.onnx.symbolic_registry" in absent, "torch 2 has none"
    with standins.installed():
        for name in absent:
            module = importlib.import_module(name)
            assert module.__spec__ is not None and module.__spec__.name == name
    assert not any(name in sys.modules for name in absent)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("torch.onnx.symbolic_registry")


def test_a_real_package_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "torchvision" / "models"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("real = True\n")
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("torchvision", "torchvision.models"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with standins.installed():
        assert importlib.import_module("torchvision").real
    for name in ("torchvision", "torchvision.models"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_privtensors_does_not_import_the_plugin() -> None:
    code = "import sys, privtensors; privtensors.MPC; print([m for m in sys.modules if 'crypten' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


# --- set-up ------------------------------------------------------------------------------------------------------------------


def test_not_installed_says_how(backend: CrypTenBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(home.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with pytest.raises(MissingExtra, match="privtensors backends install crypten"):
        Workers("TTP").request({"verb": "give"})
    monkeypatch.setenv(home.VARIABLE, str(tmp_path / "absent"))
    with pytest.raises(MissingExtra, match=home.VARIABLE):
        home.python()


def _interpreter(folder: Path, pip: str) -> str:
    """A fake Python: ``-m venv DIR`` copies it there, ``-m pip`` runs ``pip``, a script prints versions."""
    script = folder / "python"
    script.write_text(
        "#!/bin/sh\n"
        'case "$2" in\n'
        f'venv) mkdir -p "$3/bin" && cp "{script}" "$3/bin/python" ;;\n'
        f"pip) {pip} ;;\n"
        'check) echo \'{"crypten": "0.4.1", "torch": "2.13.0"}\' ;;\n'
        "esac\n"
    )
    script.chmod(0o755)
    return str(script)


def test_a_failed_installation_leaves_nothing_to_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(home.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(sys, "executable", _interpreter(tmp_path, "echo 'ERROR: no network' >&2; exit 1"))
    with pytest.raises(AssetUnavailable, match="no network"):
        home.install(lambda _title: nullcontext())
    with pytest.raises(MissingExtra):
        home.python()


def test_installation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(home.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    asked = tmp_path / "asked"
    monkeypatch.setattr(sys, "executable", _interpreter(tmp_path, f'echo "$@" >> "{asked}"'))
    titles: list[str] = []

    def stage(title: str) -> Any:
        titles.append(title)
        return nullcontext()

    found = home.install(stage)
    assert found["crypten"] == "0.4.1" and len(titles) == 4 and home.python() == Path(found["python"])
    first, second = asked.read_text().splitlines()
    assert "-r" in first and "requirements.txt" in first and "--no-deps" in second and "crypten==0.4.1" in second
    titles.clear()
    assert home.install(stage) == found and not titles, "it is there: nothing to do"
    home.install(stage, again=True)
    assert len(titles) == 4


def test_requirements_are_pinned() -> None:
    lines = [line for line in home.REQUIREMENTS.read_text().splitlines() if line and not line.startswith("#")]
    assert len(lines) >= 9 and all("==" in line for line in lines)


def test_install_verb() -> None:
    done = CliRunner().invoke(app, ["backends", "install", "clear", "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout) == {"ok": True, "backend": "clear", "needed": False, "installed": {}}
    absent = CliRunner().invoke(app, ["backends", "install", "no-such-plugin"])
    assert absent.exit_code == 1 and "pip install privtensors-no-such-plugin" in absent.stderr
