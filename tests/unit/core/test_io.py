"""Saving and loading: round trip, and every way a file can be wrong."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from privtensors.backends.clear.backend import ClearBackend
from privtensors.backends.clear.payload import ClearPayload
from privtensors.core import Session, io, load, protect, reveal, save
from privtensors.core.recorder import MemoryRecorder
from privtensors.core.safetensor import SafeTensor
from privtensors.errors import FileFormatError, InvalidInput, MixedBackends


@dataclass(frozen=True)
class Pair:
    """A technique whose backend stores two halves."""

    bits: int = 8
    name: ClassVar[str] = "pair"
    backend: ClassVar[str | None] = "pair"


class PairBackend(ClearBackend):
    """Stores a value as two parts, so that there are two files."""

    name: ClassVar[str] = "pair"

    def export(self, payload: Any) -> Mapping[str, tuple[Mapping[str, Tensor], Mapping[str, str]]]:
        mask = torch.ones_like(payload.value)
        return {"left": ({"half": payload.value - mask}, {"note": "l"}), "right": ({"half": mask}, {})}

    def restore(self, parts: Mapping[str, tuple[Mapping[str, Tensor], Mapping[str, str]]]) -> ClearPayload:
        assert parts["left"][1] == {"note": "l"}
        return ClearPayload(parts["left"][0]["half"] + parts["right"][0]["half"])


@pytest.fixture(autouse=True)
def session() -> Iterator[Session]:
    with Session(recorder=MemoryRecorder()) as current:
        yield current


@pytest.fixture
def pair(session: Session) -> Pair:
    spec = Pair()
    session._backends[spec] = PairBackend(spec, session.meter)  # type: ignore[assignment]
    return spec


def example(technique: Any = "clear") -> dict[str, SafeTensor]:
    return {
        "weight": protect(torch.arange(12.0).view(3, 4).t(), technique, owner="server"),
        "empty/part": protect(torch.zeros(0, 3), technique),
        "scalar": protect(torch.tensor(2.5), technique),
    }


def test_round_trip(tmp_path: Path) -> None:
    tensors = example()
    (file,) = save(tmp_path / "model", tensors)
    assert file == tmp_path / "model.safetensors"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    back = load(tmp_path / "model", "clear")
    for name, x in tensors.items():
        assert back[name].owner == x.owner and back[name].dtype == x.dtype
        assert torch.equal(reveal(back[name]), reveal(x))
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(tmp_path: Path, dtype: torch.dtype) -> None:
    x = torch.tensor([0, 1, 1]).to(dtype)
    save(tmp_path / "x", {"x": protect(x, "clear")})
    assert torch.equal(reveal(load(tmp_path / "x", "clear")["x"]), x)


def test_is_a_real_safetensors_file_with_public_header(tmp_path: Path) -> None:
    (file,) = save(tmp_path / "model", example())
    with safe_open(file, framework="pt") as opened:
        header = opened.metadata()
        assert set(opened.keys()) == {"weight/value", "empty/part/value", "scalar/value"}
    assert (header["format"], header["version"], header["backend"], header["party"]) == ("privtensors", "1", "clear", "server")
    assert json.loads(header["tensors"])["weight"] == {
        "kind": "C", "dtype": "float32", "shape": [4, 3], "owner": "server", "parts": {"server": ["value"]},
    }  # fmt: skip


def test_one_file_per_party(tmp_path: Path, pair: Pair) -> None:
    tensors = example(pair)
    files = save(tmp_path / "model.safetensors", tensors)
    assert [f.name for f in files] == ["model.left.safetensors", "model.right.safetensors"]
    back = load(tmp_path / "model", pair)
    assert torch.equal(reveal(back["weight"]), reveal(tensors["weight"]))


def test_missing_party(tmp_path: Path, pair: Pair) -> None:
    save(tmp_path / "model", example(pair))[1].unlink()
    with pytest.raises(FileFormatError, match=r"model\.right\.safetensors: cannot be read"):
        load(tmp_path / "model", pair)


def test_mixed_saves(tmp_path: Path, pair: Pair) -> None:
    files = save(tmp_path / "model", example(pair))
    old = files[1].read_bytes()
    save(tmp_path / "model", example(pair))
    files[1].write_bytes(old)
    with pytest.raises(FileFormatError, match="another save"):
        load(tmp_path / "model", pair)


def test_swapped_parties(tmp_path: Path, pair: Pair) -> None:
    left, right = save(tmp_path / "model", example(pair))
    a, b = left.read_bytes(), right.read_bytes()
    left.write_bytes(b)
    right.write_bytes(a)
    with pytest.raises(FileFormatError, match="not 'left'"):
        load(tmp_path / "model", pair)


def test_other_parameters_and_backend(tmp_path: Path, pair: Pair, session: Session) -> None:
    save(tmp_path / "model", example(pair))
    other = Pair(bits=9)
    session._backends[other] = PairBackend(other, session.meter)  # type: ignore[assignment]
    with pytest.raises(FileFormatError, match="parameters"):
        load(tmp_path / "model", other)
    with pytest.raises(FileFormatError, match="backend is pair, asked for clear"):
        load(tmp_path / "model", "clear")


def test_single_file_in_the_way(tmp_path: Path, pair: Pair) -> None:
    save(tmp_path / "model", example())
    with pytest.raises(FileFormatError, match="in the way"):
        save(tmp_path / "model", example(pair))


def test_other_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(io, "VERSION", "2")
        save(tmp_path / "model", example())
    with pytest.raises(FileFormatError, match="version '2'"):
        load(tmp_path / "model", "clear")


def test_swapped_names(tmp_path: Path) -> None:
    x = {"a": protect(torch.zeros(2), "clear"), "b": protect(torch.ones(2), "clear")}
    (file,) = save(tmp_path / "model", x)
    data = file.read_bytes()
    file.write_bytes(data.replace(b'"a/value"', b'"?"').replace(b'"b/value"', b'"a/value"').replace(b'"?"', b'"b/value"'))
    with pytest.raises(FileFormatError, match="SHA-256"):
        load(tmp_path / "model", "clear")


def test_not_there_and_not_ours(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"no file nothing\.safetensors"):
        load(tmp_path / "nothing", "clear")
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(FileFormatError, match="not a file of privtensors"):
        load(tmp_path / "foreign", "clear")


def test_bad_saves(tmp_path: Path, pair: Pair) -> None:
    with pytest.raises(InvalidInput, match="nothing to save"):
        save(tmp_path / "x", {})
    with pytest.raises(InvalidInput, match="not a SafeTensor"):
        save(tmp_path / "x", {"x": torch.zeros(2)})  # type: ignore[dict-item]
    with pytest.raises(MixedBackends):
        save(tmp_path / "x", {"x": protect(torch.zeros(2), "clear"), "y": protect(torch.zeros(2), pair)})
    with pytest.raises(FileFormatError, match="cannot be written"):
        save(tmp_path / "no" / "folder", example())


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file,) = save(tmp_path / "model", example())
    before = file.read_bytes()

    def fail(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(io.os, "fsync", fail)
    with pytest.raises(FileFormatError, match="No space left"):
        save(tmp_path / "model", example())
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(data=st.data())
def test_any_changed_byte_is_found(tmp_path: Path, data: st.DataObject) -> None:
    file = tmp_path / "model.safetensors"
    if not file.exists():
        save(file, example())
        (tmp_path / "good").write_bytes(file.read_bytes())
    good = (tmp_path / "good").read_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    flip = data.draw(st.integers(1, 255))
    file.write_bytes(good[:at] + bytes([good[at] ^ flip]) + good[at + 1 :])
    with pytest.raises(FileFormatError):
        load(file, "clear")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(data=st.data())
def test_any_truncation_is_found(tmp_path: Path, data: st.DataObject) -> None:
    file = tmp_path / "model.safetensors"
    if not (tmp_path / "good").exists():
        save(file, example())
        (tmp_path / "good").write_bytes(file.read_bytes())
    good = (tmp_path / "good").read_bytes()
    file.write_bytes(good[: data.draw(st.integers(0, len(good) - 1))])
    with pytest.raises(FileFormatError):
        load(file, "clear")
