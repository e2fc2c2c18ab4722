"""Under ``outputs="argmax"`` nothing but the index is opened: what crosses the wire in the protocol and in a wrapped model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from privtensors import MPC, Policy, Session, wrap
from privtensors.backends.mpc.backend import MPCBackend
from privtensors.backends.mpc.dealer import Dealer, Mask
from privtensors.backends.mpc.hidden import Hidden
from privtensors.backends.mpc.protocols.argmax import argmax
from privtensors.core.recorder import MemoryRecorder
from privtensors.core.safetensor import SafeTensor
from privtensors.policy.assets import Asset
from privtensors.policy.forms import LargestIndex, Plaintext
from privtensors.transport.base import Message
from privtensors.transport.memory import MemoryChannel
from tests.unit.backends.mpc.harness import Lab, Tape
from tests.unit.backends.mpc.uniformity import findings, skew
from tests.unit.hf.tiny import build, inputs_for

SHAPE = (24, 150)
INPUTS = {
    "zeros": torch.zeros(SHAPE),
    "the last wins": torch.linspace(-100, 100, SHAPE[1]).expand(SHAPE).contiguous(),
    "one stands out": torch.eye(*SHAPE) * 30,
}


def record(x: Tensor, number: int) -> list[Any]:
    tape = Tape()
    lab = Lab(tape.channel(), number=number)
    lab.run(argmax(lab.rt, lab.share(x)))
    return tape.messages


def test_messages_are_uniform_and_their_sizes_say_nothing() -> None:
    tapes = [record(x, number) for number, x in enumerate(INPUTS.values(), 1)]
    plans = [[(tuple(m.words.shape), m.bits) for m in tape] for tape in tapes]
    assert plans[0] == plans[1] == plans[2] and plans[0]
    found, values = findings([m for tape in tapes for m in tape])
    assert not found
    assert skew(values) < 2.5


@pytest.mark.parametrize("method", ["mask", "xor_mask"])
def test_an_opening_without_its_mask_is_caught(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    def none(self: Dealer, shape: tuple[int, ...], dtype: torch.dtype = torch.int64, bits: int | None = None) -> Mask:
        return Mask(torch.zeros(2, *shape, dtype=dtype), Hidden(value=torch.zeros(shape, dtype=dtype)))

    monkeypatch.setattr(Dealer, method, none)
    assert findings([m for number in (1, 2) for m in record(INPUTS["one stands out"], number)])[0]


def opened_to_one_party(model: Any, run: Callable[[Any], Any]) -> tuple[Any, list[Message], list[Message], Any]:
    """Result, messages meant for one party only, all messages, and the private model."""
    seen: list[Message] = []
    with Session(recorder=MemoryRecorder()) as session:
        backend = session.backend(MPC())
        assert isinstance(backend, MPCBackend)
        private = wrap(model, Policy(infer=[MPC()], outputs="argmax"))
        backend.runtime.channel = MemoryChannel(observe=seen.append)
        result = run(private)
    return result, [m for m in seen if m.receiver is not None], seen, private


@pytest.mark.parametrize("name", ["bert", "bert-qa", "gpt2", "vit"])
def test_a_model_opens_the_index_and_nothing_else(name: str) -> None:
    model, inputs = build(name), inputs_for(name)
    inputs.pop("attention_mask", None)
    output, to_one, everything, private = opened_to_one_party(model, lambda private: private(**inputs))
    found = {key: value for key, value in output.items() if key.endswith("predictions")}
    with torch.no_grad():
        plain = model(**inputs)
    for key, value in found.items():
        logits = plain[key.replace("predictions", "logits")]
        assert torch.equal(value, (logits[:, -1] if name == "gpt2" else logits).argmax(-1))
    # One message per index, meant for the client alone, and what it opens to is the index.
    assert [m.receiver for m in to_one] == [0] * len(found) and len(found) == (2 if name == "bert-qa" else 1)
    for message, value in zip(to_one, found.values(), strict=True):
        assert torch.equal(message.words[0] + message.words[1], value)
    # Everything else went to both parties, under masks: as many bits as its ring, and no logit among them.
    logits = [x for key, x in plain.items() if key.endswith("logits")]
    secrets = {int(w) for x in logits for bits in (16, 18) for w in torch.round(x.double() * 2**bits).flatten() if abs(int(w)) > 1000}
    for message in everything:
        if message.bits == 64 and message.receiver is None:
            assert not secrets & set((message.words[0] + message.words[1]).flatten().tolist())
    assert all(isinstance(value, SafeTensor) for key, value in output.items() if isinstance(value, Tensor) and key not in found)
    said = private.explain().view("client")[Asset.OUTPUTS]
    assert LargestIndex() in said and Plaintext() not in said


def test_generation_opens_one_index_per_step() -> None:
    model = build("llama")
    ids = torch.tensor([[5, 17, 33]])
    tokens, to_one, _, private = opened_to_one_party(model, lambda private: private.generate(ids, max_new_tokens=4, do_sample=False))
    assert len(to_one) == 4 and all(m.words.shape == (2, 1) for m in to_one)
    assert [int((m.words[0] + m.words[1])[0]) for m in to_one] == tokens[0, 3:].tolist()
    (kind,) = {(entry.label, entry.shape, entry.dtype) for entry in private.session.recorder.entries}
    assert kind == ("predictions", (1,), "int64")
    assert "generate reveals the index of the largest logit of every step to client" in str(private.explain())
