"""Errors of the core, printed with every local variable of every frame, show no protected value."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from privtensors.core import Session, convert, protect, reveal, save
from privtensors.core.meter import Reading
from privtensors.core.recorder import MemoryRecorder
from privtensors.errors import LedgerError, PrivTensorsError
from privtensors.testing.leaks import TEXTS, marked, shows_mark, traceback_text


@pytest.fixture(autouse=True)
def session() -> Iterator[Session]:
    with Session(recorder=MemoryRecorder()) as current:
        yield current


MISTAKES: dict[str, Callable[[Tensor], object]] = {
    "shapes": lambda x: x.view(1, 2) @ torch.zeros(3, 3),
    "reshape": lambda x: x.reshape(3),
    "no row": lambda x: torch.linalg.norm(x) + x.digamma(),
    "no kernel": lambda x: torch.zeros(3)[x.long()],
    "no technique": lambda x: convert(x, "nothing"),
    "no bridge": lambda x: convert(x, "toy"),
    "twice": lambda x: protect(x, "clear"),
    "release": lambda x: reveal(x, release=object()),
    "not a mapping of safetensors": lambda x: save("nowhere", {"x": x, "y": torch.zeros(2)}),  # type: ignore[dict-item]
    "no folder": lambda x: save("/nowhere/at/all", {"x": x}),  # type: ignore[dict-item]
    "other dtype": lambda x: torch.mm(x.view(1, 2), x.double().view(2, 1)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_errors_show_no_value(mistake: str) -> None:
    with pytest.raises(PrivTensorsError) as caught:
        MISTAKES[mistake](protect(marked(2), "clear"))
    assert not shows_mark(traceback_text(caught.value))


def test_a_ledger_that_fails_shows_no_value() -> None:
    class Full:
        def record(self, disclosure: object) -> None:
            raise LedgerError(f"disk full at {disclosure}", where="ledger")

    with pytest.raises(LedgerError) as caught:
        reveal(protect(marked(2), "clear"), session=Session(recorder=Full()))
    assert not shows_mark(traceback_text(caught.value))


def test_bookkeeping_shows_no_value(session: Session) -> None:
    x = protect(marked(2), "clear")
    with session.meter.scope() as scope:
        _ = (x * 2).sum()
    reveal(x)
    recorder = session.recorder
    assert isinstance(recorder, MemoryRecorder) and isinstance(scope.spent, Reading)
    for text in (repr(scope.spent), repr(recorder.entries), repr(vars(session)), repr(vars(x._state.backend))):
        assert not shows_mark(text)
    assert scope.spent.ops == {"mul": 1, "sum": 1}


def test_the_check_can_fail() -> None:
    for text in TEXTS.values():
        assert isinstance(text(protect(marked(2), "clear")), str)
    assert shows_mark(str(marked(2))) and shows_mark(repr(marked(2).tolist())) and shows_mark(f"{73.515625:.2e}")
    try:
        local = marked(2)
        raise ValueError("with a local")
    except ValueError as error:
        assert shows_mark(traceback_text(error)), local
