"""Checked ranges: what is told, to whom, and what it costs."""

from __future__ import annotations

import contextlib
import itertools
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import privtensors as pt
from privtensors.backends.mpc.backend import MPCBackend
from privtensors.backends.mpc.costs import CUT_FRAC, RANGE_BITS
from privtensors.backends.mpc.dealer import Dealer
from privtensors.backends.mpc.protocols.arithmetic import open_wire
from privtensors.backends.mpc.protocols.ranges import added_by_comparison, verdict, verdict_cost, watch_bits, watch_interval
from privtensors.backends.mpc.runtime import Protocol, Runtime
from privtensors.backends.mpc.shares import Shares
from privtensors.backends.mpc.watch import Watch, parity
from privtensors.core.kernel import Cost
from privtensors.core.meter import Meter
from privtensors.core.recorder import MemoryRecorder
from privtensors.core.safetensor import SafeTensor, State
from privtensors.errors import ParameterError, RangeExceeded
from privtensors.policy.forms import Plaintext
from privtensors.transport.memory import MemoryChannel
from tests.unit.backends.mpc.harness import JunkChannel, Lab, Tape, seed
from tests.unit.backends.mpc.roles import Role, apart, together
from tests.unit.backends.mpc.uniformity import findings

CHECKED = types.SimpleNamespace(name="mpc", backend="mpc", fractional_bits=18, ranges="checked", diagnose=False)
DIAGNOSED = types.SimpleNamespace(**{**vars(CHECKED), "diagnose": True})

# A function, and one element that leaves its range.
LEAVES: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "gelu": (F.gelu, 8193.0),
    "silu": (F.silu, -8193.0),
    "tanh": (torch.tanh, -9000.0),
    "sigmoid": (torch.sigmoid, 2.0**17),
    "softplus": (F.softplus, 8200.0),
    "exp": (torch.exp, 9.0),
    "softmax": (lambda t: t.softmax(-1), 300.0),
    "layer norm, large": (lambda t: F.layer_norm(t, (8,)), 2000.0),
    "rsqrt": (lambda t: torch.rsqrt(t + 10), 40000.0),
    "rsqrt of a negative number": (lambda t: torch.rsqrt(t + 10), -20.0),
    "reciprocal": (lambda t: 1 / (t + 10), -10.0),
    "relu of a sum": (lambda t: torch.relu(t * 4), 2.0**17),
    "attention": (lambda t: F.scaled_dot_product_attention(t.view(1, 1, 4, 8), t.view(1, 1, 4, 8), t.view(1, 1, 4, 8)), 40.0),
}
STAYS: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: run for name, (run, _) in LEAVES.items()},
    "relu": torch.relu,
    "gt": lambda t: t.gt(0.5),
    "clamp": lambda t: t.clamp(-1, 2),
    "amax": lambda t: t.amax(-1),
    "argmax": lambda t: t.argmax(-1),
    "matmul": lambda t: t @ t.T,
    "sqrt": lambda t: (t + 10).sqrt(),
}


def sample() -> Tensor:
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(5))


def opened(role: Role, x: Tensor, to: str = "client") -> Tensor:
    assert isinstance(x, SafeTensor)
    return role.reveal(x, to)


def revealed(run: Callable[[Tensor], Tensor], x: Tensor, technique: Any = CHECKED) -> Tensor:
    meter = Meter()
    role = Role(MPCBackend(technique, meter, dealer=Dealer(meter, (seed(1), seed(2)), (seed(3), seed(4)))), meter)
    return opened(role, run(role.protect(x, "client")))


@pytest.mark.parametrize("name", list(STAYS))
def test_values_in_range_pass_with_the_same_results(name: str) -> None:
    plain = types.SimpleNamespace(fractional_bits=18)
    one, other = (revealed(STAYS[name], sample(), technique) for technique in (CHECKED, plain))
    assert float((one.double() - other.double()).abs().max()) <= 1e-2


@pytest.mark.parametrize("name", list(LEAVES))
def test_one_value_out_of_range_withholds_the_result(name: str) -> None:
    run, bad = LEAVES[name]
    x = sample()
    x[1, 2] = bad
    with pytest.raises(RangeExceeded, match="a value left its range, so the result is withheld") as told:
        revealed(run, x)
    assert str(bad) not in str(told.value)


