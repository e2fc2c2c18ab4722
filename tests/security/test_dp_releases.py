"""A differentially private tensor leaves with noise only, and never without being charged."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import privtensors as pt
from privtensors.accounting import Account, Accounts
from privtensors.core.safetensor import reveal_outputs
from privtensors.errors import LedgerError, ParameterError, PrivTensorsError, UnsupportedOp
from privtensors.testing.leaks import MARK, TEXTS, WAYS_OUT, marked, shows_mark, traceback_text

TECHNIQUE = pt.DP(unit="row", dataset="table", bounds=(-100, 100))
QUIET = pt.Gaussian(std=1.0)


@pytest.fixture
def ledger(tmp_path: Path) -> pt.Ledger:
    return pt.Ledger(tmp_path / "ledger.sqlite")


@pytest.fixture
def session(ledger: pt.Ledger) -> Iterator[pt.Session]:
    with pt.Session(recorder=ledger) as session:
        yield session


def total() -> Tensor:
    """A sum of two entries, each of which is the mark."""
    return pt.protect(torch.stack([marked(2), torch.zeros(2)]), TECHNIQUE).sum(0)


@pytest.mark.parametrize("way", WAYS_OUT)
@pytest.mark.filterwarnings("ignore")
def test_an_aggregate_has_no_other_way_out(session: pt.Session, ledger: pt.Ledger, way: str) -> None:
    x = total()
    with pytest.raises(PrivTensorsError) as caught:
        WAYS_OUT[way](x)
    assert not shows_mark(traceback_text(caught.value)) and not ledger.entries()


@pytest.mark.parametrize("text", TEXTS)
def test_no_text_of_an_aggregate_shows_it(session: pt.Session, text: str) -> None:
    assert not shows_mark(TEXTS[text](total()))


def test_what_gives_outputs_of_a_model_gives_none_of_these(session: pt.Session, ledger: pt.Ledger) -> None:
    with pytest.raises(ParameterError, match="release mechanism"):
        reveal_outputs({"logits": total()}, to="client")
    assert not ledger.entries()


# What has no sensitivity that holds for all data: refused by name, with what to do instead.
REFUSED: tuple[Callable[[Tensor], object], ...] = (
    lambda x: x - x.mean(0),
    lambda x: x + x.flip(0),
    lambda x: x.softmax(0),
    lambda x: x.amax(0),
    lambda x: x @ x.T,
    lambda x: torch.bmm(x.unsqueeze(0), x.T.unsqueeze(0)),
    lambda x: x.unsqueeze(0) + x.unsqueeze(1),
    lambda x: x.sum(0) * x.sum(0),
    lambda x: x.sum(0) / x.sum(),
    lambda x: torch.addcmul(x.sum(0), x.sum(0), x.sum(0)),
    lambda x: torch.bincount(x[:, 0].long()),
    lambda x: torch.histc(x),
    lambda x: torch.histc(x, 10),
    lambda x: x.std(0),
    lambda x: x.sort(0),
    lambda x: x.median(),
)
BROKEN: tuple[Callable[[Tensor], object], ...] = (
    lambda x: x.reshape(1, -1) @ torch.ones(3, 3),
    lambda x: x + torch.ones(7),
    lambda x: torch.bmm(x.unsqueeze(0), torch.ones(2, 2, 2)),
    lambda x: torch.addcmul(x, x, torch.ones(5)),
    lambda x: x.reciprocal(),
    lambda x: x.sum(0) / 0.0,
    lambda x: x.sum(0) + float("nan"),
    lambda x: x[torch.tensor([9])],
)


@pytest.mark.parametrize("job", REFUSED + BROKEN)
def test_errors_hold_no_value_and_say_what_to_do(session: pt.Session, job: Callable[[Tensor], object]) -> None:
    x = pt.protect(marked(2, 2), TECHNIQUE)
    with pytest.raises(UnsupportedOp if job in REFUSED else PrivTensorsError) as caught:
        job(x)
    assert caught.value.fix and not shows_mark(traceback_text(caught.value))


@pytest.mark.parametrize("step", ["reserve", "record", "draw", "settle"])
def test_whatever_fails_nothing_leaves_and_nothing_is_forgotten(
    session: pt.Session, ledger: pt.Ledger, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    from privtensors.backends.dp.mechanism import Plan

    def fail(*_args: object, **_kwargs: object) -> None:
        raise LedgerError("disk full", where="test")  # its frame, like the real one's, holds what it was given

    where = {"reserve": (Accounts, "reserve"), "record": (pt.Ledger, "record"), "draw": (Plan, "draw"), "settle": (Accounts, "settle")}
    x = total()
    with monkeypatch.context() as patch, pytest.raises(LedgerError) as caught:
        patch.setattr(*where[step], fail)
        pt.reveal(x, release=QUIET)
    assert not shows_mark(traceback_text(caught.value))
    statement = Accounts(ledger).statement(Account("table", "row"))
    assert len(statement.open) == (0 if step == "reserve" else 1), "a release that may have happened counts in full"
    pt.reveal(x, release=QUIET)
    ledger.verify()


def test_noise_cannot_be_seeded(session: pt.Session) -> None:
    x, seen = total(), []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        seen.append(pt.reveal(x, release=QUIET))
    assert not torch.equal(*seen)
    with pt.Session(recorder=session.recorder):
        assert not torch.equal(seen[0], pt.reveal(total(), release=QUIET))


@pytest.mark.parametrize("release", [pt.Gaussian(std=0.7), pt.Laplace(scale=0.7)])
def test_which_numbers_can_come_out_does_not_depend_on_the_data(session: pt.Session, release: pt.Gaussian | pt.Laplace) -> None:
    """Mironov 2012: naive floating-point noise tells neighbours apart by the numbers that it can reach."""
    grids = []
    for value in (0.0, 1 / 3, MARK, 1e-7):
        x = pt.protect(torch.full((50, 4), value, dtype=torch.float64), TECHNIQUE)
        out = pt.reveal(x.sum(0), release=release).numpy()
        exponents = [k for k in range(10, 60) if (out * 2.0**k == np.round(out * 2.0**k)).all()]
        grids.append(min(exponents))
    assert max(grids) <= 31 and min(grids) > 15  # all multiples of one power of two, chosen by the scale alone


def test_values_stay_out_of_the_ledger(session: pt.Session, ledger: pt.Ledger) -> None:
    pt.reveal(total(), release=QUIET)
    assert not any(shows_mark(row.body_json) for row in ledger.entries())


def test_sensitivity_is_a_public_fact(session: pt.Session) -> None:
    """Two tables of one shape get the same noise, whatever is in them."""
    zeros, ones = (pt.protect(torch.full((6, 3), v), TECHNIQUE) for v in (0.0, 99.0))
    for job in (lambda x: x.sum(0), lambda x: x.T @ x, lambda x: torch.histc(x, 3, 0.0, 1.0), lambda x: x.relu().mean()):
        a, b = (job(x)._state.payload for x in (zeros, ones))
        assert (a.l1, a.l2) == (b.l1, b.l2) and torch.equal(a.each, b.each) and torch.equal(a.peak, b.peak)
