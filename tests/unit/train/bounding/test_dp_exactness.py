"""Every family of models, one step without noise, against as many backward passes as examples added up in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from privtensors.errors import CrossExample, UnboundedParameter
from privtensors.testing.dp_models import Family, families
from privtensors.testing.dp_oracle import difference, exactness, oracle
from privtensors.train.bounding import GradientBounder, OpacusReference, make_bounder

FAMILIES = families()
TOLERANCE = 1e-5

# What Opacus 1.6 cannot do or gets wrong, with our two repairs in place.
_NEVER = {"BERT, checkpointed", "BERT, checkpointed (reentrant)", "BERT masked LM, tied", "Llama, checkpointed", "ModernBERT", "DeBERTa-v2",
          "T5 encoder", "OPT", "Swin", "nn.TransformerEncoder", "convolutions in groups", "tied and used twice"}  # fmt: skip
OPACUS_REFUSED = {
    "hooks": _NEVER,
    "ghost": _NEVER | {"RoBERTa, padding attended to", "GPT-2 LM, tied", "Llama, tied", "ALBERT", "shared biases and layers"},
}


@pytest.mark.parametrize("batches", [1, 3])
@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda f: f.name)
def test_equals_the_oracle(family: Family, batches: int) -> None:
    row = exactness(family, batches=batches)
    assert row.engine == family.engine
    assert row.error <= TOLERANCE and row.worst <= TOLERANCE, row


@pytest.mark.parametrize("name", ["BERT", "GPT-2 LM, tied", "ALBERT", "LoRA on Llama", "nn.TransformerEncoder", "tied and used twice"])
def test_the_loop_equals_the_oracle(name: str) -> None:
    row = exactness(FAMILIES[name], engine="loop", batches=2)
    assert row.engine == "loop" and row.error <= TOLERANCE and row.worst <= TOLERANCE, row


@pytest.mark.parametrize("name", [f.name for f in FAMILIES.values() if f.engine == "loop"])
def test_bookkeeping_refuses_what_it_cannot_see(name: str) -> None:
    trial = FAMILIES[name].trial()
    bounder = make_bounder(trial.model, 1.0, engine="bookkeeping")
    with pytest.raises(UnboundedParameter, match="loop"):
        bounder.accumulate(trial.batch, trial.loss, trial.examples)
    assert all(not bool(v.any()) for v in bounder.take().values())


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda f: f.name)
def test_opacus_is_right_or_refused(family: Family, mode: str) -> None:
    trial = family.trial()
    truth = oracle(trial)
    parameters = {name: p for name, p in trial.model.named_parameters() if p.requires_grad}

    def clipped() -> dict[str, torch.Tensor]:
        losses = trial.losses if mode == "ghost" else None
        engine = OpacusReference(trial.model, parameters, mode="ghost" if mode == "ghost" else "hooks", losses=losses)
        bounder = GradientBounder(trial.model, parameters, truth.clipping_norm, engine)
        try:
            bounder.accumulate(trial.batch, trial.loss, trial.examples)
            return bounder.take()
        finally:
            bounder.close()

    if family.name in OPACUS_REFUSED[mode]:
        with pytest.raises(UnboundedParameter, match="Opacus"):
            clipped()
    else:
        error, worst = difference(clipped(), truth)
        assert error <= TOLERANCE and worst <= TOLERANCE
    assert not any(hasattr(p, "grad_sample") or p.grad is not None for p in parameters.values())


@pytest.mark.parametrize("name", ["MobileNetV2, frozen statistics", "ResNet, frozen statistics"])
def test_batch_normalisation_in_training_is_refused(name: str) -> None:
    trial = FAMILIES[name].trial()
    bounder = make_bounder(trial.model, 1.0)
    trial.model.train()
    with pytest.raises(CrossExample, match="GroupNorm"):
        bounder.accumulate(trial.batch, trial.loss, trial.examples)
    with pytest.raises(CrossExample, match="GroupNorm"):
        make_bounder(trial.model, 1.0, engine="loop").accumulate(trial.batch, trial.loss, trial.examples)


def test_an_axis_of_fixed_length_may_equal_the_number_of_examples() -> None:
    row = exactness(FAMILIES["shared biases and layers"], examples=12)  # its 12 positions are one-dimensional ids
    assert row.engine == "bookkeeping" and row.error <= TOLERANCE and row.worst <= TOLERANCE


@pytest.mark.parametrize("examples", [1, 2, 3, 4, 5, 9])
def test_any_number_of_examples(examples: int) -> None:
    for name in ("RoBERTa, padded", "GPT-2 LM, tied", "nn.TransformerEncoder"):
        row = exactness(FAMILIES[name], examples=examples)
        assert row.engine == "bookkeeping" and row.error <= TOLERANCE and row.worst <= TOLERANCE, row


def test_the_oracle_is_the_batch_gradient_where_nothing_is_clipped() -> None:
    trial = FAMILIES["BERT"].trial()
    truth = oracle(trial, clipping_norm=1e9)
    (trial.loss(trial.batch) * trial.examples).backward()
    named: dict[str, nn.Parameter] = dict(trial.model.named_parameters())
    for name, total in truth.sums.items():
        grad = named[name].grad
        torch.testing.assert_close(total.float(), torch.zeros_like(named[name]) if grad is None else grad, rtol=1e-4, atol=1e-6)
