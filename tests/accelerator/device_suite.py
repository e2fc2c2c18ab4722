"""The mpc backend's conformance suite, and models of four families, on the device that PRIVTENSORS_TEST_DEVICE names.

``make test-device DEVICE=cuda`` runs it; the default tests run it on the emulated device (``test_emulated.py``).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import privtensors as pt
from privtensors.backends.mpc.protocols.products import matmul_by_limbs
from privtensors.backends.mpc.technique import MPC
from privtensors.core.recorder import MemoryRecorder
from privtensors.core.session import Session
from tests.accelerator import emulated
from tests.unit.backends.mpc.roles import Role, apart, same_as_one_process, together
from tests.unit.backends.test_mpc import TestMPC as _MPC

DEVICE = os.environ["PRIVTENSORS_TEST_DEVICE"]
_REGISTERED = emulated.register() if DEVICE == emulated.NAME else []


class TestMPCOnADevice(_MPC):
    device = DEVICE
    examples = 5 if DEVICE == emulated.NAME else 40

    def test_shares_are_on_the_device(self, technique: Any, session: Session) -> None:
        x = pt.protect(torch.ones(1, 3), technique)
        y = torch.nn.functional.gelu(x @ pt.protect(torch.eye(3), technique))
        for z in (x, y):
            assert isinstance(z, pt.SafeTensor) and z._state.payload.data.device.type == torch.device(DEVICE).type  # type: ignore[attr-defined]
            assert z.device.type == pt.reveal(z).device.type == "cpu"


def test_products_are_exact_on_the_device() -> None:
    x, y = torch.randint(-(1 << 62), 1 << 62, (2, 7, 1500)), torch.randint(-(1 << 62), 1 << 62, (2, 1500, 5))
    assert torch.equal(matmul_by_limbs(x.to(DEVICE), y.to(DEVICE)).cpu(), x @ y)


def _bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(
        BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
    )


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=32, n_embd=32, n_layer=1, n_head=2))


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, max_position_embeddings=32))


@pytest.mark.parametrize("make", [_bert, _gpt2, _llama])
@pytest.mark.parametrize("technique", [MPC(), MPC(embeddings="server"), MPC(ranges="checked")], ids=["client", "server", "checked"])
def test_models(make: Callable[[], nn.Module], technique: MPC) -> None:
    torch.manual_seed(0)
    model = make().eval()
    ids = torch.randint(3, 50, (2, 6))
    private = pt.wrap(model, pt.Policy(infer=[technique]), session=Session(recorder=MemoryRecorder(), device=DEVICE), progress=False)
    with torch.no_grad():
        torch.testing.assert_close(private(input_ids=ids).logits, model(input_ids=ids).logits, rtol=0, atol=2e-2)


def test_training() -> None:
    with Session(recorder=MemoryRecorder(), device=DEVICE):
        torch.manual_seed(0)
        x, y = torch.randn(16, 5), torch.randint(0, 2, (16,))
        plain = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))
        private = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))
        for name, p in plain.named_parameters():
            owner, _, leaf = name.rpartition(".")
            setattr(private.get_submodule(owner), leaf, nn.Parameter(pt.protect(p.detach().clone(), MPC())))
        for model, inputs, labels in ((plain, x, y), (private, pt.protect(x, MPC()), pt.protect(y, MPC()))):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            for _ in range(3):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs), labels).backward()
                optimizer.step()
        for p, q in zip(plain.parameters(), private.parameters(), strict=True):
            torch.testing.assert_close(pt.reveal(q.detach()), p.detach(), rtol=0, atol=2e-3)


@pytest.mark.parametrize("devices", [(None, DEVICE), (DEVICE, None), (DEVICE, DEVICE)], ids=["server", "client", "both"])
def test_parties_on_unlike_devices_agree_word_for_word(devices: tuple[str | None, str | None]) -> None:
    """What both compute from opened words must not depend on the device, or their shares add up to noise."""
    torch.manual_seed(0)
    x, w = torch.randn(2, 8, 16), torch.randn(16, 16) / 4

    def job(role: Role) -> list[torch.Tensor]:
        a, b = role.protect(x, "client"), role.protect(w, "server")
        F = nn.functional
        heads = (a @ b).view(2, 1, 8, 16)
        outs = (F.gelu(a @ b), F.layer_norm(a, (16,)), F.scaled_dot_product_attention(heads, heads, heads), (a * a).sqrt(), a.argmax(-1))
        return [role.reveal(y, "client") for y in outs]

    expected, meter = together(job)
    found = apart(job, devices=tuple(None if d is None else torch.device(d) for d in devices))
    same_as_one_process(expected, meter, found)
