"""An optimizer step replaces the weights' masks: what is opened before and after does not reveal the update.

A mask that served twice would make the difference of two openings the update itself, which here is far smaller than the
ring: the attack below then reads it off.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from privtensors import MPC, protect
from privtensors.backends.mpc.backend import MPCBackend
from privtensors.backends.mpc.dealer import Dealer, Mask
from privtensors.core import Session
from privtensors.core.recorder import MemoryRecorder
from tests.unit.backends.mpc.uniformity import REJECT, p_values

SHAPE = (40, 60)


@pytest.fixture
def session() -> Iterator[Session]:
    with Session(recorder=MemoryRecorder()) as session:
        yield session


def openings(session: Session, optimizer: type[torch.optim.Optimizer], steps: int, **options: float) -> list[Tensor]:
    """The weight's opened words in the forward pass of every step; each step moves every entry by about 0.01."""
    weight = nn.Parameter(protect(torch.zeros(SHAPE), MPC(), owner="server"))
    stepper = optimizer([weight], lr=0.01, **options)
    backend = session.backend(MPC())
    assert isinstance(backend, MPCBackend)
    found: list[Tensor] = []
    for step in range(steps):
        x = protect(torch.randn(3, SHAPE[1], generator=torch.Generator().manual_seed(step)), MPC())
        stepper.zero_grad()
        torch.nn.functional.linear(x, weight).sum().backward()
        found.append(opened_words(weight))
        stepper.step()
    return found


def opened_words(weight: nn.Parameter) -> Tensor:
    """What both parties saw of the weight: the public words that products of it used."""
    payload = weight._state.payload
    candidates = [payload, payload._lifted] if payload._lifted is not None else [payload]
    wires = [p._wire for p in candidates if p._wire is not None]
    assert len(wires) == 1 and wires[0].ring == 64, "the forward pass opened the weight once, for all of its products"
    words: Tensor = wires[0].public
    return words


STEPPERS = {"sgd": (torch.optim.SGD, {}), "momentum": (torch.optim.SGD, {"momentum": 0.9}), "adamw": (torch.optim.AdamW, {})}


@pytest.mark.parametrize("name", STEPPERS)
def test_openings_before_and_after_a_step_differ_uniformly(session: Session, name: str) -> None:
    optimizer, options = STEPPERS[name]
    found = openings(session, optimizer, 3, **options)
    for i, first in enumerate(found):
        for second in found[:i]:
            assert min(p_values(first - second, 64)) > REJECT


def test_forward_and_backward_share_one_opening(session: Session) -> None:
    weight = nn.Parameter(protect(torch.randn(SHAPE), MPC(), owner="server"))
    x = nn.Parameter(protect(torch.randn(3, SHAPE[1]), MPC()))
    with session.meter.scope() as forward:
        out = torch.nn.functional.linear(x, weight)
    with session.meter.scope() as backward:
        out.sum().backward()
    words = 3 * SHAPE[0]  # of the gradient that arrives: nothing else is opened on the way back
    assert forward.spent.bytes_sent == 8 * (weight.numel() + x.numel())
    assert backward.spent.bytes_sent <= 2 * 8 * words


def test_the_attack_finds_an_update_under_a_mask_used_twice(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same check, against a dealer that hands out one mask for the weight for ever: it must fail, and the update can be read."""
    kept: list[Mask] = []
    real = Dealer.mask

    def careless(self: Dealer, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> Mask:
        if tuple(shape) != SHAPE:
            return real(self, shape, dtype)
        if not kept:
            kept.append(real(self, shape, dtype))
        return kept[0]

    monkeypatch.setattr(Dealer, "mask", careless)
    first, second = openings(session, torch.optim.SGD, 2)
    assert min(p_values(second - first, 64)) < REJECT
    assert 0.0 < float((second - first).abs().max()) / 2**18 < 1.0, "the difference is the update, in plain"
