"""Stock models on the reference backend give the plain model's values, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from privtensors.core import SafeTensor, Session, protect, reveal
from privtensors.core.recorder import MemoryRecorder


@pytest.fixture(autouse=True)
def session() -> Iterator[Session]:
    with Session(recorder=MemoryRecorder()) as current:
        yield current


def protect_model(model: nn.Module) -> nn.Module:
    """Replace every parameter by a protected one; embedding tables stay with the client, who protects the rows it looked up."""

    def rows(_module: nn.Module, _inputs: Any, out: Tensor) -> Tensor:
        return protect(out, "clear")

    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.register_forward_hook(rows)
            continue
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = nn.Parameter(protect(parameter, "clear"), requires_grad=parameter.requires_grad)
    return model


TINY: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TEXT = {
    "Bert": ("BertForSequenceClassification", {**TINY, "vocab_size": 100}),
    "DistilBert": ("DistilBertForSequenceClassification", {"vocab_size": 100, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}),
    "Roberta": ("RobertaForSequenceClassification", {**TINY, "vocab_size": 100}),
    "GPT2": ("GPT2LMHeadModel", {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4}),
    "Llama": ("LlamaForCausalLM", {**TINY, "vocab_size": 100}),
}
VISION = {
    "ViT": ("ViTForImageClassification", {**TINY, "image_size": 32, "patch_size": 8}),
    "MobileNetV2": ("MobileNetV2ForImageClassification", {"image_size": 32, "depth_multiplier": 0.35}),
    "ResNet": ("ResNetForImageClassification", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}),
}


def build(family: str, name: str, options: dict[str, Any]) -> nn.Module:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**options)
    model: nn.Module = getattr(transformers, name)(config).eval()
    return model


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("family", TEXT)
def test_text_models(family: str, padded: bool) -> None:
    model = build(family, *TEXT[family])
    ids = torch.randint(5, 100, (2, 7))
    inputs = {"input_ids": ids}
    if padded:
        mask = torch.ones(2, 7, dtype=torch.long)
        mask[1, 5:] = 0
        inputs["attention_mask"] = mask
    with torch.no_grad():
        plain = model(**inputs).logits
        logits = protect_model(model)(**inputs).logits
    assert isinstance(logits, SafeTensor)
    torch.testing.assert_close(reveal(logits), plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", VISION)
def test_vision_models(family: str) -> None:
    model = build(family, *VISION[family])
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        plain = model(pixel_values=pixels).logits
        logits = protect_model(model)(pixel_values=protect(pixels, "clear")).logits
    assert isinstance(logits, SafeTensor)
    torch.testing.assert_close(reveal(logits), plain, rtol=1e-5, atol=1e-6)


def _gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    out = model(x)
    out = out[0] if isinstance(out, tuple) else out
    (out * out).sum().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


class Block(nn.Module):
    """Attention, layer norm and activations as they stand in torch.nn."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.norm = nn.Linear(16, 48), nn.Linear(16, 16), nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.view(2, 5, 4, 4).transpose(1, 2) for t in self.qkv(x).split(16, -1))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 5, 16)
        return self.norm(x + self.out(mixed))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(16, 3),
        lambda: nn.Sequential(nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 2), nn.Tanh()),
        lambda: nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 8), nn.Sigmoid(), nn.Softmax(-1)),
        lambda: nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 4), nn.Hardtanh(-0.5, 0.25)),
        Block,
    ],
    ids=["linear", "smooth", "clipped", "normalised", "attention"],
)
def test_backward(make: Any) -> None:
    torch.manual_seed(0)
    model = make()
    x = torch.randn(2, 5, 16)
    plain = [g.clone() for g in _gradients(model, x)]
    for p in model.parameters():
        p.grad = None
    grads = _gradients(protect_model(model), protect(x, "clear"))
    assert len(grads) == len(plain) > 0
    for got, want in zip(grads, plain, strict=True):
        assert isinstance(got, SafeTensor)
        torch.testing.assert_close(reveal(got), want, rtol=1e-5, atol=1e-6)


def test_gradients_accumulate_and_sgd_steps() -> None:
    torch.manual_seed(0)
    x, plain, model = torch.randn(4, 16), nn.Linear(16, 3), nn.Linear(16, 3)
    model.load_state_dict(plain.state_dict())
    protect_model(model)
    safe = protect(x, "clear")
    for net, data in ((plain, x), (model, safe)):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            for _ in range(2):
                out = net(data)
                (out * out).mean().backward()
            optimizer.step()
    weight = model.weight
    assert isinstance(weight, SafeTensor) and isinstance(weight, nn.Parameter)
    torch.testing.assert_close(reveal(weight), plain.weight.detach(), rtol=1e-5, atol=1e-6)


def test_inplace_activation_after_linear() -> None:
    """The output of a linear layer on three dimensions is a view of a matrix product; writing into it must work."""
    net = nn.Sequential(nn.Linear(16, 8), nn.ReLU(inplace=True), nn.Linear(8, 2))
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        plain = net(x)
        torch.testing.assert_close(reveal(protect_model(net)(protect(x, "clear"))), plain)
