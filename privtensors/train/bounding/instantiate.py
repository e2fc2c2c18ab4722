"""Per-example gradients of one module, formed where they take hardly more memory than what they are formed from.

A linear layer's gradient for one example is GᵀA, with A ``(T, d)`` its input and G ``(T, p)`` the gradient at its output. Formed once it
serves the norm and the sum; kept apart, A and G need products for the norm and GᵀA for the sum all the same.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from privtensors.train.bounding.sites import Kind, Site
from privtensors.train.bounding.uses import Observed, Use, wide

_ROOM = 1.25
"""How much larger a formed gradient may be: near 1 the products that it saves are worth a little memory."""


def instantiates(length: int, width_in: int, width_out: int) -> bool:
    """Whether a linear layer's gradient for an example is hardly larger than its inputs and output gradients together."""
    return length > 1 and width_in * width_out <= _ROOM * length * (width_in + width_out)


def arrived(use: Use, observed: Observed) -> None:
    """Take a use that has just got its gradient: form per-example gradients now, or keep the use."""
    site, given, grad, examples = use.site, use.given, use.grad, observed.examples
    if site.kind in (Kind.LAYER_NORM, Kind.GROUP_NORM):
        _norm(site, wide(given), wide(grad), observed)
    elif site.kind is Kind.CONV2D:
        _convolution(use, observed)
    elif site.kind is Kind.EMBEDDING:
        use.pair(given.reshape(examples, -1), grad.reshape(examples, -1, grad.shape[-1]))
        observed.uses.append(use)
    else:
        use.pair(given.reshape(examples, -1, given.shape[-1]), grad.reshape(examples, -1, grad.shape[-1]))
        _linear(use, observed)


def _linear(use: Use, observed: Observed) -> None:
    """Form, or keep until the uses of a shared weight together make it worth while."""
    weight = use.site.weight
    if weight is None:
        form(use, observed)
        return
    length, width_in = use.given.shape[1:]
    total = observed.lengths[weight] = observed.lengths.get(weight, 0) + length
    observed.uses.append(use)
    if instantiates(total, width_in, use.grad.shape[2]):
        for kept in [u for u in observed.uses if u.site.weight is weight]:
            observed.uses.remove(kept)
            form(kept, observed)


def _convolution(use: Use, observed: Observed) -> None:
    """A convolution is a linear layer over its unfolded patches; one in groups is a linear layer per group."""
    site, conv = use.site, cast(nn.Conv2d, use.site.module)
    grad = use.grad.reshape(observed.examples, conv.out_channels, -1)
    if site.weight is None or conv.groups > 1:
        observed.methods[site] = "instantiate", grad.shape[2]
        grad = wide(grad)
        if site.bias is not None:
            observed.add_rows(site.bias, grad.sum(2))
    if site.weight is None:
        return
    stride, padding, dilation = (cast(tuple[int, int], v) for v in (conv.stride, conv.padding, conv.dilation))
    patches = F.unfold(use.given, conv.kernel_size, dilation, padding, stride)  # (B, d, T)
    if conv.groups == 1:
        use.pair(patches.transpose(1, 2), grad.transpose(1, 2))
        _linear(use, observed)
        return
    groups = (observed.examples * conv.groups, -1, patches.shape[2])
    rows = torch.bmm(grad.reshape(groups), wide(patches).reshape(groups).transpose(1, 2))
    observed.add_rows(site.weight, rows)


def _norm(site: Site, given: Tensor, grad: Tensor, observed: Observed) -> None:
    """A normalisation's gradients: its output's gradient, times the normalised input for the weight, summed over all positions."""
    observed.methods[site] = "instantiate", 1
    if site.kind is Kind.LAYER_NORM:
        layer = cast(nn.LayerNorm, site.module)
        shape: tuple[int, ...] = (observed.examples, -1, *layer.normalized_shape)
        normal = F.layer_norm(given, layer.normalized_shape, None, None, layer.eps)
        axis = 1
    else:
        group = cast(nn.GroupNorm, site.module)
        shape = (observed.examples, group.num_channels, -1)
        normal = F.group_norm(given, group.num_groups, None, None, group.eps)
        axis = 2
    if site.weight is not None:
        observed.add_rows(site.weight, normal.mul_(grad).reshape(shape).sum(axis))
    if site.bias is not None:
        observed.add_rows(site.bias, grad.reshape(shape).sum(axis))


def form(use: Use, observed: Observed) -> None:
    """Form the per-example gradients of a use in the shapes ``(B, T, ·)``."""
    site, given, grad = use.site, use.given, wide(use.grad)
    observed.methods[site] = "instantiate", given.shape[1]
    if site.weight is not None:
        if site.kind is Kind.EMBEDDING:
            _form_embedding(site, site.weight, given, grad, observed)
        else:
            left, right = (wide(given), grad) if site.kind is Kind.CONV1D else (grad, wide(given))
            observed.add_rows(site.weight, torch.bmm(left.transpose(1, 2), right))
    form_bias(use, observed)


def form_bias(use: Use, observed: Observed) -> None:
    """Form the per-example gradients of a use's bias, ``(B, p)``, which then is no longer the use's."""
    if use.bias is not None:
        observed.add_rows(use.bias, wide(use.grad).sum(1))
        use.bias = None


def _form_embedding(site: Site, weight: nn.Parameter, ids: Tensor, grad: Tensor, observed: Observed) -> None:
    """Rows are added where the ids say; into what a tied head has left, if anything."""
    layer = cast(nn.Embedding, site.module)
    if layer.padding_idx is not None:
        grad = grad.masked_fill((ids == layer.padding_idx)[:, :, None], 0)  # torch gives the padding row no gradient
    if weight not in observed.rows:
        observed.rows[weight] = grad.new_zeros(observed.examples, *weight.shape)
    offsets = torch.arange(observed.examples, device=ids.device)[:, None] * layer.num_embeddings
    rows = observed.rows[weight].view(-1, layer.embedding_dim)
    rows.index_add_(0, (ids + offsets).reshape(-1), grad.reshape(-1, layer.embedding_dim))
