"""``BackendSuite``: the tests that every backend passes. A plugin inherits them with one fixture.

class TestMine(BackendSuite):
    missing = {"erf": "no polynomial yet", "mm(PS)": "weights must be public", "pow[root]": "only integer powers"}

    @pytest.fixture
    def technique(self) -> TechniqueSpec:
        return Mine()

A key of ``missing`` names a row of the op table, in brackets the operands (S protected, P public) or the sample that it is
about. What is missing must raise; what is listed and works fails the suite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Final

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from privtensors.core import SafeTensor, Session, load, protect, reveal, save
from privtensors.core.backend import TechniqueSpec
from privtensors.core.optable import BY_NAME, OPS
from privtensors.core.recorder import Disclosure, MemoryRecorder, Recorder
from privtensors.core.registry import backend_names
from privtensors.errors import InvalidInput, LedgerError, MixedBackends, PrivTensorsError, StaleView, UnsupportedOp
from privtensors.testing.leaks import MARK, TEXTS, WAYS_OUT, holds_mark, marked, shows_mark, traceback_text
from privtensors.testing.samples import Sample, samples
from privtensors.testing.samples_types import sample
from privtensors.testing.strategies import broadcast_pairs, shapes, tensors
from privtensors.testing.trial import Trial, gap_keys, run_trial, trial_id


def _inplace_name(overload: Any) -> str:
    """``aten::add.Tensor`` → ``aten::add_.Tensor``."""
    name, dot, rest = overload._name.partition(".")
    return f"{name}_{dot}{rest}"


TRIALS: Final = tuple(Trial(op, case, mix) for op in OPS for case in samples(op.name) for mix in case.protections())
INPLACE: Final = tuple(
    Trial(op, replace(case, overload=overload), mix)
    for op in OPS
    for overload in op.inplace
    for case in samples(op.name)
    if case.overload is overload or _inplace_name(case.overload) == overload._name
    for mix in case.protections()
    if 0 in mix and isinstance(case.args[0], Tensor) and "both broadcast" not in case.name
)


class _Refusing:
    """A ledger that cannot write."""

    def record(self, disclosure: Disclosure) -> None:
        raise LedgerError("disk full", where="ledger")


class BackendSuite:
    """Inherit, name the class ``Test...``, and provide the fixture ``technique``.

    Class attributes:
        missing: What the backend cannot do, and why.
        resolution: Largest absolute error of protecting and revealing a float32 value; 0 for an exact representation.
        examples: Number of examples per property test.
        device: Where the backend computes; None for the CPU.
        release: For a backend whose values leave with noise only: a mechanism whose noise ``resolution`` covers. Values are then
            compared through real releases; override :meth:`make_recorder` where those need more than a recorder in memory.
        unsaved: Why the backend's tensors cannot be written to files; empty where they can.
    """

    missing: ClassVar[Mapping[str, str]] = MappingProxyType({})
    resolution: ClassVar[float] = 0.0
    examples: ClassVar[int] = 40
    device: ClassVar[str | None] = None
    release: ClassVar[object | None] = None
    unsaved: ClassVar[str] = ""

    def make_recorder(self, folder: Path) -> Recorder:
        """A recorder for one session; ``folder`` is the test's own."""
        return MemoryRecorder()

    def recorded(self, recorder: Any) -> list[Disclosure]:
        """What was recorded by a recorder of :meth:`make_recorder`."""
        return list(recorder.entries)

    def reveal(self, x: Tensor, **how: Any) -> Tensor:
        """The value as the backend gives it out."""
        return reveal(x, release=self.release, **how)

    def refusal(self, op: str, a: tuple[int, ...], b: tuple[int, ...]) -> str:
        """Why ``op`` refuses two protected operands of these shapes, which must then raise; empty where it does not."""
        return ""

    def trial(self, trial: Trial, technique: TechniqueSpec, session: Session) -> SafeTensor | None:
        """One trial of one row; see :func:`~privtensors.testing.trial.run_trial`."""
        missing, operands = dict(self.missing), [trial.sample.args[i] for i in trial.sample.operands()]
        if trial.pattern() == "SS" and all(isinstance(x, Tensor) for x in operands):
            reason = self.refusal(trial.op.name, *(tuple(x.shape) for x in operands))
            missing |= {f"{trial.op.name}(SS)": reason} if reason else {}
        return run_trial(trial, technique, session, missing, self.resolution, self.release)

    @pytest.fixture
    def technique(self) -> TechniqueSpec:
        raise NotImplementedError("provide the fixture 'technique'")

    @pytest.fixture
    def session(self, tmp_path: Path) -> Iterator[Session]:
        """A session with a recorder of its own; it is the current one while a test runs."""
        with Session(recorder=self.make_recorder(tmp_path), device=self.device) as session:
            yield session

    @pytest.fixture
    def backend(self, technique: TechniqueSpec, session: Session) -> Any:
        return session.backend(technique)

    # --- the table ---------------------------------------------------------------------------------------------------------

    def test_describes_itself(self, backend: Any, technique: TechniqueSpec) -> None:
        assert backend.name == technique.backend
        assert backend.name in backend_names(), "register it under privtensors.backends"
        assert backend.guarantee in ("none", "heuristic", "statistical", "computational", "hardware trust")
        assert backend.assumption and isinstance(backend.simulated, bool)
        assert backend.technique == technique, "keep the technique: save writes its parameters"

    def test_table_is_closed(self, backend: Any) -> None:
        with pytest.raises(TypeError):
            backend.kernels["add", "SS"] = None  # a table that can be changed at run time is not closed
        for (op, kinds), kernel in backend.kernels.items():
            assert (kernel.op, kernel.kinds) == (op, kinds)
            assert op in BY_NAME, f"{op} is no row of the op table"
            assert kinds.strip("P"), f"{op}({kinds}) has no protected operand"

    def test_missing_is_honest(self, backend: Any) -> None:
        known = {key for trial in TRIALS for key in gap_keys(trial)}
        present = {op for op, _ in backend.kernels}
        for key, reason in self.missing.items():
            assert key in known, f"missing names {key!r}, which no sample covers: a spelling mistake?"
            assert reason.strip(), f"say why {key!r} is missing"
            assert key not in present, f"{key!r} is listed as missing, but has kernels: list the operands or the sample"

    @pytest.mark.parametrize("op", [op.name for op in OPS if not op.alias])
    def test_row_has_kernels_or_a_reason(self, backend: Any, op: str) -> None:
        assert any(key[0] == op for key in backend.kernels) or op in self.missing, (
            f"{op}: write a kernel, or list it in missing with the reason"
        )

    @pytest.mark.parametrize("trial", TRIALS, ids=trial_id)
    def test_row(self, technique: TechniqueSpec, session: Session, trial: Trial) -> None:
        """Value within the declared error, shape, dtype, and declared cost equal to the measured one; or the listed gap raises."""
        self.trial(trial, technique, session)

    @pytest.mark.parametrize("trial", INPLACE, ids=trial_id)
    def test_inplace(self, technique: TechniqueSpec, session: Session, trial: Trial) -> None:
        """In-place overloads write the operand, for every alias of it, and make views of it stale."""
        written = self.trial(trial, technique, session)
        if written is None:
            return
        other = protect(trial.sample.args[0], technique)
        alias, view, version = other.detach(), _some_view(other), other._state.version
        args = [protect(a, technique) if i in trial.mix else a for i, a in enumerate(trial.sample.args)]
        trial.sample.overload(other, *args[1:], **trial.sample.kwargs)
        assert other._state.version == version + 1, "masks opened for the old value must be dropped"
        # An alias must see the new value; two releases of it differ by their noise.
        rtol, atol = (1e-6, 2 * self.resolution) if self.release else (0.0, 0.0)
        torch.testing.assert_close(self.reveal(alias), self.reveal(other), rtol=rtol, atol=atol)
        if view is not None:
            with pytest.raises(StaleView):
                self.reveal(view)

    def test_an_op_outside_the_table_raises(self, technique: TechniqueSpec, session: Session) -> None:
        x = protect(marked(2, 2), technique)
        calls: tuple[Callable[[], object], ...] = (
            lambda: torch.linalg.inv(x),
            lambda: torch.special.bessel_j0(x),
            lambda: x.digamma(),
            lambda: x.sort(),
        )
        for call in calls:
            with pytest.raises(UnsupportedOp, match="no row"):
                call()

    # --- geometry ----------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("op", ["add", "sub", "mul"])
    def test_broadcasting(self, technique: TechniqueSpec, session: Session, op: str) -> None:
        @settings(max_examples=self.examples, deadline=None, database=None, derandomize=True)
        @given(st.data())
        def check(data: st.DataObject) -> None:
            a, b = data.draw(broadcast_pairs())
            x, y = data.draw(tensors(a)), data.draw(tensors(b))
            mix = data.draw(st.sampled_from([(0, 1), (0,), (1,)]))
            case = sample(BY_NAME[op].overloads[0], "same shape", x, y)
            self.trial(Trial(BY_NAME[op], case, mix), technique, session)

        check()

    @pytest.mark.parametrize("op", ["mm", "bmm"])
    def test_matrix_products(self, technique: TechniqueSpec, session: Session, op: str) -> None:
        @settings(max_examples=self.examples, deadline=None, database=None, derandomize=True)
        @given(st.data())
        def check(data: st.DataObject) -> None:
            batch = [data.draw(st.integers(0, 3))] if op == "bmm" else []
            n, k, m = (data.draw(st.integers(0, 6)) for _ in range(3))
            x, y = data.draw(tensors((*batch, n, k))), data.draw(tensors((*batch, k, m)))
            mix = data.draw(st.sampled_from([(0, 1), (0,), (1,)]))
            self.trial(Trial(BY_NAME[op], sample(BY_NAME[op].overloads[0], "plain", x, y), mix), technique, session)

        check()

    def test_layouts_and_reductions(self, technique: TechniqueSpec, session: Session) -> None:
        @settings(max_examples=self.examples, deadline=None, database=None, derandomize=True)
        @given(st.data())
        def check(data: st.DataObject) -> None:
            x = data.draw(shapes(min_dims=1).flatmap(tensors))
            axis = data.draw(st.integers(0, x.dim() - 1))
            torch.testing.assert_close(self.reveal(protect(x, technique)), x.contiguous(), rtol=1e-6, atol=self.resolution)
            for op, case in (
                ("sum", sample(BY_NAME["sum"].overloads[1], "rows", x, [axis], data.draw(st.booleans()))),
                ("transpose", sample(BY_NAME["transpose"].overloads[0], "inner", x, axis, -1)),
                ("view", sample(BY_NAME["view"].overloads[0], "flat", x.contiguous(), [x.numel()])),
                ("cat", sample(BY_NAME["cat"].overloads[0], "rows", [x, x], axis)),
            ):
                self.trial(Trial(BY_NAME[op], case, (0,)), technique, session)

        check()

    def test_views_of_views(self, technique: TechniqueSpec, session: Session) -> None:
        """Stock model code: reshape, transpose, contiguous, view; the wrapper's strides say contiguous at every step."""
        plain = torch.arange(48.0).view(2, 4, 6) / 8
        x = protect(plain, technique)

        def heads(t: Tensor) -> Tensor:
            return (
                t.view(2, 4, 3, 2)
                .transpose(1, 2)
                .contiguous()
                .transpose(-1, -2)
                .reshape(2, 3, -1)
                .unsqueeze(0)[..., 1:5]
                .permute(3, 1, 0, 2)
            )

        out = heads(x)
        assert out.is_contiguous() and out.shape == heads(plain).shape and out.device == plain.device
        torch.testing.assert_close(self.reveal(out), heads(plain).contiguous(), rtol=1e-6, atol=self.resolution)

    # --- ways in -----------------------------------------------------------------------------------------------------------

    def test_protect_copies(self, technique: TechniqueSpec, session: Session) -> None:
        plain = marked(3)
        x = protect(plain, technique)
        plain.zero_()
        torch.testing.assert_close(self.reveal(x), marked(3), rtol=0, atol=self.resolution)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
    def test_refuses_non_finite(self, technique: TechniqueSpec, session: Session, bad: float) -> None:
        plain = torch.zeros(3, 4)
        plain[1, 2] = plain[2, 0] = bad
        if getattr(session.backend(technique), "absorbs_non_finite", False):
            protect(plain, technique)  # an error, or a warning, would tell about a record
            return
        with pytest.raises(InvalidInput, match=r"2 of 12 values .* \(1, 2\)"):
            protect(plain, technique)

    def test_refuses_what_is_no_plain_dense_real_tensor(self, technique: TechniqueSpec, session: Session) -> None:
        x = protect(marked(2), technique)
        for bad in (x, [1.0], "1", None, torch.zeros(2, dtype=torch.complex64), torch.eye(2).to_sparse(), torch.zeros(2, device="meta")):
            with pytest.raises(InvalidInput):
                protect(bad, technique)  # type: ignore[arg-type]

    def test_gradients_do_not_enter(self, technique: TechniqueSpec, session: Session) -> None:
        x = protect(marked(2).requires_grad_(), technique)
        assert not x.requires_grad and x.grad_fn is None

    # --- ways out ----------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("way", WAYS_OUT)
    @pytest.mark.filterwarnings("ignore")
    def test_way_out(self, technique: TechniqueSpec, session: Session, way: str) -> None:
        x = protect(marked(2), technique)
        with pytest.raises(PrivTensorsError) as caught:
            WAYS_OUT[way](x)
        assert not shows_mark(traceback_text(caught.value)), "the value stands in the error or in the locals of its traceback"

    @pytest.mark.parametrize("text", TEXTS)
    def test_text_shows_no_value(self, technique: TechniqueSpec, session: Session, text: str) -> None:
        assert not shows_mark(TEXTS[text](protect(marked(2), technique)))

    def test_reveal_is_recorded_first(
        self, technique: TechniqueSpec, backend: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "own").mkdir()
        recorder = self.make_recorder(tmp_path / "own")
        with Session(recorder=recorder) as session:
            x = protect(marked(2, 3), technique, owner="alice")
            assert not self.recorded(recorder)
            self.reveal(x, to="bob", label="score")
        (entry,) = self.recorded(recorder)
        assert (entry.backend, entry.shape, entry.dtype, entry.receiver, entry.label) == (backend.name, (2, 3), "float32", "bob", "score")
        assert not shows_mark(repr(entry))
        opened: list[object] = []
        monkeypatch.setattr(type(session.backend(technique)), "reveal", lambda self, payload, *, to: opened.append(payload))
        with pytest.raises(LedgerError):
            self.reveal(x, session=Session(recorder=_Refusing()))
        assert not opened, "the value was opened although the ledger could not write"

    def test_save_and_load(self, technique: TechniqueSpec, session: Session, tmp_path: Path) -> None:
        plain = {"a": marked(2, 3), "b.weight": torch.linspace(-2, 2, 7), "empty": torch.zeros(0, 2), "scalar": torch.tensor(0.5)}
        if self.unsaved:
            with pytest.raises(PrivTensorsError) as refused:
                save(tmp_path / "saved", {name: protect(x, technique) for name, x in plain.items()})
            assert not list(tmp_path.glob("saved*")) and not shows_mark(str(refused.value))
            return
        files = save(tmp_path / "saved", {name: protect(x, technique, owner="server") for name, x in plain.items()})
        backend = session.backend(technique)
        if backend.guarantee != "none":
            assert not any(holds_mark(file.read_bytes()) for file in files), "one party's file holds the value"
        with Session(recorder=self.make_recorder(tmp_path)):
            back = load(tmp_path / "saved", technique)
            for name, x in plain.items():
                assert isinstance(back[name], SafeTensor) and back[name].owner == "server"
                torch.testing.assert_close(self.reveal(back[name]), x, rtol=1e-6, atol=self.resolution)

    def test_two_backends_do_not_mix(self, technique: TechniqueSpec, session: Session) -> None:
        x = protect(marked(2), technique)
        with Session(recorder=MemoryRecorder()):
            others = [protect(marked(2), t) for t in (technique, "clear")[: 1 if technique.backend == "clear" else 2]]
        for y in others:
            for call in (lambda y=y: x + y, lambda y=y: y + x, lambda y=y: torch.cat([x, y])):
                with pytest.raises(MixedBackends):
                    call()

    def test_resolution(self, technique: TechniqueSpec, session: Session) -> None:
        plain = torch.cat([torch.linspace(-100, 100, 1001), torch.tensor([MARK, 0.0])])
        torch.testing.assert_close(self.reveal(protect(plain, technique)), plain, rtol=1e-7, atol=self.resolution)


def _some_view(x: Tensor) -> Tensor | None:
    """A view of ``x`` by the first kernel there is; None for a backend that has none."""
    views: tuple[Callable[[], Tensor], ...] = (lambda: x.view(-1), lambda: x.transpose(0, -1), lambda: x.unsqueeze(0))
    for view in views:
        try:
            return view()
        except UnsupportedOp:
            continue
    return None


__all__ = ["BackendSuite", "Sample"]
