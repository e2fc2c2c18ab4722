"""Every family, stock classes: the private model answers as the plain one, and what must stay protected does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from privtensors.core import SafeTensor, Session
from privtensors.core.kernel import Kernel
from privtensors.core.recorder import MemoryRecorder
from privtensors.hf import PrivateModel, wrap
from privtensors.policy import Policy
from tests.unit.hf.tiny import CAUSAL, TEXT, VISION, build, inputs_for, text_inputs

TOLERANCE = {"clear": 1e-5, "mpc": 0.02}
EVERY = [*TEXT, *VISION]
CONVOLUTIONS = ("mobilenet_v2", "resnet")


def private_of(model: Any, technique: str) -> PrivateModel:
    return wrap(model, Policy(infer=[technique]), session=Session(recorder=MemoryRecorder()))


def tensors(output: Any) -> dict[str, Tensor]:
    return {name: value for name, value in output.items() if isinstance(value, Tensor)}


def records(private: PrivateModel) -> list[Any]:
    recorder = private.session.recorder
    assert isinstance(recorder, MemoryRecorder)
    return recorder.entries


def check_equal(private: PrivateModel, model: Any, inputs: dict[str, Tensor], tolerance: float) -> Any:
    with torch.no_grad():
        plain = model(**inputs)
    output = private(**inputs)
    assert type(output) is type(plain)
    assert tensors(plain)
    mask = inputs.get("attention_mask")
    for name, want in tensors(plain).items():
        got = output[name]
        assert type(got) is Tensor and not got.requires_grad and got.dtype == want.dtype and got.shape == want.shape
        assert want.abs().max() > 0.2, "the plain answer is too small for the tolerance to say anything"
        # Per token answers of padding mean nothing to anybody.
        relevant = mask.bool() if mask is not None and want.shape[:2] == mask.shape else torch.ones(want.shape[:1], dtype=torch.bool)
        # float32 itself is good to 1e-5 of the largest answer only; folded batch norms round in another order.
        assert (got - want)[relevant].abs().max() <= tolerance * max(1.0, float(want.abs().max())), name
    return output


@pytest.mark.parametrize("technique", ["clear", "mpc"])
@pytest.mark.parametrize("name", EVERY)
def test_default_attention(name: str, technique: str) -> None:
    model = build(name)
    private = private_of(model, technique)
    assert private.model.__class__ is type(model)
    check_equal(private, model, inputs_for(name), TOLERANCE[technique])
    (record,) = records(private)
    assert record.receiver == "client" and record.backend == technique


@pytest.mark.parametrize("technique", ["clear", "mpc"])
@pytest.mark.parametrize("name", [n for n in EVERY if n not in CONVOLUTIONS])
def test_eager_attention_with_weights(name: str, technique: str) -> None:
    model = build(name, "eager")
    private = private_of(model, technique)
    inputs = inputs_for(name)
    check_equal(private, model, inputs, TOLERANCE[technique])
    with torch.no_grad():
        want = model(**inputs, output_attentions=True).attentions
    got = private(**inputs, output_attentions=True).attentions
    assert len(got) == len(want) == 2
    mask = inputs.get("attention_mask", torch.ones(2, 1, dtype=torch.long)).bool()
    for protected, plain in zip(got, want, strict=True):
        assert isinstance(protected, SafeTensor) and protected.shape == plain.shape
        value = protected._state.backend.reveal(protected._state.payload, to="client")  # the test looks behind the ledger
        rows = mask[:, None, :, None].expand_as(plain) if mask.shape[1] > 1 else torch.ones_like(plain, dtype=torch.bool)
        assert (value - plain)[rows].abs().max() <= {"clear": 1e-5, "mpc": 5e-3}[technique]


@pytest.mark.parametrize("name", EVERY)
def test_hidden_states_stay_protected(name: str) -> None:
    model = build(name)
    with torch.no_grad():
        model(**inputs_for(name), output_hidden_states=True)  # installs transformers' own hooks on the user's model
    private = private_of(model, "mpc")
    output = private(**inputs_for(name), output_hidden_states=True)
    assert len(output.hidden_states) >= 2
    assert all(isinstance(h, SafeTensor) for h in output.hidden_states)
    assert len(records(private)) == 1
    assert all(isinstance(output[k], Tensor) and not isinstance(output[k], SafeTensor) for k in tensors(output))


@pytest.mark.parametrize("name", CAUSAL)
def test_cache_stays_protected_and_left_padding_works(name: str) -> None:
    model = build(name)
    private = private_of(model, "mpc")
    inputs = text_inputs(name, left=True)
    output = check_equal(private, model, inputs, TOLERANCE["mpc"])
    layers = output.past_key_values.layers
    assert len(layers) == 2
    assert all(isinstance(x, SafeTensor) for layer in layers for x in (layer.keys, layer.values))


@pytest.mark.parametrize("technique", ["clear", "mpc"])
@pytest.mark.parametrize("name", CAUSAL)
def test_generate(name: str, technique: str) -> None:
    model = build(name)
    private = private_of(model, technique)
    inputs = text_inputs(name, left=True)
    # Greedy choices of a random model could be close calls; the seed is one where they are not.
    want = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    got = private.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert torch.equal(got, want)
    assert len(records(private)) == 4
    assert "every step" in str(private.explain())


class Spy:
    """Stands in for a backend's kernel table and keeps every plain tensor that kernels are given."""

    def __init__(self, kernels: Any) -> None:
        self.kernels, self.plain = kernels, []  # type: Any, list[Tensor]

    def get(self, key: tuple[str, str]) -> Kernel | None:
        kernel = self.kernels.get(key)
        if kernel is None:
            return None

        def run(backend: Any, *args: Any, **kwargs: Any) -> Any:
            for value in (*args, *kwargs.values()):
                for item in value if isinstance(value, list | tuple) else [value]:
                    if isinstance(item, Tensor):
                        self.plain.append(item.clone())
            return kernel.run(backend, *args, **kwargs)

        return Kernel(kernel.op, kernel.kinds, run)


