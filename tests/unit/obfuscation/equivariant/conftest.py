"""Stock models compute a few things in float32 whatever their type; exactness of the algebra is shown with those in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm


@pytest.fixture
def double_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """LlamaRMSNorm in the type of its input instead of float32."""

    def forward(self: LlamaRMSNorm, states: Tensor) -> Tensor:
        return self.weight * (states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    monkeypatch.setattr(LlamaRMSNorm, "forward", forward)
