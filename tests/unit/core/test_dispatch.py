"""Routing: which kernel gets what, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional as F

from privtensors.core import SafeTensor, Session, convert, protect, reveal
from privtensors.core.checks import check_finite, check_plain
from privtensors.core.dispatch import resolve
from privtensors.core.kernel import Kernel, kernel_table
from privtensors.core.optable import BY_NAME, OPS, ROUTES
from privtensors.core.recorder import MemoryRecorder
from privtensors.errors import (
    InvalidInput,
    MixedBackends,
    ParameterError,
    RegistryError,
    RoutingError,
    StaleView,
    UnknownTechnique,
    UnsupportedOp,
)

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def session() -> Iterator[Session]:
    with Session(recorder=MemoryRecorder()) as current:
        yield current


def clear(x: torch.Tensor) -> SafeTensor:
    return protect(x, "clear")


def test_kinds_follow_the_operands() -> None:
    x, p = clear(torch.ones(2, 2)), torch.ones(2, 2)
    for args, kinds in (((x, x), "CC"), ((x, p), "CP"), ((p, x), "PC"), ((x, 2.0), "C"), ((2.0, x), "PC")):
        kernel = resolve(aten.add.Tensor, args, {}).kernel
        assert kernel is not None and (kernel.op, kernel.kinds) == ("add", kinds)
    kernel = resolve(aten.cat.default, ([x, p, x],), {}).kernel
    assert kernel is not None and kernel.kinds == "CP"


def test_defaults_of_hardtanh_are_filled_in() -> None:
    x = torch.linspace(-3, 3, 7)
    for low, high in ((-1, 1), (-2, 1), (-1, 2), (0, 6), (-1.0, 1.0)):
        assert torch.equal(reveal(F.hardtanh(clear(x), low, high)), F.hardtanh(x, low, high))
    assert torch.equal(reveal(clear(x).clamp(min=-2)), x.clamp(min=-2))


def test_a_number_first() -> None:
    x = torch.linspace(1, 3, 5)
    for f in (
        lambda v: torch.add(2, v),
        lambda v: torch.sub(1, v),
        lambda v: torch.div(2.0, v),
        lambda v: 1 / v,
        lambda v: 1 - v,
        lambda v: 3 * v,
    ):
        assert torch.equal(reveal(f(clear(x))), f(x))


def test_unknown_row_and_kernel_say_what_to_do() -> None:
    with pytest.raises(UnsupportedOp, match=r"no row for aten.digamma.default.*privtensors backends"):
        clear(torch.ones(2)).digamma()
    with pytest.raises(UnsupportedOp, match=r"no kernel gather\(CC\).*operand kinds CP"):
        torch.gather(clear(torch.ones(2)), 0, clear(torch.zeros(1, dtype=torch.int64)))


def test_no_safetensor_among_the_operands() -> None:
    with pytest.raises(RoutingError, match="without a SafeTensor"):
        resolve(aten.add.Tensor, (torch.ones(2), torch.ones(2)), {})


def test_two_sessions_do_not_mix() -> None:
    with Session(recorder=MemoryRecorder()):
        other = clear(torch.ones(2))
    for call in (lambda: clear(torch.ones(2)) + other, lambda: torch.stack([clear(torch.ones(2)), other])):
        with pytest.raises(MixedBackends, match="two 'clear' backends"):
            call()


def test_views_share_inplace_bookkeeping() -> None:
    x = clear(torch.zeros(2, 3))
    chain = x.view(3, 2).t()[0]
    assert chain._state.base is x._state, "the base of a view of a view is the root: an older chain would keep every step alive"
    x.add_(1)
    with pytest.raises(StaleView):
        chain + 1
    assert torch.equal(reveal(x.detach()), torch.ones(2, 3))


def test_a_change_of_shape_in_place_makes_a_view_of_what_was(session: Session) -> None:
    for job in (lambda x: x.squeeze_(0), lambda x: x.squeeze_(), lambda x: x.squeeze_(-3)):
        x = clear(torch.arange(6.0).view(1, 2, 3))
        alias, state = x.detach(), x._state
        assert job(x) is x and x.shape == (2, 3) and x.stride() == (3, 1) and alias.shape == (1, 2, 3)
        assert x._state.base is state and torch.equal(reveal(x * 2), torch.arange(0.0, 12, 2).view(2, 3))
        x.add_(1)
        with pytest.raises(StaleView):
            alias + 1
    x = clear(torch.ones(1, 2))
    with pytest.raises(InvalidInput, match="range"):
        x.squeeze_(5)
    assert x.shape == (1, 2) and x.squeeze_(0).shape == (2,)


@pytest.mark.parametrize("protected", [(0,), (1,), (0, 1)])
def test_a_vector_times_a_matrix(session: Session, protected: tuple[int, ...]) -> None:
    plain = [torch.tensor([1.0, -2.0]), torch.arange(6.0).view(2, 3)]
    vector, matrix = (clear(p) if i in protected else p for i, p in enumerate(plain))
    out = vector @ matrix
    assert out.shape == (3,) and torch.equal(reveal(out), plain[0] @ plain[1])
    leaf = clear(plain[0]).requires_grad_()
    (leaf @ clear(plain[1])).sum().backward()
    assert leaf.grad is not None and torch.equal(reveal(leaf.grad), plain[1].sum(1))


def test_meter_counts_and_keeps_the_largest_error(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    x = clear(torch.ones(2))
    table = kernel_table(
        [Kernel("neg", "C", lambda _b, v: v, error=lambda _b, v: 0.25), Kernel("relu", "C", lambda _b, v: v, error=lambda _b, v: 0.125)]
    )
    monkeypatch.setattr(type(x._state.backend), "kernels", table)
    with session.meter.scope() as scope:
        _ = (-x).relu()
    assert scope.spent.ops == {"neg": 1, "relu": 1} and scope.spent.error == 0.25 and scope.spent.busy_seconds > 0


def test_op_table_is_consistent() -> None:
    assert len(BY_NAME) == len(OPS) and len({op.name for op in OPS}) == len(OPS)
    for overload, route in ROUTES.items():
        op = BY_NAME[route.op]
        assert overload in (op.reshapes if route.reshapes else op.inplace if route.inplace else op.overloads)
        writes = overload._schema.is_mutable and overload is not aten.native_batch_norm.default
        assert writes == (route.inplace or route.reshapes), f"{overload}: declared in place {route.inplace}, its schema says {writes}"


def test_kernel_table_refuses_duplicates() -> None:
    kernel = Kernel("neg", "C", lambda _b, x: x)
    with pytest.raises(RegistryError, match=r"two kernels for neg\(C\)"):
        kernel_table([kernel, kernel])


def test_checks() -> None:
    check_finite(torch.tensor([1, 2]), "x")
    check_finite(torch.zeros(0), "x")
    with pytest.raises(InvalidInput, match=r"x: 1 of 4 values are NaN or infinite, the first at index \(1, 0\)"):
        check_finite(torch.tensor([[0, 1], [float("nan"), 2]]), "x")
    with pytest.raises(InvalidInput, match="got list"):
        check_plain([1.0], "x")
    with pytest.raises(InvalidInput, match="sparse"):
        check_plain(torch.eye(2).to_sparse(), "x")


def test_bad_calls_are_typed() -> None:
    with pytest.raises(UnknownTechnique, match="installed: "):
        protect(torch.ones(2), "nothing")
    with pytest.raises(InvalidInput, match=r"pt\.MPC"):
        protect(torch.ones(2), 3)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="plain values need no reveal"):
        reveal(torch.ones(2))
    with pytest.raises(ParameterError, match="release"):
        reveal(clear(torch.ones(2)), release=object())
    with pytest.raises(InvalidInput, match="protect first"):
        convert(torch.ones(2), "clear")
    with pytest.raises(MixedBackends, match="no bridge from 'toy' to 'clear'"):
        convert(protect(torch.ones(2), "toy"), "clear")


def test_importing_core_loads_no_backend_and_nothing_heavy() -> None:
    program = (
        "import sys, privtensors.core\n"
        "heavy = {'transformers', 'rich', 'sqlite3', 'hypothesis', 'pytest', 'privtensors.backends', 'privtensors.testing'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