@pytest.mark.parametrize("name", TEXT)
def test_ids_never_leave_the_client_and_weights_are_never_revealed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    private = private_of(build(name), "mpc")
    backend: Any = private.session.backend(private.technique)
    spy = Spy(backend.kernels)
    shared: list[Tensor] = []
    revealed: list[int] = []
    protect, reveal = backend.protect, backend.reveal

    def watched_protect(x: Tensor, *, owner: str) -> Any:
        shared.append(x.clone())
        assert owner == "client"
        return protect(x, owner=owner)

    def watched_reveal(payload: Any, *, to: str) -> Tensor:
        revealed.append(id(payload))
        return reveal(payload, to=to)

    monkeypatch.setattr(backend, "kernels", spy, raising=False)
    monkeypatch.setattr(backend, "protect", watched_protect)
    monkeypatch.setattr(backend, "reveal", watched_reveal)
    inputs = text_inputs(name)
    output = private(**inputs)
    ids = inputs["input_ids"].reshape(-1).tolist()
    assert shared and all(x.is_floating_point() for x in shared)
    assert spy.plain or name.startswith(("bert", "distil", "roberta", "gpt2", "llama"))
    for x in spy.plain:  # masks, rotary factors, indices of the last token: public, and none of them the ids
        assert x.dtype == torch.bool or x.is_floating_point() or x.numel() <= 2
        assert x.reshape(-1).tolist() != ids
        held = {round(v) for v in x.reshape(-1).float().tolist() if abs(v) < 1e6}
        assert not set(ids) - {0, 1} <= held
    weights = {id(p._state.payload) for p in private.model.parameters() if isinstance(p, SafeTensor)}
    assert weights and not weights & set(revealed)
    assert len(revealed) == len(tensors(output))


@pytest.mark.parametrize("name", EVERY)
def test_the_model_given_is_untouched(name: str) -> None:
    model = build(name)
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    objects = [id(p) for p in model.parameters()]
    private = private_of(model, "mpc")
    private(**inputs_for(name))
    assert model.training and not private.model.training
    assert objects == [id(p) for p in model.parameters()] and all(p.requires_grad for p in model.parameters())
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    with torch.no_grad():
        assert isinstance(model.eval()(**inputs_for(name))[0], Tensor)


@pytest.mark.parametrize("name", EVERY)
def test_who_owns_which_parameter(name: str) -> None:
    model = build(name)
    private = private_of(model, "mpc")
    fronts = [f"{prefix}." for prefix in private._fronts]
    for key, parameter in private.model.named_parameters(remove_duplicate=False):
        if key.startswith(tuple(fronts)):
            assert not isinstance(parameter, SafeTensor)
            assert parameter.data_ptr() == model.get_parameter(key).data_ptr()  # the table is shared, not copied
        else:
            assert isinstance(parameter, SafeTensor) and parameter.owner == "server"
        assert not parameter.requires_grad
    assert bool(fronts) == (name in TEXT)


@pytest.mark.parametrize("name", ["gpt2", "llama-tied", "bert-mlm"])
def test_a_tied_head_has_a_protected_copy_of_its_own(name: str) -> None:
    model = build(name)
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    assert head.weight is table.weight
    private = private_of(model, "mpc").model
    assert isinstance(private.get_output_embeddings().weight, SafeTensor)
    assert not isinstance(private.get_input_embeddings().weight, SafeTensor)
