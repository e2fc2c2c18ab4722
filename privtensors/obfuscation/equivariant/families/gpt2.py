"""GPT-2 (Radford et al., 2019), pre-norm with Conv1D weights (in, out).

The last norm's gain g and a tied head. With stream x' = x Q the tied matrix is E Q, and E Q h' = E h asks for h' = h Q, that is
Q^T diag(g) Q diagonal: for gains that differ, Q is a permutation. The bias b is no obstacle: b Q. So a tied head, like a stream that
leaves the model, permutes; with any other head the gain goes into the head and Q is any mean-fixing orthogonal matrix.
"""

from __future__ import annotations

from typing import Final

from privtensors.obfuscation.equivariant.families.base import EXTRACTIVE, Axes, Family, Head, linear, norm
from privtensors.obfuscation.equivariant.transforms import Fold


def _conv1d(name: str, into: str, out: str) -> dict[str, Axes]:
    return {f"{name}.weight": (into, out), f"{name}.bias": (out,)}


FAMILY: Final = Family(
    model_type="gpt2",
    parameters={
        "wte.weight": ("vocab", "hidden"),
        "wpe.weight": ("1", "hidden"),
        **norm("h.{layer}.ln_1"),
        **_conv1d("h.{layer}.attn.c_attn", "hidden*", "q|k|v"),
        **_conv1d("h.{layer}.attn.c_proj", "o*", "hidden"),
        **norm("h.{layer}.ln_2"),
        **_conv1d("h.{layer}.mlp.c_fc", "hidden*", "ffn"),
        **_conv1d("h.{layer}.mlp.c_proj", "ffn*", "hidden"),
        **norm("ln_f"),
    },
    heads={
        "GPT2Model": Head({}),
        "GPT2LMHeadModel": Head({"lm_head.weight": ("vocab", "hidden*")}, readers=("lm_head",)),
        "GPT2ForSequenceClassification": Head({"score.weight": ("labels", "hidden*")}, readers=("score",)),
        "GPT2ForTokenClassification": Head(linear("classifier", "labels", "hidden*"), readers=("classifier",)),
        "GPT2ForQuestionAnswering": Head(EXTRACTIVE, readers=("qa_outputs",)),
    },
    mixes="mean-fixing orthogonal",
    keeps="permutation",
    folds=(
        Fold("h.{layer}.ln_1", ("h.{layer}.attn.c_attn",), transposed=True),
        Fold("h.{layer}.ln_2", ("h.{layer}.mlp.c_fc",), transposed=True),
    ),
    last="ln_f",
)
