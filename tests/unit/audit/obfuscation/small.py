"""A small open model of random numbers, and a small language, to attack."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from privtensors.audit.obfuscation import Schemes, Tables
from privtensors.obfuscation.keys import ObfuscationKey

SIZE, WIDTH, POSITIONS = 600, 32, 48
SPECIAL = (0, 1, 2, 3, 4)
WORDS = tuple(range(5, SIZE))
KEY = ObfuscationKey(bytes(range(32)))


@cache
def bert() -> Any:
    """Two layers, untrained; its embedding is skewed as trained ones are."""
    from transformers import BertConfig, BertModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"vocab_size": SIZE, "hidden_size": WIDTH, "intermediate_size": 64, "max_position_embeddings": POSITIONS}
        config = BertConfig(num_hidden_layers=2, num_attention_heads=4, **sizes)
        model = BertModel(config).eval()
        with torch.no_grad():
            scale = torch.linspace(0.5, 3.0, WIDTH)
            skewed = torch.distributions.Gamma(2.0, 1.0).sample((SIZE, WIDTH))
            model.embeddings.word_embeddings.weight.copy_(0.1 * (skewed - 2.0) @ (scale * torch.linalg.qr(torch.randn(WIDTH, WIDTH))[0]))
            for one in model.modules():
                if isinstance(one, torch.nn.LayerNorm):
                    one.weight.copy_(1 + 0.2 * torch.randn(WIDTH))
                    one.bias.copy_(0.2 * torch.randn(WIDTH))
    return model


def schemes() -> Schemes:
    return Schemes(bert(), SPECIAL, WORDS, KEY)


def unrelated() -> Tables:
    """Another model's tables: nothing can be matched."""
    draw = torch.Generator().manual_seed(9)
    return Tables(torch.randn(SIZE, WIDTH, generator=draw), torch.randn(POSITIONS, WIDTH, generator=draw))


def language(tokens: int, *, seed: int, size: int = 200) -> Tensor:
    """Ids of a Markov chain with Zipf frequencies: each word is followed by few others."""
    draw = torch.Generator().manual_seed(seed)
    fixed = torch.Generator().manual_seed(5)
    zipf = 1 / torch.arange(1, size + 1)
    chain = zipf * torch.rand(size, size, generator=fixed) ** 8
    chain = chain / chain.sum(1, keepdim=True)
    steps = torch.rand(tokens, generator=draw)
    cumulative = chain.cumsum(1)
    found, now = [], 0
    for step in steps.tolist():
        now = min(int(torch.searchsorted(cumulative[now], step)), size - 1)
        found.append(now)
    return torch.tensor(found)
