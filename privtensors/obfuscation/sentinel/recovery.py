"""What a server that holds the keyed weights gets back: each keyed embedding row matched with the rows of the public model.

The first three attacks need the two tables alone: they are the published ones (Lin et al., EMNLP 2024; sorted rows: Thomas et al., 2025).
The spectral one aligns principal axes. The last first puts the hidden units in order by what no noise covers, LayerNorm parameters and
the position table, and is the one that counts: it shows what the hardened construction does not hide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from privtensors.errors import InvalidInput
from privtensors.obfuscation.sentinel.table import table_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BLOCK: Final = 256
_SAMPLE: Final = 1_000


@dataclass(frozen=True)
class Recovery:
    """Share of the sampled tokens that the first guess of each attack gets right, 0 to 1.

    Attributes:
        chance: Of a blind guess: one over the rows.
        neighbour_differences: EDNN: nearest row by differences of neighbouring coordinates.
        row_centred: Nearest row after each row's mean is removed.
        sorted_row: Nearest row with the coordinates of each in ascending order.
        spectral: Nearest row after the principal axes of both tables are aligned, signs by skewness.
        aligned: Nearest row after hidden units are matched by the other parameters.
        units_matched: Share of the hidden units that the last attack put in their place; None where that cannot be judged.
    """

    chance: float
    neighbour_differences: float
    row_centred: float
    sorted_row: float
    spectral: float
    aligned: float
    units_matched: float | None


def recover(
    public: PreTrainedModel, keyed: PreTrainedModel, ids: Tensor, *, units: Tensor | None = None, sample: int = _SAMPLE
) -> Recovery:
    """Run every attack.

    Args:
        public: The open model, as the attacker has it.
        keyed: What the server holds, before or after fine-tuning.
        ids: int64 (rows,): ``ids[plain id] = keyed id``; only to judge the guesses.
        units: int64 (width,): ``units[j]`` is the plain unit at keyed place j; only to judge.
        sample: How many tokens to attack, spread evenly over the ids.

    Raises:
        InvalidInput: The tables have different shapes.
    """
    source = table_of(public).detach().float().cpu()
    table = table_of(keyed).detach().float().cpu()
    if source.shape != table.shape or len(ids) != len(source):
        what = f"tables of {tuple(source.shape)} and {tuple(table.shape)}, {len(ids)} ids"
        raise InvalidInput(what, where="recover", fix="Give the model that was converted and the result")
    rows, width = source.shape
    picked = torch.linspace(0, rows - 1, min(sample, rows)).long()
    targets = table[ids[picked]]
    centred, targets_centred = _centred(source), _centred(targets)
    places = _match_units(public, keyed, width)
    ordered = torch.empty_like(targets)
    ordered[:, places] = targets_centred  # column j of the keyed table is unit places[j]
    axes = _axes(source), _axes(table)

    def share(guess: Tensor) -> float:
        return float((guess == picked).float().mean())

    return Recovery(
        chance=1 / rows,
        neighbour_differences=share(_nearest(targets.diff(dim=1), source.diff(dim=1))),
        row_centred=share(_nearest(targets_centred, centred)),
        sorted_row=share(_nearest(targets_centred.sort(1).values, centred.sort(1).values)),
        spectral=share(_nearest(_unit(axes[1](targets)), _unit(axes[0](source)))),
        aligned=share(_nearest(_unit(ordered), _unit(centred))),
        units_matched=None if units is None else float((places == units).float().mean()),
    )


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(1, keepdim=True)


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows)


def _nearest(points: Tensor, table: Tensor) -> Tensor:
    squares = table.square().sum(1)
    return torch.cat([(squares - 2 * block @ table.T).argmin(1) for block in torch.split(points, _BLOCK)])


def _axes(table: Tensor) -> Callable[[Tensor], Tensor]:
    """Coordinates along the table's principal axes, each turned so that its third moment is positive."""
    centred = _centred(table)
    mean = centred.mean(0)
    _, axes = torch.linalg.eigh((centred - mean).T @ (centred - mean))
    turned = (centred - mean) @ axes
    signs = turned.pow(3).sum(0).sign()
    return lambda rows: ((_centred(rows) - mean) @ axes) * signs


def _match_units(public: PreTrainedModel, keyed: PreTrainedModel, width: int) -> Tensor:
    """int64 (width,): the plain unit that each keyed one resembles most, by parameters that only move with the hidden units."""
    state, other = public.base_model.state_dict(), keyed.base_model.state_dict()
    names = [name for name in state if "layernorm" in name.lower() or "layer_norm" in name.lower() or "position_embeddings" in name]
    prints, others = [
        torch.cat([one[name].float().cpu().reshape(-1, width) for name in names if name in other and name in state])
        for one in (state, other)
    ]
    scale = prints.std(1, keepdim=True).clamp_min(1e-12)
    return _nearest((others / scale).T, (prints / scale).T)
