"""One trial of one row: a sample with some operands protected, run through the dispatcher and compared with the plain result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from privtensors.core import SafeTensor, Session, protect, reveal
from privtensors.core.backend import TechniqueSpec
from privtensors.core.dispatch import resolve
from privtensors.core.kernel import FREE
from privtensors.core.optable import Op
from privtensors.errors import InvalidInput, UnsupportedOp
from privtensors.testing.samples import reference
from privtensors.testing.samples_types import Sample

# Float32 arithmetic in another order than the reference's, relative to the largest element of the result.
SLACK = 4e-6


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """A sample of row ``op`` with the operands at positions ``mix`` protected."""

    op: Op
    sample: Sample
    mix: tuple[int, ...]

    def pattern(self) -> str:
        """Protected (S) and public (P) operands in order."""
        return "".join("S" if i in self.mix else "P" for i in self.sample.operands())


def trial_id(trial: Trial) -> str:
    """Name of the trial in the test report."""
    return f"{trial.sample.overload._name.removeprefix('aten::')}-{trial.sample.name}-{trial.pattern()}"


def gap_keys(trial: Trial) -> tuple[str, ...]:
    """Keys of ``missing`` under which this trial may be listed, widest first."""
    op, name, pattern = trial.op.name, trial.sample.name, trial.pattern()
    return op, f"{op}({pattern})", f"{op}[{name}]", f"{op}({pattern})[{name}]"


def run_trial(
    trial: Trial, technique: TechniqueSpec, session: Session, missing: Any, resolution: float = 0.0, release: object | None = None
) -> SafeTensor | None:
    """Run ``trial`` and compare value, shape, dtype and cost; where ``missing`` lists it, check that it raises.

    The reference gets the operands as the backend represents them, so that the comparison measures the kernel alone; the
    allowed error is what the kernel declares, plus ``resolution`` for representing the result, plus float32 slack. ``release`` is
    the mechanism by which values leave a backend that adds noise.

    Returns:
        The (first) result, or None where it is missing or not protected.
    """
    listed = next((key for key in gap_keys(trial) if key in missing), None)
    label = f"{trial.op.name}({trial.pattern()}), sample {trial.sample.name!r}"
    try:
        return _run(trial, technique, session, label, listed, resolution, release)
    except UnsupportedOp as error:
        if listed is None:
            pytest.fail(f"{label} is not supported and not listed in missing: {error}")
        return None
    except InvalidInput as error:
        if listed is None or not _refused_dtype(trial):
            pytest.fail(f"{label}: {error}")
        return None


def _run(
    trial: Trial,
    technique: TechniqueSpec,
    session: Session,
    label: str,
    listed: str | None,
    resolution: float,
    release: object | None,
) -> SafeTensor | None:
    case = trial.sample
    seen = case.args
    if release is None:  # noise is no representation
        seen = tuple(_map(a, lambda x: reveal(protect(x, technique))) if i in trial.mix else a for i, a in enumerate(case.args))
    args = tuple(_map(a, lambda x: protect(x, technique)) if i in trial.mix else a for i, a in enumerate(case.args))
    kwargs = dict(case.kwargs)
    call = resolve(case.overload, args, kwargs)
    backend = call.state.backend
    # Declared before the run: an in-place kernel replaces the payload, and opened masks make the next use cheaper.
    cost = FREE if call.kernel is None else call.kernel.cost(backend, *call.args, **kwargs)
    error = 0.0 if call.kernel is None else call.kernel.error(backend, *call.args, **kwargs)
    with session.meter.scope() as scope:
        out = case.overload(*args, **kwargs)
    if listed is not None:
        pytest.fail(f"{label} is listed in missing as {listed!r} but works: take it off the list")
    spent = scope.spent
    assert spent.rounds == cost.rounds, f"{label}: declared {cost.rounds} rounds, took {spent.rounds}"
    assert spent.bytes_sent == cost.bytes, f"{label}: declared {cost.bytes} bytes, sent {spent.bytes_sent}"
    _compare(out, reference(case, seen), error + resolution, label, trial.op, release, first=True)
    result = out[0] if isinstance(out, (tuple, list)) and out else out
    return result if isinstance(result, SafeTensor) else None


def _compare(got: Any, want: Any, error: float, label: str, op: Op, release: object | None, *, first: bool) -> None:
    if isinstance(want, (tuple, list)):
        assert isinstance(got, (tuple, list)) and len(got) == len(want), f"{label}: expected {len(want)} results"
        for i, (g, w) in enumerate(zip(got, want, strict=True)):
            _compare(g, w, error, f"{label}, result {i}", op, release, first=i == 0 or op.category == "shape")
        return
    if want is None:
        assert got is None, f"{label}: ATen gives nothing here"
        return
    if got is None and not first:
        return  # what only a backward pass would need may be left undefined
    assert isinstance(got, Tensor), f"{label}: expected a tensor, got {type(got).__name__}"
    assert tuple(got.shape) == tuple(want.shape), f"{label}: shape {tuple(got.shape)}, expected {tuple(want.shape)}"
    assert got.dtype == want.dtype, f"{label}: dtype {got.dtype}, expected {want.dtype}"
    if not isinstance(got, SafeTensor):
        assert op.public or got.numel() == 0, f"{label}: the result is not protected"
        value = got
    else:
        value = reveal(got, release=release)
    assert value.dtype == want.dtype and value.shape == want.shape, f"{label}: reveal changed shape or dtype"
    if not want.is_floating_point():
        assert torch.equal(value, want), f"{label}: {int((value != want).sum())} of {want.numel()} elements differ"
    elif want.numel():
        relative = max(SLACK, 2 * torch.finfo(want.dtype).eps)
        allowed = error + 1e-6 + relative * float(want.double().abs().max())
        off = float((value.double() - want.double()).abs().max())
        assert off <= allowed, (
            f"{label}: off by {off:.3g}, declared error and resolution {error:.3g} (allowed with float32 slack: {allowed:.3g})"
        )


def _map(a: Any, each: Any) -> Any:
    return [each(b) for b in a] if isinstance(a, list) else each(a)


def _refused_dtype(trial: Trial) -> bool:
    """True when a protected operand is no float32 tensor, which a backend may refuse at the door."""
    operands = [trial.sample.args[i] for i in trial.mix]
    flat = [b for a in operands for b in (a if isinstance(a, list) else [a])]
    return any(x.dtype is not torch.float32 for x in flat)
