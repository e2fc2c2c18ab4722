"""Attention on the private copy: always through ``scaled_dot_product_attention``, which is one fused private operation.

transformers' eager path adds ``finfo.min`` to masked scores, a number no fixed-point ring holds; its softmax of masked
scores is the same function as the fused one, so the private copy never takes it. Where a request asks for attention
weights, they are the fused attention of queries and keys to the identity matrix.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from privtensors.core.safetensor import SafeTensor, State

FUSED: Final = "sdpa"
WITH_WEIGHTS: Final = "privtensors_weights"


def register() -> None:
    """Make :func:`attention_with_weights` known to transformers under :data:`WITH_WEIGHTS`, with boolean masks."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(WITH_WEIGHTS, attention_with_weights)
    AttentionMaskInterface.register(WITH_WEIGHTS, sdpa_mask)


def choose(config: Any, *, weights: bool) -> None:
    """Set the attention of a private copy for its next forward."""
    config._attn_implementation = WITH_WEIGHTS if weights else FUSED


def attention_with_weights(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **_kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """transformers' attention interface, returning the weights too.

    Args:
        module: The attention module.
        query: SafeTensor, ``(batch, heads, L, d)``.
        key: SafeTensor, ``(batch, key heads, S, d)``.
        value: As ``key``.
        attention_mask: Public bool, broadcastable to ``(batch, heads, L, S)``, or None.
        dropout: Must be zero.
        scaling: Factor of the scores; default ``d ** -0.5``.
        is_causal: Whether query i sees only keys up to i; default the module's.

    Returns:
        The mixed values ``(batch, L, heads, d)`` and the weights ``(batch, heads, L, S)``, both SafeTensors.
    """
    groups = getattr(module, "num_key_value_groups", 1)
    if groups > 1:
        key, value = (x.unsqueeze(2).expand(-1, -1, groups, -1, -1).flatten(1, 2) for x in (key, value))
    count, depth = key.shape[-2], query.shape[-1]
    width = max(count, depth)  # the fused operation wants queries, keys and values of one depth
    causal = (getattr(module, "is_causal", True) if is_causal is None else is_causal) and attention_mask is None and query.shape[-2] > 1
    assert isinstance(key, SafeTensor)
    backend = key._state.backend
    identity = F.pad(torch.eye(count, dtype=key.dtype), (0, width - count)).expand(*key.shape[:-1], width)
    shared = SafeTensor(State(backend.protect(identity.contiguous(), owner=key.owner), backend, key.owner))
    weights = F.scaled_dot_product_attention(
        F.pad(query, (0, width - depth)),
        F.pad(key, (0, width - depth)),
        shared,
        attn_mask=attention_mask,
        dropout_p=dropout,
        is_causal=causal,
        scale=scaling if scaling is not None else depth**-0.5,
    )[..., :count]
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights
