"""Prompts read off the hidden states that a server computes: token by token, the open model proposes and its states decide.

Thomas et al., "Hidden No More" (ICML 2025). The server sees hidden states of one layer under a secret basis; it runs the open model on
what it has decoded so far and each candidate for the next token, likeliest first, and takes the first whose state matches.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import torch
from torch import Tensor

from privtensors.errors import InvalidInput

_BATCH: Final = 256


class Invariant(Enum):
    """What of a hidden state (n, width) the secret basis leaves."""

    NONE = "as it is"
    SORTED = "sorted: under a permutation"
    PRODUCTS = "products with the states before it: under a rotation"


@dataclass(frozen=True)
class PromptDecoding:
    """How prompts are decoded.

    Attributes:
        layer: Whose hidden states are seen: 1 is after the first block; the last one has another normalisation, take an earlier.
        invariant: What is compared.
        candidates: How many of the likeliest tokens are tried at each place; None for all.
        tolerance: Largest L1 distance of a match, relative to the L1 norm of what is compared. It absorbs rounding and noise.
    """

    layer: int
    invariant: Invariant
    candidates: int | None = None
    tolerance: float = 1e-3

    @torch.no_grad()
    def decode(self, model: Any, states: Tensor, first: int) -> Tensor:
        """The plain ids of a prompt: int64 (n,); from the first place without a match on, -1.

        Args:
            model: The open causal model, in evaluation mode.
            states: Hidden states (n, width) of the obfuscated one at ``layer``.
            first: The first token, which every prompt has.

        Raises:
            InvalidInput: ``states`` are no matrix of the model's width.
        """
        if states.ndim != 2 or states.shape[1] != model.config.hidden_size:
            what = f"states of shape {tuple(states.shape)} for a width of {model.config.hidden_size}"
            raise InvalidInput(what, where="PromptDecoding", fix="Give hidden_states[layer][0] of the server's model")
        found = torch.full((len(states),), -1)
        found[0] = first
        for place in range(1, len(states)):
            token = self._next(model, states[: place + 1].float(), found[:place])
            if token is None:
                break
            found[place] = token
        return found

    def _next(self, model: Any, states: Tensor, prefix: Tensor) -> int | None:
        order = model(input_ids=prefix[None]).logits[0, -1].argsort(descending=True)[: self.candidates]
        seen = self._kept(states[None])[0]
        limit = self.tolerance * seen.abs().sum()
        for block in torch.split(order, _BATCH):
            ids = torch.cat([prefix.expand(len(block), -1), block[:, None]], 1)
            hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[self.layer].float()
            distances = (self._kept(hidden) - seen).abs().sum(1)
            if float(distances.min()) <= float(limit):
                return int(block[distances.argmin()])
        return None

    def _kept(self, states: Tensor) -> Tensor:
        """(batch, …) of states (batch, n, width), for the last place."""
        last = states[:, -1]
        if self.invariant is Invariant.SORTED:
            return last.sort(1).values
        return (states @ last[:, :, None])[:, :, 0] if self.invariant is Invariant.PRODUCTS else last
