"""The mpc backend's doors: protect, reveal, save and restore, public operands; bad input at each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from privtensors.backends.mpc.backend import RANGE_BITS
from privtensors.backends.mpc.shares import Shares
from privtensors.errors import FileFormatError, InvalidInput, OutOfRange, PrivTensorsError
from privtensors.testing.strategies import shapes, tensors
from privtensors.transport.memory import MemoryChannel
from privtensors.transport.record import RecordingChannel, Tape
from tests.unit.backends.mpc.harness import ULP, Lab, value, worst

Parts = dict[str, tuple[dict[str, torch.Tensor], dict[str, str]]]


@given(shapes(), st.data())
def test_protect_and_reveal(shape: tuple[int, ...], data: st.DataObject) -> None:
    lab = Lab()
    x = data.draw(tensors(shape, scale=100.0))
    payload = lab.backend.protect(x, owner="client")
    assert payload.shape == shape and payload.kind == "A" and payload.dtype == torch.float32
    got = lab.backend.reveal(payload, to="client")
    assert got.dtype == x.dtype and worst(got, x) <= ULP / 2 + float(x.abs().max() if x.numel() else 0) * 2.0**-24


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool])
def test_other_dtypes_come_back_as_they_went(dtype: torch.dtype) -> None:
    lab = Lab()
    x = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype)
    got = lab.backend.reveal(lab.backend.protect(x, owner="client"), to="client")
    assert got.dtype == dtype and torch.equal(got, x)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_not_finite(bad: float, dtype: torch.dtype) -> None:
    with pytest.raises(InvalidInput, match="NaN or infinite") as error:
        Lab().backend.protect(torch.tensor([1.0, bad]).to(dtype), owner="client")
    assert error.value.fix


@pytest.mark.parametrize(
    "x", [torch.tensor([0.0, 2.0**RANGE_BITS]), torch.tensor([-(2.0**RANGE_BITS)]), torch.tensor([2**62]), torch.tensor([1e30])]
)
def test_out_of_range(x: torch.Tensor) -> None:
    with pytest.raises(OutOfRange, match="absolute values") as error:
        Lab().backend.protect(x, owner="client")
    assert error.value.fix


def test_the_largest_input_passes() -> None:
    x = torch.tensor([1.0, -1.0], dtype=torch.float64) * (2.0**RANGE_BITS - ULP)
    lab = Lab()
    assert torch.equal(lab.backend.reveal(lab.backend.protect(x, owner="client"), to="client"), x)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.uint8, torch.int16, torch.float8_e4m3fn])
def test_wrong_dtype(dtype: torch.dtype) -> None:
    with pytest.raises(InvalidInput, match="no fixed-point form"):
        Lab().backend.protect(torch.zeros(2).to(dtype), owner="client")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_public_operands_must_be_finite(bad: float) -> None:
    lab = Lab()
    x = lab.backend.protect(torch.ones(2), owner="client")
    public = torch.tensor([1.0, bad])
    for name in ("add", "mul", "div"):
        with pytest.raises(PrivTensorsError):
            lab.kernel(name, "AP", x, public if name != "div" else torch.tensor([1.0, 0.0]))
    for factor in (bad, -bad):
        with pytest.raises(PrivTensorsError):
            lab.kernel("mul", "A", x, factor)


def test_errors_show_no_value() -> None:
    for x in (torch.tensor([73.515625, math.nan]), torch.tensor([73.515625], dtype=torch.complex64)):
        with pytest.raises(PrivTensorsError) as error:
            Lab().backend.protect(x, owner="client")
        assert "73.5" not in str(error.value)


def saved() -> tuple[Lab, Parts]:
    lab = Lab()
    parts = lab.backend.export(lab.backend.protect(torch.arange(6.0).view(2, 3), owner="client"))
    return lab, {name: (dict(tensors_), dict(text)) for name, (tensors_, text) in parts.items()}


def test_save_and_restore() -> None:
    lab, parts = saved()
    assert sorted(parts) == ["party0", "party1"]
    back = lab.backend.restore(parts)
    assert isinstance(back, Shares) and torch.equal(value(back), torch.arange(6.0).view(2, 3).double())
    # One party's part alone is uniform: nothing in its text or tensor is the value.
    tensors_, text = parts["party0"]
    assert set(tensors_) == {"share"} and set(text) == {"frac", "ring", "dtype", "shape"}


def test_restore_of_an_empty_tensor_and_a_scalar() -> None:
    lab = Lab()
    for x in (torch.zeros(0, 3), torch.tensor(2.0), torch.tensor(True)):
        back = lab.backend.restore(lab.backend.export(lab.backend.protect(x, owner="client")))
        assert torch.equal(lab.backend.reveal(back, to="client"), x)


def text(key: str, new: str, parties: tuple[str, ...] = ("party0", "party1")) -> Callable[[Parts], None]:
    return lambda parts: [parts[p][1].__setitem__(key, new) for p in parties] and None


def tensor(change: Callable[[torch.Tensor], Any], name: str = "share", parties: tuple[str, ...] = ("party1",)) -> Callable[[Parts], None]:
    def apply(parts: Parts) -> None:
        for p in parties:
            parts[p][0][name] = change(parts[p][0]["share"])

    return apply


BROKEN: dict[str, Callable[[Parts], Any]] = {
    "a part is missing": lambda p: p.pop("party1"),
    "a part too many": lambda p: p.__setitem__("party2", p["party0"]),
    "no part": lambda p: p.clear(),
    "no tensor": lambda p: p["party0"][0].clear(),
    "a tensor too many": tensor(lambda t: t, "mask"),
    "floating point": tensor(lambda t: t.float()),
    "32 bits": tensor(lambda t: t.to(torch.int32)),
    "another shape": tensor(lambda t: t.t().contiguous()),
    "truncated": tensor(lambda t: t[:1]),
    "another shape in both": tensor(lambda t: t.t().contiguous(), parties=("party0", "party1")),
    "scales differ": text("frac", "17", ("party0",)),
    "rings differ": text("ring", "40", ("party1",)),
    "frac is no number": text("frac", "many"),
    "frac is negative": text("frac", "-1"),
    "frac is beyond the ring": text("frac", "63"),
    "ring 0": text("ring", "0"),
    "ring 65": text("ring", "65"),
    "ring is huge": text("ring", "9" * 30),
    "unknown dtype": text("dtype", "float7"),
    "a name of torch that is no dtype": text("dtype", "load"),
    "a dtype without a form": text("dtype", "complex64"),
    "shape is no list": text("shape", "2x3"),
    "shape is negative": text("shape", "-2,-3"),
    "no text": lambda p: [p[n][1].clear() for n in p],
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_malformed_save_is_refused(name: str) -> None:
    lab, parts = saved()
    BROKEN[name](parts)
    with pytest.raises(FileFormatError) as error:
        lab.backend.restore(parts)
    assert error.value.where and error.value.fix


def test_a_prepared_weight_is_opened_once_and_still_reveals() -> None:
    lab = Lab()
    w, x = torch.randn(6, 5), torch.randn(3, 6)
    shared = lab.backend.protect(w, owner="server")
    lab.backend.prepare(shared)
    assert lab.meter.rounds == 1
    sizes = []
    for _ in range(2):
        with lab.meter.scope() as scope:
            out = lab.kernel("mm", "AA", lab.backend.protect(x, owner="client"), shared)
        sizes.append((scope.spent.rounds, scope.spent.bytes_sent))
        assert worst(lab.backend.reveal(out, to="client"), x @ w) <= 1e-4
    assert sizes == [(1, 18 * 8)] * 2  # x alone is opened
    assert worst(lab.backend.reveal(shared, to="server"), w) <= ULP


def test_integers_go_through_every_nonlinear_kernel() -> None:
    """An integer tensor has no fractional bits, where most protocols start from eighteen."""
    lab = Lab()
    x = torch.arange(-20, 21)
    for name, args, want in (
        ("clamp", (-5, 6), x.clamp(-5, 6)),
        ("relu", (), x.relu()),
        ("abs", (), x.abs()),
        ("tanh", (), x.tanh()),
    ):
        got = lab.backend.reveal(lab.kernel(name, "A", lab.backend.protect(x, owner="client"), *args), to="client")
        assert worst(got, want) <= (1e-3 if got.dtype.is_floating_point else 1), name


@pytest.mark.parametrize(("to", "party"), [("client", 0), ("server", 1), ("somebody else", 0)])
def test_a_result_reaches_its_receiver_only(to: str, party: int) -> None:
    tape = Tape()
    lab = Lab(RecordingChannel(MemoryChannel(), tape))
    x = lab.share(torch.randn(6))
    before = len(tape.entries)
    assert worst(lab.backend.reveal(x, to=to), value(x)) <= ULP
    received = [e for e in tape.entries[before:] if not e.sent]
    assert [e.party for e in received] == [f"party{party}"]
