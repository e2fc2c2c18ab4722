"""Each example's gradient norm, without forming its gradient where that would cost more.

For a linear layer ‖GᵀA‖² = Σ (AAᵀ ∘ GGᵀ) (Goodfellow 2015; over sequences Li et al. 2022), with T x T products instead of the p x d
gradient. A bias adds one to every entry of AAᵀ. An embedding is a linear layer over one-hot rows, whose AAᵀ is where ids are equal; what
it shares with a tied head is a gather. Layers with the same input (query, key and value) share AAᵀ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from privtensors.train.bounding.instantiate import form, form_bias
from privtensors.train.bounding.sites import Kind
from privtensors.train.bounding.sums import row_squares
from privtensors.train.bounding.uses import Observed, Use, wide


def squared_norms(observed: Observed, like: Tensor) -> Tensor:
    """The squared L2 norm of each example's gradient over all parameters, ``(B,)``, in the dtype and on the device of ``like``.

    Uses that share a parameter in a way without a shortcut are turned into per-example gradients.
    """
    total = torch.zeros(observed.examples, dtype=like.dtype, device=like.device)
    weights: dict[nn.Parameter, list[Use]] = {}
    for use in observed.uses:
        use.check_grad()
        assert use.site.weight is not None
        weights.setdefault(use.site.weight, []).append(use)
    for weight, group in list(weights.items()):
        if weight in observed.rows or _mixed(group):
            for use in group:
                form(use, observed)
            del weights[weight]
    observed.uses = [use for group in weights.values() for use in group]
    folded = _foldable(weights, observed)
    for use in observed.uses:
        if use.bias not in folded:
            form_bias(use, observed)
    for value in observed.rows.values():
        _add(total, row_squares(value))
    _linears(total, weights, observed)
    _embeddings(total, weights, observed)
    return total.clamp_min_(0)


def _add(total: Tensor, value: Tensor, times: int = 1) -> None:
    total.add_(value.to(total.device, total.dtype), alpha=times)


def _mixed(group: Sequence[Use]) -> bool:
    """Whether uses of one weight are of kinds between which there is no shortcut."""
    kinds = {use.site.kind for use in group}
    if kinds == {Kind.LINEAR, Kind.EMBEDDING}:
        paddings = {cast(nn.Embedding, u.site.module).padding_idx for u in group if u.site.kind is Kind.EMBEDDING}
        return len(paddings) > 1
    if kinds == {Kind.EMBEDDING}:
        return len({cast(nn.Embedding, u.site.module).padding_idx for u in group}) > 1
    return len(kinds) > 1


def _foldable(weights: Mapping[nn.Parameter, Sequence[Use]], observed: Observed) -> set[nn.Parameter]:
    """The biases that go with one weight in each of its uses and with nothing else, so that one product gives both their norms."""
    owners: dict[nn.Parameter, set[nn.Parameter]] = {}
    for weight, group in weights.items():
        for use in group:
            if use.bias is not None:
                owners.setdefault(use.bias, set()).add(weight)
    return {
        bias
        for bias, owner in owners.items()
        if len(owner) == 1 and bias not in observed.rows and all(u.bias is bias for u in weights[next(iter(owner))])
    }


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), 1)


def _gram(matrices: Tensor) -> Tensor:
    return torch.bmm(matrices, matrices.transpose(1, 2))


def _linears(total: Tensor, weights: Mapping[nn.Parameter, Sequence[Use]], observed: Observed) -> None:
    """Add the squared norms of linear layers' gradients, with the biases left to them; those with the same input are done together."""
    groups: dict[object, list[list[Use]]] = {}
    for weight, every in weights.items():
        group = [use for use in every if use.site.kind is not Kind.EMBEDDING]
        if not group:
            continue
        given, fold = group[0].given, group[0].bias is not None
        same = (given.data_ptr(), given.shape, given.stride(), given.dtype, given.device, fold) if len(group) == 1 else weight
        groups.setdefault(same, []).append(group)
    for together in groups.values():
        _linear_group(total, together, observed)


def _linear_group(total: Tensor, together: Sequence[Sequence[Use]], observed: Observed) -> None:
    """Weights whose uses have the same inputs; a bias adds one to each product of inputs."""
    fold = together[0][0].bias is not None
    given = wide(_joined([use.given for use in together[0]]))
    length = given.shape[1]
    product: Tensor | None = None
    for group in together:
        grad = wide(_joined([use.grad for use in group]))
        if length == 1:
            method = "outer"
            squares = given.square().sum((1, 2))
            _add(total, grad.square().sum((1, 2)) * (squares + 1 if fold else squares))
        else:
            method = "gram"
            product = _gram(grad) if product is None else product.baddbmm_(grad, grad.transpose(1, 2))
        for use in group:
            observed.methods[use.site] = method, length
    if product is not None:
        inputs = _gram(given)
        if fold:
            inputs += 1
        _add(total, product.mul_(inputs).sum((1, 2)))  # torch adds up in pairs here, not in a matrix product


def _embeddings(total: Tensor, weights: Mapping[nn.Parameter, Sequence[Use]], observed: Observed) -> None:
    """Add the squared norms of embeddings' gradients, and what each shares with a tied head."""
    products: dict[object, Tensor] = {}  # word, position and type embeddings that are added up have one gradient
    for group in weights.values():
        embeddings = [use for use in group if use.site.kind is Kind.EMBEDDING]
        if not embeddings:
            continue
        ids = _joined([use.given for use in embeddings])
        grad = wide(_joined([use.grad for use in embeddings]))
        arrived = embeddings[0].grad  # the key: its memory is held, that of a wider copy is not
        key = (arrived.data_ptr(), arrived.shape, arrived.stride()) if len(embeddings) == 1 else id(group)
        product = products.get(key)
        if product is None:
            product = products[key] = _gram(grad)
        padding = cast(nn.Embedding, embeddings[0].site.module).padding_idx
        equal = ids[:, :, None] == ids[:, None, :]
        if padding is not None:
            equal &= (ids != padding)[:, :, None]
        _add(total, product.masked_fill(~equal, 0).sum((1, 2)))
        for use in embeddings:
            observed.methods[use.site] = "gram", ids.shape[1]
        heads = [use for use in group if use.site.kind is not Kind.EMBEDDING]
        if heads:
            inputs = wide(_joined([use.given for use in heads]))
            logits = wide(_joined([use.grad for use in heads]))
            shared = torch.gather(logits, 2, ids[:, None, :].expand(-1, logits.shape[1], -1))
            shared = shared * torch.bmm(inputs, grad.transpose(1, 2))
            if padding is not None:
                shared = shared.masked_fill((ids == padding)[:, None, :], 0)
            _add(total, shared.sum((1, 2)), 2)
