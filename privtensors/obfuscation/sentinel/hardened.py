"""The hardened construction: keyed ids, keyed basis, a keyed shift of every embedding row, and calibrated noise on it.

What the published construction lacks (Mishra, Li and Deo, AAAI 2024; broken by Lin et al., EMNLP 2024) and this one has:

- A key of 256 bits for every part, instead of a seed below 10,000.
- No linear invariant. The hidden units are permuted, which keeps nothing linear of a row x but its sum; and a keyed multiple of the
  all-ones vector is added to each row, which changes the sum and which the LayerNorm after the embedding removes. A map W with
  x M W = x W for every key has equal rows (permutations) that sum to zero (shifts): W = 0.
- Noise, so that sorted rows do not match either: ``noise`` times the row's own standard deviation, in every coordinate.

Guarantee class: heuristic. It does not stop a server that holds the weights of an open model. The LayerNorm gains and the position table
name the hidden units, and with those in order the nearest public row is the right one nearly always at ``noise`` 0.5 (see
``recovery``). It stops a reader of traffic or logs, and the published attacks on the table alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from privtensors.errors import ParameterError, UnknownFamily
from privtensors.obfuscation.equivariant.convert import Progress, transform
from privtensors.obfuscation.equivariant.spaces import hidden_map
from privtensors.obfuscation.sentinel.table import table_of
from privtensors.obfuscation.vocabulary import Labels, Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from privtensors.obfuscation.keys import ObfuscationKey

DEFAULT_NOISE: Final = 0.5
FAMILIES: Final = ("bert", "distilbert", "roberta")
"""Encoders whose token embedding goes into a LayerNorm and nowhere else."""

LARGEST_NOISE: Final = 100.0


def harden(
    model: PreTrainedModel, key: ObfuscationKey, vocabulary: Vocabulary, *, noise: float = DEFAULT_NOISE, progress: Progress | None = None
) -> PreTrainedModel:
    """The model under a key. Without noise its logits are those of the plain model, at keyed labels, to about 1e-5 in float32.

    Args:
        model: A stock encoder of :data:`FAMILIES`, without a head or with one for classification; left untouched.
        key: The key.
        vocabulary: Bijection of all rows of the token embedding.
        noise: Standard deviation of the normal noise on each row, in units of that row's own standard deviation over its coordinates.
        progress: Called with the number of parameters done and their total.

    Returns:
        A new model of the same class, in evaluation mode.

    Raises:
        UnknownFamily: The model is of another family or class.
        ParameterError: ``noise`` is negative, above 100 or not finite.
        ObfuscationError, InvalidInput: As ``equivariant.convert.transform``.
    """
    check_noise(noise)
    kind = str(getattr(model.config, "model_type", ""))
    if kind not in FAMILIES:
        fix = f"Known are {', '.join(FAMILIES)}; compat takes a few more, the scheme equivariant takes decoders and vision models"
        raise UnknownFamily(f"the family {kind!r} has no hardened form", where="sentinel", fix=fix)
    labels = Labels.from_key(key, int(model.config.num_labels)) if model.config.num_labels else None
    built = transform(model, key, vocabulary=vocabulary, labels=labels, progress=progress)
    weight = table_of(built)
    rows = weight.detach().double().cpu()
    spread = rows.std(dim=1, correction=0, keepdim=True)
    shift = key.stream("sentinel/shift").normal((len(rows), 1)) * spread.mean()
    rows = rows + shift + noise * spread * key.stream("sentinel/noise").normal(tuple(rows.shape))
    with torch.no_grad():
        weight.copy_(rows)
    return built


def hidden_units(key: ObfuscationKey, width: int) -> Tensor:
    """int64 (width,): the plain hidden unit that stands at each place under ``key``. As secret as the key."""
    return hidden_map(key, width, "permutation").order


def check_noise(noise: float) -> None:
    """Raises ParameterError for a noise that is negative, above 100 or not finite."""
    if not (math.isfinite(noise) and 0 <= noise <= LARGEST_NOISE):
        fix = f"Give 0 to {LARGEST_NOISE:g}, in units of a row's standard deviation; {DEFAULT_NOISE} is the default"
        raise ParameterError(f"noise {noise}", where="sentinel", fix=fix)