def test_entries_that_are_masked_out_are_not_looked_at() -> None:
    """A masked key may have any score, and a row without any key is no row out of range."""
    q = torch.randn(1, 1, 4, 8, generator=torch.Generator().manual_seed(7))
    k = q.clone()
    k[0, 0, 3] *= 200.0
    keep = torch.ones(4, 4, dtype=torch.bool)
    keep[:, 3] = keep[1] = False

    def attended(t: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(t[0], t[1], t[0], attn_mask=keep)

    want = attended(torch.stack([q, k])).nan_to_num()
    assert float((revealed(attended, torch.stack([q, k])) - want).abs().max()) <= 1e-2
    with pytest.raises(RangeExceeded):
        revealed(lambda t: F.scaled_dot_product_attention(t[0], t[1], t[0]), torch.stack([q, 20 * k]))


@pytest.mark.parametrize("name", ["gelu", "relu", "softmax", "layer norm, large", "gt"])
def test_nothing_at_all_is_in_range(name: str) -> None:
    assert revealed(STAYS[name], torch.zeros(0, 8)).shape == (0, 8)


def test_without_checks_nobody_is_told() -> None:
    x = sample()
    x[1, 2] = 9000.0
    assert revealed(F.gelu, x, types.SimpleNamespace(fractional_bits=18)).shape == x.shape


def flagged(words: list[int], low: int, high: int, ring: int = 64, *, channel: Any = None) -> list[bool]:
    """Whether each of ``words`` on its own is told to leave [low, high)."""
    out = []
    for number, word in enumerate(words):
        lab = Lab(channel, number=number + 1)
        lab.rt.watch = Watch(False)
        x = lab.words(torch.tensor([word]), 0, ring)

        def protocol(rt: Runtime, x: Shares = x) -> Protocol[Tensor]:
            wire = yield from open_wire(rt, x)
            watch_interval(rt, wire.public, wire.mask, ring, low, high)
            return (yield from verdict(rt))

        flags = lab.run(protocol(lab.rt))
        out.append(bool((flags[0] ^ flags[1]).any()))
    return out


@pytest.mark.parametrize(
    ("low", "high", "ring"),
    [(-(1 << 31), 1 << 31, 64), (-5000, 100, 20), (0, 1 << 19, 20), (-(1 << 33) + 77, (1 << 33) - 99, 41), (-37, 64, 64), (-64, 0, 12)],
)
def test_limits_of_an_interval(low: int, high: int, ring: int) -> None:
    """Outside always told, two units inside never; the units are 1/17 of the interval or less."""
    unit = (high - low) // 17
    top = min(1 << (ring - 1), (high - low) << 25)
    outside = [w for w in (low - 1, high, high + unit, low - 3 * unit, high + 5 * unit, top - 1, -top) if -top <= w < top]
    outside = [w for w in outside if not low <= w < high]
    inside = [low + 2 * unit, high - 2 * unit - 1, (low + high) // 2, (2 * low + high) // 3]
    for channel in (None, JunkChannel(3)):
        assert all(flagged(outside * 3, low, high, ring, channel=channel))
        assert not any(flagged(inside * 6, low, high, ring, channel=channel))


def test_a_ring_without_room_beyond_the_interval_has_nothing_to_check() -> None:
    lab = Lab()
    lab.rt.watch = Watch(False)
    wire = lab.run(open_wire(lab.rt, lab.words(torch.tensor([5]), 0, 12)))
    watch_interval(lab.rt, wire.public, wire.mask, 12, -2048, 2048)
    assert not lab.rt.watch.findings


@pytest.mark.parametrize(("dtype", "bits"), [(torch.int8, 1), (torch.int8, 2), (torch.int32, 32), (torch.int64, 64)])
@pytest.mark.parametrize("count", [1, 7, 33, 40_001])
def test_one_bit_among_many_is_found(dtype: torch.dtype, bits: int, count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    mask = torch.randint(-(1 << 62), 1 << 62, (count,), generator=generator).to(dtype)
    for place, bit in itertools.product({0, count // 2, count - 1}, {0, bits - 1}):
        watch = Watch(False)
        watch.stir(mask, 64)
        watch.absorb(torch.stack([mask, mask]), bits)
        assert not (watch.findings[0].word[0] ^ watch.findings[0].word[1]).item()
        other = mask.clone()
        other[place] ^= torch.ones((), dtype=dtype) << bit
        watch.absorb(torch.stack([mask, other]), bits)
        (found,) = watch.take()
        assert (found.word[0] ^ found.word[1]).item()


def test_the_same_value_out_of_range_twice_does_not_cancel() -> None:
    lab = Lab()
    lab.rt.watch = Watch(False)
    wire = lab.run(open_wire(lab.rt, lab.share(torch.tensor([100.0]))))
    for _ in range(2):
        watch_interval(lab.rt, wire.public, wire.mask, 64, -(1 << 20), 1 << 20)
    watch_bits(lab.rt, torch.ones(2, 1, dtype=torch.int8))
    (found,) = lab.rt.watch.take()
    assert (found.word[0] ^ found.word[1]).item()


def test_parity() -> None:
    words = torch.tensor([0, 1, 3, -1, -(1 << 63), 7 << 40])
    assert parity(words).tolist() == [bin(int(w) & ((1 << 64) - 1)).count("1") & 1 for w in words]


def test_nothing_accumulates() -> None:
    """However much is checked and never revealed: one word per party."""
    meter = Meter()
    backend = MPCBackend(CHECKED, meter)
    x = SafeTensor(State(backend.protect(torch.ones(50, 40), owner="client"), backend, "client"))
    for _ in range(3):
        F.gelu(x)
    assert backend.runtime.watch is not None
    assert [f.word.shape for f in backend.runtime.watch.findings] == [(2,)]


def test_a_reveal_ends_what_is_told() -> None:
    meter = Meter()
    role = Role(MPCBackend(CHECKED, meter), meter)
    bad = F.gelu(role.protect(torch.tensor([9000.0, 1.0]), "client"))
    good = F.gelu(role.protect(torch.tensor([2.0, 1.0]), "client"))
    with pytest.raises(RangeExceeded):
        opened(role, bad)
    assert opened(role, good).shape == (2,)


def answers(x: Tensor, to: str = "client") -> Callable[[Role], Any]:
    def job(role: Role) -> Any:
        w = role.protect(torch.randn(8, 4, generator=torch.Generator().manual_seed(6)), "server")
        h = F.layer_norm(F.gelu(role.protect(x, "client") @ w), (4,)).softmax(-1)
        try:
            return opened(role, h, to)
        except RangeExceeded as error:
            return str(error)

    return job


@pytest.mark.parametrize("technique", [CHECKED, DIAGNOSED], ids=["one bit", "diagnose"])
@pytest.mark.parametrize("to", ["client", "server"])
def test_three_roles_tell_the_receiver_only(technique: Any, to: str) -> None:
    good, bad = sample(), sample()
    bad[0, 7] = 20_000.0
    other = "server" if to == "client" else "client"
    rounds = set()
    for x in (good, bad):
        expected, meter = together(answers(x, to), technique)
        outcome = apart(answers(x, to), technique)
        assert isinstance(outcome.results[other], Tensor) and not outcome.results[other].any()
        if x is good:
            assert torch.equal(outcome.results[to], expected)
        else:
            assert outcome.results[to] == expected
            assert "in activate" in expected if technique.diagnose else "in " not in expected.split("range")[1].split(",")[0]
        figures = [(outcome.meters[r].rounds, outcome.meters[r].bytes_sent) for r in ("client", "server", "dealer")]
        assert set(figures) == {(meter.rounds, meter.bytes_sent)}
        rounds.add(figures[0])
    assert len(rounds) == 1  # neither number nor size of messages depends on what was told


def test_what_is_opened_is_uniform_whether_in_range_or_not() -> None:
    """Also what the receiver gets: 64 bits that are uniform where something left its range, and zero where nothing did."""
    for x in (sample(), sample() + 9000.0):
        tape = Tape()
        for number in range(12):
            meter = Meter()
            dealer = Dealer(meter, (seed(10 + number), seed(40 + number)), (seed(70 + number), seed(100 + number)))
            role = Role(MPCBackend(CHECKED, meter, channel=tape.channel(), dealer=dealer), meter)
            y = F.gelu(role.protect(x.repeat(8, 8), "client"))
            with contextlib.suppress(RangeExceeded):
                opened(role, y)
        found, _ = findings(tape.messages[-3:-1], pairs=False)  # the word under its mask, and the verdict
        assert not [f for f in found if f.what == "message" and f.bits == 64]
        verdicts = [m.words[0] ^ m.words[1] for m in tape.messages if m.bits == 1 and m.words.shape == (2, 1, 64)]
        ones = float(torch.stack([v & 1 for v in verdicts]).double().mean())
        assert ones == 0 if x[0, 0] < 100 else 0.4 < ones < 0.6


def spent(run: Callable[[Tensor], Tensor], technique: Any) -> Cost:
    meter = Meter()
    role = Role(MPCBackend(technique, meter, channel=MemoryChannel()), meter)
    opened(role, run(role.protect(sample(), "client")))
    return Cost(meter.rounds, meter.bytes_sent)


@pytest.mark.parametrize(
    ("name", "added"),
    [
        ("gelu", Cost()),
        ("relu", Cost()),
        ("clamp", Cost()),
        ("matmul", Cost()),
        ("gt", added_by_comparison(32, 18 + RANGE_BITS + 1)),
        ("sigmoid", Cost(0, 32 * (8 - 2 - 3))),  # one whole word in place of 16 bits for the comparison, 20 for the series
    ],
)
def test_what_checking_costs(name: str, added: Cost) -> None:
    assert CUT_FRAC < 18
    assert spent(STAYS[name], CHECKED) == spent(STAYS[name], types.SimpleNamespace(fractional_bits=18)) + added + verdict_cost()


def test_diagnosing_needs_checks() -> None:
    with pytest.raises(ParameterError, match="needs checked ranges"):
        pt.MPC(diagnose=True)
    with pytest.raises(ParameterError):
        pt.MPC(ranges="always")  # type: ignore[arg-type]


def test_explain_says_who_is_told_what() -> None:
    asset = "whether a value left its range"
    with pt.Session(recorder=MemoryRecorder()):
        silent = pt.Policy(infer=[pt.MPC()]).explain()
        one = pt.Policy(infer=[pt.MPC(ranges="checked")]).explain()
        each = pt.Policy(infer=[pt.MPC(ranges="checked", diagnose=True)], receiver="server").explain()
    assert asset not in str(silent)
    for said, receiver in ((one, "client"), (each, "server")):
        assert said.view(receiver)[asset] == {Plaintext()}
        assert not any(said.view(party)[asset] for party in {"client", "server", "dealer"} - {receiver})
    assert "one bit per forward" in " ".join(str(one).split()) and "in which layer" in " ".join(str(each).split())
