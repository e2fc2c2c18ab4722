"""What is done to a family, in words: for ``explain``, tables and documentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from privtensors.obfuscation.equivariant.families import family_of

_STIP: Final = "Yuan et al., 2023 (ePrint 2023/1763)"
_NESA: Final = "Nesa, 2025 (arXiv 2502.01013)"
_SLICE: Final = "Ashkboos et al., 2024 (SliceGPT)"
_FOLKLORE: Final = "follows from the layer's algebra"


@dataclass(frozen=True, slots=True)
class Transformation:
    """One transformation.

    Attributes:
        what: What is transformed.
        group: The group its matrix is drawn from.
        paper: Who published it.
    """

    what: str
    group: str
    paper: str


def names(model_type: str) -> tuple[Transformation, ...]:
    """Every transformation of a family, outermost first.

    Raises:
        UnknownFamily: There is no such family.
    """
    family = family_of(model_type)
    axes = {part.rstrip("*") for row in family.parameters.values() for axis in row for part in axis.split("|")}
    axes |= {part for head in family.heads.values() for row in head.parameters.values() for part in row}
    rows = []
    if family.pixels:
        rows += [
            Transformation("places of the patches", "permutations, with the position embeddings", _FOLKLORE),
            Transformation("values within a patch", "orthogonal matrices, absorbed by the projection", _FOLKLORE),
        ]
    else:
        kept = ", the padding id fixed" if family.model_type == "roberta" else ""
        rows.append(Transformation("token ids", f"permutations of the vocabulary{kept}", _NESA))
    stream = {
        "permutation": ("permutations", _STIP),
        "orthogonal": ("orthogonal matrices, gains folded", _SLICE),
        "mean-fixing orthogonal": ("orthogonal matrices that fix the mean, gains and biases folded", _SLICE),
    }[family.mixes]
    rows.append(Transformation("residual stream", *stream))
    if family.keeps != family.mixes:
        limits = f"{family.keeps}s: the last gain stays, and only they commute with it"
        rows.append(Transformation("residual stream, head tied or hidden states given out", limits, _STIP))
    rows.append(Transformation("heads", "permutations; of key groups, and of query heads within one", _FOLKLORE))
    pair = "rotations with a scale per frequency pair" if family.rotary else "invertible matrices of condition at most 4"
    rows.append(Transformation("queries and keys of a head", f"{pair}, A on one and A^-T on the other", _FOLKLORE))
    rows.append(
        Transformation(
            "values and output of a head", "invertible matrices of condition at most 4, B on one and B^-T on the other", _FOLKLORE
        )
    )
    rows.append(Transformation("inner layer", "permutations", _STIP))
    if "up" in axes:
        rows.append(Transformation("up path of the inner layer", "diagonal matrices, signs included", _FOLKLORE))
    if "pooler" in axes:
        rows.append(Transformation("pooler", "permutations", _FOLKLORE))
    rows.append(Transformation("class labels", "permutations", _FOLKLORE))
    return tuple(rows)
