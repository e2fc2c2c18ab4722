"""The suite must fail where a backend is wrong: each planted fault is found by the test that is meant to find it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import pytest
import torch

from privtensors.backends.clear.backend import ClearBackend
from privtensors.backends.clear.kernels import KERNELS
from privtensors.backends.clear.payload import ClearPayload
from privtensors.backends.clear.technique import Clear
from privtensors.core import SafeTensor, Session
from privtensors.core.kernel import Cost, Kernel
from privtensors.core.optable import BY_NAME, OPS
from privtensors.core.recorder import MemoryRecorder
from privtensors.testing.backend_suite import INPLACE, TRIALS, BackendSuite
from privtensors.testing.samples import samples
from privtensors.testing.trial import Trial, gap_keys, run_trial

# pytest.fail raises this, which derives from BaseException's branch of its own.
Failed = pytest.fail.Exception


@dataclass(frozen=True)
class Planted(Clear):
    """Clear with a fault."""

    fault: str = ""


class Faulty(ClearBackend):
    """Takes its kernels from the instance, so that each test plants its own."""

    def __init__(self, technique: Any, meter: Any, changed: Mapping[tuple[str, str], Kernel | None]) -> None:
        super().__init__(technique, meter)
        table = {**KERNELS, **changed}
        self.kernels = MappingProxyType({k: v for k, v in table.items() if v is not None})  # type: ignore[misc]


@pytest.fixture
def session() -> Iterator[Session]:
    with Session(recorder=MemoryRecorder()) as current:
        yield current


def plant(session: Session, changed: Mapping[tuple[str, str], Kernel | None]) -> Planted:
    spec = Planted()
    session._backends[spec] = Faulty(spec, session.meter, changed)
    return spec


def trial(op: str, name: str, mix: tuple[int, ...] = (0,)) -> Trial:
    (case,) = (s for s in samples(op) if s.name == name)
    return Trial(BY_NAME[op], case, mix)


def altered(op: str, kinds: str, change: Any, **fields: Any) -> dict[tuple[str, str], Kernel | None]:
    kernel = KERNELS[op, kinds]

    def run(backend: Any, *args: Any, **kwargs: Any) -> Any:
        return change(backend, kernel.run(backend, *args, **kwargs))

    return {(op, kinds): replace(kernel, run=run, **fields)}


def test_a_sound_backend_passes(session: Session) -> None:
    assert isinstance(run_trial(trial("gelu", "ramp"), plant(session, {}), session, {}), SafeTensor)


def test_finds_a_wrong_value(session: Session) -> None:
    spec = plant(session, altered("gelu", "C", lambda _b, out: ClearPayload(out.value + 0.1)))
    with pytest.raises(AssertionError, match=r"gelu\(S\).*off by 0\.1"):
        run_trial(trial("gelu", "ramp"), spec, session, {})


def test_a_declared_error_is_granted_and_no_more(session: Session) -> None:
    fault = altered("gelu", "C", lambda _b, out: ClearPayload(out.value + 0.1), error=lambda *_a, **_k: 0.11)
    run_trial(trial("gelu", "ramp"), plant(session, fault), session, {})
    worse = altered("gelu", "C", lambda _b, out: ClearPayload(out.value + 0.12), error=lambda *_a, **_k: 0.11)
    with pytest.raises(AssertionError, match=r"declared error and resolution 0\.11"):
        run_trial(trial("gelu", "ramp"), plant(session, worse), session, {})


def test_finds_an_undeclared_round_and_byte(session: Session) -> None:
    def spend(rounds: int, count: int) -> Any:
        def change(backend: Any, out: Any) -> Any:
            backend.meter.rounds += rounds
            backend.meter.bytes_sent += count
            return out

        return change

    with pytest.raises(AssertionError, match="declared 0 rounds, took 1"):
        run_trial(trial("mm", "plain"), plant(session, altered("mm", "CP", spend(1, 0))), session, {})
    with pytest.raises(AssertionError, match="declared 0 bytes, sent 8"):
        run_trial(trial("mm", "plain"), plant(session, altered("mm", "CP", spend(0, 8))), session, {})
    with pytest.raises(AssertionError, match="declared 2 rounds, took 1"):
        run_trial(trial("mm", "plain"), plant(session, altered("mm", "CP", spend(1, 8), cost=lambda *_a, **_k: Cost(2, 8))), session, {})
    run_trial(trial("mm", "plain"), plant(session, altered("mm", "CP", spend(1, 8), cost=lambda *_a, **_k: Cost(1, 8))), session, {})


def test_finds_a_wrong_shape_and_dtype(session: Session) -> None:
    with pytest.raises(AssertionError, match="shape"):
        run_trial(trial("relu", "ramp"), plant(session, altered("relu", "C", lambda _b, o: ClearPayload(o.value[None]))), session, {})
    with pytest.raises(AssertionError, match="dtype"):
        run_trial(trial("relu", "ramp"), plant(session, altered("relu", "C", lambda _b, o: ClearPayload(o.value.double()))), session, {})


def test_finds_a_kernel_that_returns_the_plain_value(session: Session) -> None:
    with pytest.raises(Exception, match="returned a plain tensor"):
        run_trial(trial("relu", "ramp"), plant(session, altered("relu", "C", lambda _b, o: o.value)), session, {})


def test_finds_an_unlisted_gap(session: Session) -> None:
    with pytest.raises(Failed, match="not listed in missing"):
        run_trial(trial("mm", "plain"), plant(session, {("mm", "CP"): None}), session, {})


@pytest.mark.parametrize("key", ["mm", "mm(SP)", "mm[plain]", "mm(SP)[plain]"])
def test_a_listed_gap_must_be_a_gap(session: Session, key: str) -> None:
    assert run_trial(trial("mm", "plain"), plant(session, {("mm", "CP"): None}), session, {key: "reason"}) is None
    with pytest.raises(Failed, match="works: take it off the list"):
        run_trial(trial("mm", "plain"), plant(session, {}), session, {key: "reason"})


def test_finds_a_refused_float_input(session: Session) -> None:
    spec = plant(session, {})
    with pytest.raises(Failed, match="mm"):
        bad = replace(samples("mm")[0], args=(torch.full((3, 16), float("nan")), torch.zeros(16, 5)))
        run_trial(Trial(BY_NAME["mm"], bad, (0,)), spec, session, {"mm": "reason"})


class Suite(BackendSuite):
    """Not collected; its methods are called below."""

    __test__ = False
    missing: ClassVar[Mapping[str, str]] = {}


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ({"gemm": "no"}, "no sample covers"),
        ({"erf": " "}, "say why"),
        ({"relu": "not yet"}, "has kernels"),
        ({"mm(SX)": "x"}, "no sample covers"),
    ],
)
def test_finds_a_dishonest_missing_list(session: Session, missing: dict[str, str], message: str) -> None:
    suite = Suite()
    suite.missing = missing  # type: ignore[misc]
    with pytest.raises(AssertionError, match=message):
        suite.test_missing_is_honest(session.backend(plant(session, {("erf", "C"): None})))


def test_finds_a_row_that_is_neither_there_nor_listed(session: Session) -> None:
    backend = session.backend(plant(session, {("erf", "C"): None}))
    with pytest.raises(AssertionError, match="erf: write a kernel"):
        Suite().test_row_has_kernels_or_a_reason(backend, "erf")


def test_finds_an_open_table(session: Session) -> None:
    backend: Any = session.backend(plant(session, {}))
    backend.kernels = dict(backend.kernels)
    with pytest.raises(Failed, match="DID NOT RAISE"):
        Suite().test_table_is_closed(backend)


def test_finds_leaks(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = plant(session, {})
    with monkeypatch.context() as patch:
        patch.setattr(SafeTensor, "tolist", lambda self: self._state.payload.value.tolist())
        with pytest.raises(Failed, match="DID NOT RAISE"):
            Suite().test_way_out(spec, session, "tolist")
    with monkeypatch.context() as patch:
        patch.setattr(ClearPayload, "__repr__", lambda self: repr(self.value))
        with pytest.raises(AssertionError):
            Suite().test_text_shows_no_value(spec, session, "payload")
        with pytest.raises(AssertionError, match="locals of its traceback"):
            Suite().test_way_out(spec, session, "torch.nonzero")


def test_finds_an_inplace_that_keeps_the_version(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    from privtensors.core.safetensor import State

    def write(self: State, payload: Any) -> None:
        self.payload = payload

    monkeypatch.setattr(State, "replace", write)
    with pytest.raises(AssertionError, match="masks opened for the old value"):
        Suite().test_inplace(plant(session, {}), session, next(t for t in INPLACE if t.op.name == "relu"))


def test_finds_a_reveal_that_opens_before_it_records(session: Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from privtensors.testing import backend_suite

    def eager(x: Any, *, to: str | None = None, label: str = "", session: Session | None = None, **_rest: Any) -> torch.Tensor:
        from privtensors.core import reveal

        value = x._state.backend.reveal(x._state.payload, to="?")
        reveal(x, to=to, label=label, session=session)
        return value

    monkeypatch.setattr(backend_suite, "reveal", eager)
    with pytest.raises(AssertionError, match="opened although the ledger could not write"):
        Suite().test_reveal_is_recorded_first(Clear(), Session().backend(Clear()), monkeypatch, tmp_path)


def test_samples_cover_every_overload() -> None:
    for op in OPS:
        covered = {s.overload for s in samples(op.name)}
        assert covered >= set(op.overloads), f"{op.name}: no sample for {set(op.overloads) - covered}"
        assert len({s.name for s in samples(op.name)}) == len(samples(op.name)), f"{op.name}: sample names must differ"
        inplace = {t.sample.overload for t in INPLACE if t.op is op}
        assert inplace == set(op.inplace), f"{op.name}: no in-place trial for {set(op.inplace) - inplace}"


def test_every_operand_is_protected_alone_and_with_all_others() -> None:
    for t in TRIALS:
        assert t.mix and set(t.mix) <= set(t.sample.operands()) - t.sample.public
        assert gap_keys(t)[0] == t.op.name
    mixes = {t.mix for t in TRIALS if t.op.name == "addmm" and t.sample.name == "linear"}
    assert mixes == {(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)}
