"""The sum of the examples' gradients, each times its clipping factor, from what the backward pass left."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from privtensors.train.bounding.sites import Kind
from privtensors.train.bounding.sums import RunningSum, sum_dtype
from privtensors.train.bounding.uses import Observed, Use, wide


def clipping_factors(squares: Tensor, clipping_norm: float) -> tuple[Tensor, Tensor]:
    """From squared norms ``(B,)`` the factors min(1, C / norm) and which examples count; a non-finite norm has factor 0."""
    norms = squares.sqrt()
    finite = torch.isfinite(norms)
    # The norm is at least tiny, so that an example without a gradient has factor 1 instead of 0 / 0.
    factors = (clipping_norm / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_max(1)
    return factors.masked_fill(~finite, 0), finite


def add_weighted(observed: Observed, factors: Tensor, finite: Tensor, sums: RunningSum) -> None:
    """Add everything that was observed to the sums and free it at once."""
    drop = None if bool(finite.all()) else ~finite  # a factor of 0 is not enough: 0 times infinity is not a number
    while observed.uses:
        _add_pair(observed.uses.pop(), factors, drop, sums)
    while observed.rows:
        parameter, rows = observed.rows.popitem()
        rows = rows.flatten(1) if drop is None else _without(rows.flatten(1), drop)
        sums.add(parameter, (factors.to(rows.device, rows.dtype) @ rows).view(parameter.shape))


def _without(tensor: Tensor, drop: Tensor) -> Tensor:
    return tensor.masked_fill(drop.to(tensor.device).view(-1, *[1] * (tensor.dim() - 1)), 0)


def _add_pair(use: Use, factors: Tensor, drop: Tensor | None, sums: RunningSum) -> None:
    site, given, grad = use.site, use.given, use.grad
    assert site.weight is not None
    factor = factors.to(grad.device, sum_dtype(grad.dtype))
    if drop is not None:
        grad = _without(grad, drop)
        given = _without(given, drop) if given.is_floating_point() else given
    if site.kind is Kind.EMBEDDING:
        _add_embedding(site.module, site.weight, given, grad * factor[:, None, None], sums)
        return
    given, grad = wide(given), wide(grad)
    examples, length = grad.shape[:2]
    flat = grad.reshape(examples * length, -1)
    if use.bias is not None:
        sums.add(use.bias, factor[:, None].expand(examples, length).reshape(-1) @ flat)
    # Scale the smaller of the two; never in place, since residual paths share these tensors.
    if given.shape[2] <= grad.shape[2]:
        given = given * factor[:, None, None]
    else:
        flat = (grad * factor[:, None, None]).reshape(examples * length, -1)
    rows = given.reshape(examples * length, -1)
    if site.kind is Kind.CONV1D:
        sums.add_product(site.weight, rows.t(), flat)
    else:
        sums.add_product(site.weight, flat.t(), rows)


def _add_embedding(module: nn.Module, weight: nn.Parameter, ids: Tensor, grad: Tensor, sums: RunningSum) -> None:
    layer = cast(nn.Embedding, module)
    padding = -1 if layer.padding_idx is None else layer.padding_idx
    held = sums.get(weight)
    if held is None:
        sums.add(weight, torch.ops.aten.embedding_dense_backward(grad, ids, layer.num_embeddings, padding, False))
        return
    if padding >= 0:
        grad = grad.masked_fill((ids == padding)[:, :, None], 0)
    held.index_add_(0, ids.reshape(-1), grad.reshape(-1, grad.shape[-1]))
