"""What the equivariant transform must know about a model family: which space each axis of each parameter belongs to. Names only.

An axis is written as the name of its space where it produces values of it, and with a star where it consumes them: a Linear (out, in)
from the residual stream to the inner layer is ``("ffn", "hidden*")``. ``"1"`` stays as it is; ``"q|k|v"`` is three spaces side by side.
Axes that a table leaves out at the end belong to the last one, flattened.

Spaces: vocab, labels, hidden (the residual stream), gain (its norms), pooler, patches, pixels; per layer ffn, up, q, k, v, o.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from privtensors.obfuscation.equivariant.transforms import Fold

Axes = tuple[str, ...]
Basis = Literal["permutation", "signed permutation", "orthogonal", "mean-fixing orthogonal"]

LAYER_SPACES: Final = frozenset({"ffn", "up", "q", "k", "v", "o"})
LAYER: Final = "{layer}"

EXTRACTIVE: Final[Mapping[str, Axes]] = {"qa_outputs.weight": ("1", "hidden*"), "qa_outputs.bias": ("1",)}
"""Start and end of an answer: two fixed outputs, which are no class labels, so they keep their order."""


def linear(name: str, out: str, into: str) -> dict[str, Axes]:
    """The two rows of an ``nn.Linear``."""
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name: str) -> dict[str, Axes]:
    """The two rows of an ``nn.LayerNorm`` on the residual stream."""
    return {f"{name}.weight": ("gain",), f"{name}.bias": ("hidden",)}


@dataclass(frozen=True)
class Head:
    """One class of a family.

    Attributes:
        parameters: Axes of the parameters it has beside the base model's; an unstarred ``labels`` axis makes labels necessary.
        readers: Linear maps that alone read the last norm of a pre-norm model; none where its output leaves the model.
    """

    parameters: Mapping[str, Axes]
    readers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """Layout of one Hugging Face family. Names are relative to the base model, but for the heads'.

    Attributes:
        model_type: ``config.model_type``, and the name of the file that defines it.
        parameters: Axes by name; ``{layer}`` stands for the layer's number.
        heads: By the name of the stock class, the base model included.
        mixes: The basis of the residual stream where nothing holds it back.
        keeps: The basis where a gain has to stay on the stream: a post-norm model, a tied head, or a stream that leaves the model.
        folds: Norms within a layer, of pre-norm families.
        last: The last norm of a pre-norm family; its consumers are the head's readers.
        rotary: Queries and keys are rotated by position, in the half-split layout.
        pixels: The model takes pixels, not ids.
        buffers: Non-persistent buffers that hold public constants.
    """

    model_type: str
    parameters: Mapping[str, Axes]
    heads: Mapping[str, Head]
    mixes: Basis
    keeps: Basis
    folds: tuple[Fold, ...] = ()
    last: str = ""
    rotary: bool = False
    pixels: bool = False
    buffers: tuple[str, ...] = ()
